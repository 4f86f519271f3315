// Tiles of the tensor-core engine, and what decides between them.
#pragma once

namespace cvk {

template <int rows, int columns, int depth, int warp_rows, int warp_columns, int stages, int blocks, int alone,
          int busy>
struct GemmShape;
template <int rows, int columns, int group_rows, int stages, int overlap, int blocks, int alone, int busy, int weight>
struct GemmWarpgroupShape;

// Rows x columns x depth of a block, rows x columns of a warp, stages, blocks that an SM holds; then the time of a step, in
// hundredths of that of two large tiles: of a block that has an SM for itself, and a block's share of a full SM. Depths are 64 bytes:
// four chunks of 16.
using GemmHalfLarge = GemmShape<128, 128, 32, 64, 64, 4, 2, 60, 50>;
using GemmHalfMedium = GemmShape<128, 64, 32, 64, 32, 4, 3, 45, 27>;
using GemmHalfSmall = GemmShape<64, 64, 32, 32, 32, 4, 4, 40, 15>;
using GemmHalfNarrow = GemmShape<128, 16, 32, 32, 16, 4, 4, 35, 10>;
using GemmTf32Large = GemmShape<128, 128, 16, 64, 64, 4, 2, 60, 50>;
using GemmTf32Medium = GemmShape<128, 64, 16, 64, 32, 4, 2, 32, 29>;
using GemmFloatSmall = GemmShape<64, 64, 16, 32, 32, 4, 2, 40, 17>;  // both TF32 and 3xTF32
using GemmFloatNarrow = GemmShape<128, 16, 16, 32, 16, 4, 2, 35, 17>;
using GemmDoubleSmall = GemmShape<64, 64, 8, 32, 32, 3, 2, 60, 50>;
using GemmDoubleNarrow = GemmShape<128, 16, 8, 32, 16, 3, 2, 50, 30>;
// Rows x columns, rows of a warpgroup, stages, steps that overlap, and the rest as above; last, how many times (in hundredths) a step
// of a weight gradient takes that of a product. A depth is 128 bytes: two of the steps above.
using GemmGroupHuge = GemmWarpgroupShape<128, 256, 64, 4, 1, 1, 98, 98, 185>;
using GemmGroupTall = GemmWarpgroupShape<256, 128, 128, 4, 1, 1, 112, 112, 165>;
using GemmGroupLarge = GemmWarpgroupShape<128, 128, 64, 3, 0, 2, 78, 65, 170>;
using GemmGroupMedium = GemmWarpgroupShape<128, 64, 128, 3, 0, 3, 57, 42, 140>;
using GemmGroupWide = GemmWarpgroupShape<64, 128, 64, 4, 1, 2, 47, 39, 184>;
constexpr double kGemmMmaWeightCost = 1.6;  // the same for the shapes above

// The count of time that plans are chosen by; its unit took 0.8 us on an H100.
constexpr int kGemmMmaSms = 132;
constexpr double kGemmMmaEnds = 6;             // steps: filling the stages and storing the result
constexpr double kGemmMmaEndsAlone = 9;        // the same of shapes whose blocks have an SM for themselves
constexpr double kGemmMmaSumLaunch = 6;        // the launch that adds the parts
constexpr double kGemmMmaSumsPerStep = 350e3;  // elements of parts that pass through memory in a unit

// Parts of the depth: at most so many, each at least so many steps deep.
constexpr int kGemmMmaMostSplits = 64;
constexpr int kGemmMmaLeastSteps = 8;

// With a smaller depth the plain kernels do: most of a step's tile would be zeros.
constexpr int kGemmMmaLeastDepth = 16;

// Taps of so few chunks are cached in L1.
constexpr int kGemmMmaMostCachedChunks = 4;

// With more phases of a transposed product, each launches of its own, the plain kernel does: it takes all of them in one.
constexpr int kGemmMmaMostPhases = 16;

// Threads of the kernels that copy maps, order weights and add up parts; weights are turned in square tiles.
constexpr int kGemmMmaThreads = 256;
constexpr int kGemmMmaWeightTile = 32;

}  // namespace cvk
