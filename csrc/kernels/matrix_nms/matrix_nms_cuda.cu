// Matrix NMS on CUDA. Contract and method: matrix_nms.h. Ran on an H100 (2026-11-26).
#include "common/launch.cuh"
#include "kernels/matrix_nms/matrix_nms.h"
#include "kernels/matrix_nms/matrix_nms_math.h"

namespace cvk {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kNobody = 0xffffffffu;  // an index

// A Source says what the overlap of a row, a box by rank, with a column is; columns are in an order of the source's.
//   struct Column { unsigned rank; ... };                        // rows before `rank` count
//   Column column(unsigned i) const;
//   bool overlap(unsigned row, const Column&, A* value) const;   // false where the two do not meet
//   unsigned column_of(unsigned row) const;                      // the same box as a column
//   unsigned index_of(unsigned column) const;                    // the same box in the tensors

// From boxes: columns are in order of rank, so that the rows before 32 of them are nearly the same.
template <class A>
struct BoxSource {
  using Real = A;
  struct alignas(16) Corners {
    A x1, y1, x2, y2;
  };
  struct Column {
    unsigned rank;
    int64_t its_class;
    Box<A> box;
    A area;
  };
  Corners* boxes;    // [N] by rank; NaN where the score is NaN, which overlaps nothing
  int64_t* classes;  // [N] by rank, or null
  const int64_t* order;
  OverlapRule<A> rule;

  // One thread per rank.
  CVK_DEVICE void prepare(const MatrixNmsParams<A>& params, unsigned rank) const {
    const int64_t from = order[rank];
    const A* const box = params.boxes + 4 * from;
    const A score = params.scores[from], nothing = score - score;  // 0 or NaN
    boxes[rank] =
        score == score ? Corners{box[0], box[1], box[2], box[3]} : Corners{nothing, nothing, nothing, nothing};
    if (classes != nullptr) classes[rank] = params.classes[from];
  }
  CVK_DEVICE Column column(unsigned i) const {
    const Corners at = boxes[i];
    const Box<A> box{at.x1, at.y1, at.x2, at.y2};
    return {i, classes != nullptr ? classes[i] : 0, box, box_area(box)};
  }
  CVK_DEVICE bool overlap(unsigned row, const Column& column, A* value) const {
    const Corners at = boxes[row];
    const Box<A> box{at.x1, at.y1, at.x2, at.y2};
    const A intersection = box_intersection(box, column.box);
    if (!(intersection > A(0)) || (classes != nullptr && classes[row] != column.its_class)) return false;
    const A united = box_union(box_area(box), column.area, intersection);
    *value = weight_of_overlap(box_overlap(box, column.box, intersection, united, rule));
    return true;
  }
  CVK_DEVICE unsigned column_of(unsigned row) const { return row; }
  CVK_DEVICE unsigned index_of(unsigned column) const { return static_cast<unsigned>(order[column]); }
};

// From a matrix: columns are those of the matrix, so that a warp reads a row of it side by side.
template <class A>
struct MatrixSource {
  using Real = A;
  struct Column {
    unsigned rank;
    int64_t its_class;
    const A* overlaps;  // its element of the first row
  };
  unsigned* indices;  // [N] by rank; kNobody where the score is NaN
  unsigned* ranks;    // [N] by index; 0 where the score is NaN
  const int64_t* classes;
  const int64_t* order;
  const A* overlaps;  // [N, N]
  int64_t count;

