// Tiles of the tensor-core engine. Chosen from the descriptions of sm_80 and sm_90, not yet measured.
#pragma once

namespace cvk {

template <int rows, int columns, int depth, int warp_rows, int warp_columns, int stages>
struct GemmShape;

// Rows x columns x depth of a block, rows x columns of a warp, stages. Depths are 64 bytes: four chunks of 16. With two blocks
// on an SM ptxas 13.0 takes, without spills: 64 x 64 of a warp 230 registers in half, 64 x 32 151 in half and 133 in TF32.
// Three products for one (3xTF32) spill there, and fit in 32 x 32: 184.
using GemmHalfLarge = GemmShape<128, 128, 32, 64, 64, 4>;
using GemmHalfMedium = GemmShape<128, 64, 32, 64, 32, 4>;
using GemmHalfSmall = GemmShape<64, 64, 32, 32, 32, 4>;
using GemmTf32Medium = GemmShape<128, 64, 16, 64, 32, 4>;
using GemmFloatSmall = GemmShape<64, 64, 16, 32, 32, 4>;  // both TF32 and 3xTF32
using GemmDoubleSmall = GemmShape<64, 64, 8, 32, 32, 3>;

// Blocks that must fit on one SM.
constexpr int kGemmMmaBlocksPerSm = 2;

// Blocks that fill a device: two on each of 132 SMs. With fewer tiles the depth is cut, each part at least so many steps deep.
constexpr int kGemmMmaWantedBlocks = 264;
constexpr int kGemmMmaLeastSteps = 8;

// With fewer columns or a smaller depth the plain kernels do: most of a step's tile would be zeros.
constexpr int kGemmMmaLeastColumns = 8;
constexpr int kGemmMmaLeastDepth = 16;

// With more phases of a transposed product, each launches of its own, the plain kernel does: it takes all of them in one.
constexpr int kGemmMmaMostPhases = 16;

// Threads of the kernels that order weights and add up parts.
constexpr int kGemmMmaThreads = 256;

}  // namespace cvk
