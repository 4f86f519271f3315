// Launch policy of the levels of boxes; that of pooling is RoI Align's.
#pragma once

namespace cvk {

// Threads of a block, a box each. Not measured: the kernel moves 48 bytes a box.
constexpr int kMultiscaleLevelsThreads = 256;

}  // namespace cvk