  CVK_DEVICE void prepare(const MatrixNmsParams<A>& params, unsigned rank) const {
    const unsigned index = static_cast<unsigned>(order[rank]);
    const A score = params.scores[index];
    indices[rank] = score == score ? index : kNobody;
    ranks[index] = score == score ? rank : 0;
  }
  CVK_DEVICE Column column(unsigned i) const { return {ranks[i], classes != nullptr ? classes[i] : 0, overlaps + i}; }
  CVK_DEVICE bool overlap(unsigned row, const Column& column, A* value) const {
    const unsigned index = indices[row];
    if (index == kNobody || (classes != nullptr && classes[index] != column.its_class)) return false;
    *value = weight_of_overlap(column.overlaps[index * count]);
    return true;
  }
  CVK_DEVICE unsigned column_of(unsigned row) const { return indices[row]; }
  CVK_DEVICE unsigned index_of(unsigned column) const { return column; }
};

template <class Source>
__global__ void __launch_bounds__(kMatrixNmsPrepareThreads)
    matrix_nms_prepare_kernel(MatrixNmsParams<typename Source::Real> params, Source source) {
  const int64_t rank = static_cast<int64_t>(blockIdx.x) * kMatrixNmsPrepareThreads + threadIdx.x;
  if (rank < params.count) source.prepare(params, static_cast<unsigned>(rank));
}

// A block has 32 columns, one per lane; its warps share the rows. First the compensations, then, with `decays`, the scores.
template <class Source, bool decays>
__global__ void __launch_bounds__(kMatrixNmsWarps* kWarp, kMatrixNmsBlocksPerSm)
    matrix_nms_kernel(MatrixNmsParams<typename Source::Real> params, Source source,
                      typename Source::Real* compensation) {  // [N] by column
  using A = typename Source::Real;
  struct Shared {
    A folded[kMatrixNmsWarps][kWarp];
  };
  auto& shared = static_shared<Shared>();
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  // Perf: columns in order of rank have ever more rows; the long ones begin first.
  const int64_t place = static_cast<int64_t>(gridDim.x - 1 - blockIdx.x) * kWarp + lane;
  const bool present = place < params.count;
  const unsigned i = present ? static_cast<unsigned>(place) : 0;
  auto column = source.column(i);
  if (!present) column.rank = 0;
  const unsigned rows = __reduce_max_sync(0xffffffffu, column.rank);

  const A start = decays ? matrix_nms_start<A>(params.kernel) : A(0);
  A folded = start;
  for (unsigned row = warp; row < rows; row += kMatrixNmsWarps) {
    A overlap;
    if (row >= column.rank || !source.overlap(row, column, &overlap)) continue;
    folded = decays ? matrix_nms_fold(folded, overlap, compensation[source.column_of(row)], params.kernel)
                    : max_of(overlap, folded);
  }
  shared.folded[warp][lane] = folded;
  __syncthreads();
  if (warp != 0 || !present) return;
  for (int other = 1; other < kMatrixNmsWarps; ++other) {
    const A its = shared.folded[other][lane];
    folded = decays ? matrix_nms_combine(its, folded, params.kernel) : max_of(its, folded);
  }
  if (decays) {
    const unsigned index = source.index_of(i);
    params.new_scores[index] = params.scores[index] * matrix_nms_decay(folded, params.kernel, params.sigma);
  } else {
    compensation[i] = folded;
  }
}

// Calls f(source, compensation) with all pointers into one allocation of *bytes.
template <class A, class F>
auto with_source(const MatrixNmsParams<A>& params, const int64_t* order, char* memory, int64_t* bytes, F&& f) {
  const auto take = [&](int64_t size) {
    char* at = memory + *bytes;
    *bytes += round_up<int64_t>(size, 256);
    return at;
  };
  const int64_t n = params.count, size = sizeof(A);
  *bytes = 0;
  A* const compensation = reinterpret_cast<A*>(take(n * size));
  if (params.overlaps != nullptr) {
    unsigned* const indices = reinterpret_cast<unsigned*>(take(n * 4));
    unsigned* const ranks = reinterpret_cast<unsigned*>(take(n * 4));
    return f(MatrixSource<A>{indices, ranks, params.classes, order, params.overlaps, n}, compensation);
  }
  auto* const boxes = reinterpret_cast<typename BoxSource<A>::Corners*>(take(n * 4 * size));
  int64_t* const classes = params.classes != nullptr ? reinterpret_cast<int64_t*>(take(n * 8)) : nullptr;
  return f(BoxSource<A>{boxes, classes, order, params.overlap}, compensation);
}

}  // namespace

template <class A>
int64_t matrix_nms_scratch_cuda(const MatrixNmsParams<A>& params) {
  int64_t bytes = 0;
  with_source(params, nullptr, nullptr, &bytes, [](const auto&, A*) {});
  return bytes;
}

template <class A>
CudaStatus matrix_nms_cuda(const MatrixNmsParams<A>& params, const int64_t* order, void* scratch, CudaStream stream) {
  const auto grid = [&](int64_t columns) { return dim3(static_cast<unsigned>(ceil_div(params.count, columns))); };
  int64_t bytes = 0;
  return static_cast<CudaStatus>(
      with_source(params, order, static_cast<char*>(scratch), &bytes, [&](const auto& source, A* compensation) {
        using Source = std::decay_t<decltype(source)>;
        const LaunchConfig prepare{grid(kMatrixNmsPrepareThreads), dim3(kMatrixNmsPrepareThreads)};
        const LaunchConfig columns{grid(kWarp), dim3(kMatrixNmsWarps * kWarp)};
        cudaError_t status = launch(matrix_nms_prepare_kernel<Source>, prepare, stream, params, source);
        if (status == cudaSuccess) {
          status = launch(matrix_nms_kernel<Source, false>, columns, stream, params, source, compensation);
        }
        if (status == cudaSuccess) {
          status = launch(matrix_nms_kernel<Source, true>, columns, stream, params, source, compensation);
        }
        return status;
      }));
}

template int64_t matrix_nms_scratch_cuda<float>(const MatrixNmsParams<float>&);
template int64_t matrix_nms_scratch_cuda<double>(const MatrixNmsParams<double>&);
template CudaStatus matrix_nms_cuda<float>(const MatrixNmsParams<float>&, const int64_t*, void*, CudaStream);
template CudaStatus matrix_nms_cuda<double>(const MatrixNmsParams<double>&, const int64_t*, void*, CudaStream);

}  // namespace cvk
