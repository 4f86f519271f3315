// Launch policy of im2col.
#pragma once

namespace cvk {

// ---- CUDA (chosen, not tuned; ran on an H100): threads of a block, one element of the result each.
constexpr int kIm2colThreads = 256;

}  // namespace cvk
