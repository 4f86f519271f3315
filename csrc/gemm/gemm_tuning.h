// Blocking policy of the matrix engine. Each number with its reason; figures say on what they were measured.
#pragma once

#include <cstdint>

namespace cvk {

// ---- CPU

// Depth of a block at most, in float32 (half as many in float64). A panel of the right operand (320 x 32 float32, 40 KiB) then
// stays in a 48 KiB L1. 9 taps of 32 or 35 channels fit, 25 of 12.
constexpr int kGemmDepth = 320;

// Elements from row to row of a left tile: the depth, and a vector more for what a copy writes past its end. 336 float32 are
// 21 cache lines; an odd number spreads the rows over the sets of the L1.
constexpr int kGemmPitch = 336;

// Bytes from pixel to pixel of a channels-last map up to which its pixels are multiplied as they lie; from 2 KiB on the rows of a tile
// share sets of a 48 KiB L1. 16 -> 16 over 112 x 112 pixels 84 -> 65 us, 64 -> 24 over 56 x 56 76 -> 60, 1024 channels slower. The
// gradient of the weights reads both maps so: 512 channels slower.
constexpr int64_t kGemmMapRowBytes = 1024;

// Rows of a block of the left operand, in register tiles: what a panel in L1 is used for before the next one comes.
constexpr int kGemmRowTiles = 8;

// Columns of a work item at most: a depth block of the right operand, 320 x 256 float32, is 320 KiB of L2.
constexpr int kGemmItemColumns = 256;

// Bytes of packed weights that a thread keeps from one work item to the next; larger ones are packed again for each item, of
// up to kGemmItemBlocks blocks of rows, so that packing stays below a twentieth of the time.
constexpr int64_t kGemmResidentBytes = int64_t{5} << 19;
constexpr int kGemmItemBlocks = 4;

// Bytes of packed weights above which they come from beyond L2, and are used for two blocks of rows at a time.
constexpr int64_t kGemmNearBytes = int64_t{3} << 18;

// Where there are few work items for the threads, the cut is the one whose estimate is least: a step of the depth in a tile of
// sums against making the left or the right operand's part of it. Counted in instructions (28 multiply-adds, two a cycle; some
// loads, shuffles and stores), not fitted.
constexpr int kGemmTileCost = 14;
constexpr int kGemmOperandCost = 3;

// The same of tiles under AMX: four products of 16 cycles for 16 steps of 32 x 32 sums, as it is documented; not measured.
constexpr int kGemmTilesCost = 4;

// Rows that a part of a tile costs at least: so many sums are under way. And the steps of the depth, of a row and a panel, that its sums
// cost which wait in scratch for a strided target. 2 x 2 / 2 over 14 to 64 pixels a row, depths of 16 to 256, on a Xeon of the Emerald
// Rapids generation: up to 16 % faster, none slower.
constexpr int kGemmLeastRows = 4;
constexpr int kGemmScratchCost = 16;

// Weights of transposed products over planes are turned in squares where a work item takes at least one in so many kernel elements, and
// its block a channel for so many lanes: 16 x 16 / 16 with one element in 256 would take up to ten times as long, 4 x 4 / 4 1.2 times.
constexpr int kGemmTurnedTaps = 8;
constexpr int kGemmTurnedChannels = 4;

// The columns past the last full vector are computed as dot products where that is less work: a dot product costs its depth
// and, to add up its lanes, as much as a depth of kDotSetup more; a vector's worth of columns costs kDotColumns of them.
constexpr int kDotSetup = 200;
constexpr int kDotColumns = 17;

// A 1 x 1 convolution of so few pixels in all leaves weights as they lie. Filters of a work item; backwards columns of one, at least and
// at most, and filters whose pieces of it are read at a time: these should follow one another in memory, and their sums stay in L1.
constexpr int kFewPixels = 8;
constexpr int kFewPixelsFilters = 64;
constexpr int kFewPixelsLeast = 96;
constexpr int kFewPixelsColumns = 512;
constexpr int kFewPixelsDepth = 32;

// Maps of few channels, multiplied from a padded copy. Channels at most; rows of pixels of a work item, register tiles of its width
// at most; elements of the copy at most: 7 x 7 taps of 3 channels with stride 2 take 12,000 (channels-last) or 29,000
// under AVX-512.
constexpr int kThinMapChannels = 4;
constexpr int kThinMapRows = 2;
constexpr int kThinMapTiles = 16;
constexpr int64_t kThinMapStrip = int64_t{1} << 16;

// Cycles of a row of pixels beside its products, and of a vector of the copy. The other way: gathering a run of a channels-last pixel,
// or a vector of pixels from planes. From 12 shapes on an EPYC 9005, a thread, float32.
constexpr int kThinMapRowCost = 100;
constexpr int kThinMapCopyCost = 2;
constexpr int kThinMapRunCost = 12;
constexpr int kThinMapVectorCost = 12;

// Maps of few pixels, multiplied without packing of weights. Pixels of an image at most: beyond, it is 8 % faster at best. Panels
// and sums of a work item: two panels of 48 pixels of a block are 400 KB, the sums 256 KB of float32.
constexpr int kSmallMapPixels = 256;
constexpr int kSmallMapItemPanels = 2;
constexpr int kSmallMapItemSums = 1 << 16;

// What it costs beside the products, counted in products of one sum: a product of a dot product, in quarters, and adding up its lanes;
// gathering an element; reading a weight from beyond L2; storing a result. The other way: packing a weight. From 41 shapes on a Xeon
// of the Emerald Rapids generation, a thread, float32; in all but two of 82 cases the faster is taken, or one at most 2 % slower; in
// those it is 8 % slower.
constexpr int kSmallMapDotCost = 5;
constexpr int kSmallMapSumCost = 112;
constexpr int kSmallMapGatherCost = 10;
constexpr int kSmallMapWeightCost = 8;
constexpr int kSmallMapResultCost = 16;
constexpr int kSmallMapPackCost = 22;

// Copies of a map in which taps of neighbours are vectors. Cells of a row, and rows, at most.
constexpr int64_t kWindowCells = int64_t{1} << 20;

// Groups of few channels. Channels and filters of a group at most (Winograd's form takes 32 and more), and products of a result; bytes
// of a window wanted, and at most; rows of it for which fewer groups share one; vectors of pixels at least, alone and in each of
// several phases; phases at most; work items of a thread at least.
constexpr int64_t kGroupedChannels = 31;
constexpr int64_t kGroupedDepth = 512;
constexpr int64_t kGroupedWindow = int64_t{1} << 18;
constexpr int64_t kGroupedMostWindow = int64_t{1} << 20;
constexpr int kGroupedRows = 4;
constexpr int64_t kGroupedVectors = 2;
constexpr int64_t kGroupedPhaseVectors = 8;
constexpr int64_t kGroupedPhases = 16;
constexpr int kGroupedItems = 4;

// Cycles of the gradient of their weights beside its products: adding up a tile, copying a vector, storing a weight. The other way, in
// fortieths: gathering an element, and its products with a vector of filters. From 15 shapes on a Xeon of the Emerald Rapids generation;
// in all of them the faster is taken, or one at most 10 % slower.
constexpr int64_t kGroupedTileCost = 60;
constexpr int64_t kGroupedCopyCost = 5;
constexpr int64_t kGroupedPutCost = 3;
constexpr int64_t kGroupedGatherCost = 16;
constexpr int64_t kGroupedProductCost = 27;

// Vectors of a dot product along planes, after which its lanes are added up: what a tile reads of them is 32 KiB and stays in L1.
constexpr int64_t kDotPlanesChunk = 64;

// The gradient of weights of 1 x 1 over planes by these. Pixels of an image at least; filters of a work item at least where there would
// be few of them; products of a number that is read at most; sums of a work item, but for a tile's more filters. From 25 shapes on a Xeon
// of the Emerald Rapids generation.
constexpr int64_t kPlaneWeightPixels = 64;
constexpr int64_t kPlaneWeightFilters = 32;
constexpr int64_t kPlaneWeightProducts = 48;
constexpr int64_t kPlaneWeightSums = int64_t{1} << 16;

// Planes multiplied where they lie. Channels at most: 2,048 times the four lines of a tile's pixels are half an L2 of 1 MiB. Planes
// 256 bytes apart, modulo a page, reach nearly all sets; where a higher power of two divides their distance, as many times fewer:
// 512 -> 512 over 32 x 32 pixels would take 1.6 times as long. Vectors of pixels of a work item at most. Backwards, vectors of pixels at
// least, and bytes of a group's weights at most: 1 MB of them, 1,024 channels apart, would take 1.3 times as long as packed ones.
constexpr int64_t kPlaneMapDepth = 2048;
constexpr int64_t kPlaneMapSpread = 256;
constexpr int64_t kPlaneMapPage = 4096;
constexpr int kPlaneMapBackVectors = 6;
constexpr int64_t kPlaneMapBackBytes = int64_t{5} << 16;
constexpr int kPlaneMapItemVectors = 1 << 12;

// Panels of pixels of a work item over planes.
constexpr int kGemmItemPanels = 8;

// Winograd's form. Channels and columns of a group at least: below, transforming costs what multiplying saves.
constexpr int kWinogradLeastChannels = 32;

// By how many eighths the definition's count of cycles must exceed its own.
constexpr int kWinogradGain = 9;

// Columns that are multiplied at a time: 16 elements x 320 channels x 32 columns of transformed weights are 0.66 MB.
constexpr int kWinogradColumns = 32;

// Bytes of transformed weights that a thread keeps, of transformed pixels of a work item, and its tiles at most. With the sums of
// the latter (16 x 112 x 32 float32, 0.2 MB) and what is turned for planes (0.3 MB) below 4 MiB; below 6 where some results are
// not finite and the definition's scratch is needed as well.
constexpr int64_t kWinogradWeightBytes = int64_t{3} << 19;
constexpr int64_t kWinogradSourceBytes = int64_t{7} << 18;
constexpr int kWinogradTiles = 112;

// Channels of weights that are packed, and of planes that are turned, at a time: both stay in L1.
constexpr int kWinogradPackChannels = 32;
constexpr int kWinogradWindow = 64;

// Floats between the 16 elements of weights and of sums: else they lie a power of two apart and fall into the same sets of a cache.
constexpr int kWinogradSkew = 80;

// Cycles for a weight, a channel of a tile and a column of a tile, with 16 lanes; counted in instructions, but weights come from
// beyond L2 and take what 512 -> 512 over 7 x 7 pixels shows.
constexpr int kWinogradWeightCost = 7;
constexpr int kWinogradSourceCost = 3;
constexpr int kWinogradTargetCost = 2;

// Weight gradient: work items wanted, so that many threads find work. Where filters and depth give fewer, the pixels are cut
// into parts of at least kWeightPartBlocks depths, whose sums are added in order.
constexpr int kWeightItems = 32;
constexpr int kWeightPartBlocks = 4;

// Where they are still fewer than this, filters are dealt out in blocks of no fewer than that.
constexpr int kWeightLeastItems = 4;
constexpr int kWeightLeastFilters = 64;

// Where they are one, three or five then, a part is of fewer depths: of five items of one length two threads take three and two.
constexpr int kWeightFewItems = 6;
constexpr int kWeightFewPartBlocks = 2;

// Winograd's form of it. Filters and channels of a work item, and tiles that are multiplied at a time: 16 elements of 64 x 64 sums and
// of 64 x 80 of either operand are 0.9 MB. Tiles of a part at least, and about as many filters of a work item where there are few items.
constexpr int kWinogradWeightFilters = 64;
constexpr int kWinogradWeightChannels = 64;
constexpr int kWinogradWeightTiles = 64;
constexpr int64_t kWinogradPartTiles = 128;
constexpr int64_t kWinogradLeastFilters = 32;

// Channels and filters of a group at least. Cycles of a tile: for a vector of weights, of channels (of each block of filters) and of filters
// (of each block of channels), these two twice over planes, which are turned; and for what becomes of a vector's sums. By definition, of a
// pixel, in lanes: for a weight and for a channel. From the parts of the time of 64 -> 64 over 56 x 56 and 16 -> 16 to 512 -> 512 on a
// Xeon of the Emerald Rapids generation. bfloat16 in pairs is not counted apart: by definition they take longer than numbers there; not
// measured on an EPYC.
constexpr int kWinogradWeightLeast = 16;
constexpr int64_t kWinogradProductCost = 9;
constexpr int64_t kWinogradInputCost = 100;
constexpr int64_t kWinogradGradsCost = 80;
constexpr int64_t kWinogradPutCost = 60;
constexpr int64_t kWeightProductCost = 6;
constexpr int64_t kWeightGatherCost = 63;

// Pixels ahead of those that are multiplied for which memory is asked where they lie in a map.
constexpr int kWeightAhead = 8;

// Depthwise: neighbours that are summed together. With two multiply-adds a cycle of four cycles each eight would be under way, but
// the sides of classifiers' maps are multiples of seven: 7 x 7 pixels take 15 to 30 % less time than with eight, large maps as much.
constexpr int kDepthwisePixels = 7;

// Depthwise, channels-last maps: rows and channels of a strip, whose rows of taps stay in L1; bytes of weights that are packed.
constexpr int kDepthwiseStripRows = 8;
constexpr int kDepthwiseChannels = 48;
constexpr int64_t kDepthwiseWeightBytes = int64_t{1} << 18;

// Depthwise over planes: elements of the padded copy of a strip, 24 KiB in float32; where so many do not hold kDepthwisePixels rows,
// those of that many rows; and of what one row reads, at most.
constexpr int64_t kDepthwiseStrip = 6 << 10;
constexpr int64_t kDepthwiseLongStrip = 64 << 10;
constexpr int64_t kDepthwiseMostCopy = 128 << 10;

// Depthwise: taps of a filter above which it is computed by definition, without scratch; 64 x 64.
constexpr int kDepthwiseMostTaps = 4096;

// Depthwise over planes, turned: bytes of the channels-last copy of a strip, and of its results, half an L2 of 1 MiB together; pixels
// of a row above which vectors along it are full often enough; phases of a transposed product at most.
constexpr int64_t kDepthwiseTurnBytes = int64_t{1} << 18;
constexpr int kDepthwiseTurnWidth = 16;
constexpr int64_t kDepthwiseTurnPhases = 16;

// Depthwise weight gradient: a part for so many rows.
constexpr int kDepthwisePartRows = 32;

// ---- CUDA (chosen from the H200's description, not tuned; ran on an H100)

// A block's tile of sums, the depth staged at a time, and a thread's share: 64 x 64 by 16 in float32 are 8.5 KiB of shared
// memory, and 16 sums for 8 values read from it.
constexpr int kGemmTile = 64;
constexpr int kGemmStage = 16;
constexpr int kGemmThreadTile = 4;
constexpr int kGemmThreads = kGemmTile * kGemmTile / (kGemmThreadTile * kGemmThreadTile);

// Depthwise: threads of a block, one result each; of the weight gradient, which a block reduces.
constexpr int kDepthwiseThreads = 256;

}  // namespace cvk
