#include "float_linear.h"

#include <algorithm>

#include "scratch.h"

namespace dsv3 {
namespace {

// Columns are handed out in blocks that keep a thread busy for some microseconds, several for each thread.
constexpr size_t kColumnUnit = 4;
constexpr size_t kBytesOfTask = size_t{64} << 10;
constexpr size_t kTasksPerThread = 4;
// Rows of a task where there are too few columns for all threads.
constexpr size_t kRowsOfTask = 24;

size_t blocks_of(size_t count, size_t size) { return (count + size - 1) / size; }

size_t columns_of_task(const FloatMatrix& matrix, size_t rows, size_t threads) {
  const size_t width = matrix.element == Element::f32 ? 4 : matrix.element == Element::f8e4m3 ? 1 : 2;
  const size_t row_bytes = std::max<size_t>(1, matrix.K * width * std::max<size_t>(1, rows / 4));
  const size_t least = blocks_of(kBytesOfTask, row_bytes), fair = blocks_of(matrix.N, threads * kTasksPerThread);
  return blocks_of(std::max(least, fair), kColumnUnit) * kColumnUnit;
}

void multiply(const FloatKernels& kernels, const FloatMatrix& matrix, const FloatRows& x, const Parallel& parallel,
              float* y) {
  const size_t columns = columns_of_task(matrix, x.rows, parallel.threads), across = blocks_of(matrix.N, columns);
  const bool few = across < 2 * parallel.threads;
  const size_t rows = few ? std::min(x.rows, kRowsOfTask) : x.rows, down = blocks_of(x.rows, rows);
  parallel.run(across * down, [&](size_t task) {
    const size_t first = task % across * columns, row = task / across * rows;
    const float* scale = x.scale != nullptr ? x.scale + row * x.scale_stride : nullptr;
    const FloatRows part{x.x + row * x.stride, x.stride, std::min(rows, x.rows - row), scale, x.scale_stride};
    kernels.product(matrix, first, std::min(columns, matrix.N - first), part, y + row * matrix.N + first, matrix.N);
  });
}

// Rows of x rounded to float8, in memory of `scratch`.
FloatRows rounded_rows(const FloatKernels& kernels, const FloatMatrix& matrix, const float* x, size_t rows,
                       const Parallel& parallel, Scratch& scratch) {
  const size_t K = matrix.K, groups = matrix.groups();
  auto* values = scratch.take<float>(rows * K);
  auto* scale = scratch.take<float>(rows * groups);
  parallel.run(rows, [&](size_t row) { kernels.round_row(x + row * K, K, values + row * K, scale + row * groups); });
  return {values, K, rows, scale, groups};
}

}  // namespace

FloatMatrix matrix_of(const Tensor& weight, const float* scale) {
  require(weight.shape.rank == 2, "weight: expected shape [N, K], got ", weight.shape.text());
  return {weight.element, static_cast<size_t>(weight.shape[0]), static_cast<size_t>(weight.shape[1]), weight.data,
          scale};
}

void run_linear(const FloatKernels& kernels, const FloatMatrix& matrix, bool rounded, Call& call) {
  const Tensor x = call.input(0);
  require(x.shape.rank >= 1 && x.shape.last() == static_cast<int64_t>(matrix.K), "x: expected [..., ", matrix.K,
          "], got ", x.shape.text());
  Shape shape = x.shape;
  shape.dims[shape.rank - 1] = static_cast<int64_t>(matrix.N);
  float* y = call.output_f32(0, shape);
  const auto rows = static_cast<size_t>(x.shape.rows());
  if (rows == 0 || matrix.N == 0) return;
  Scratch scratch;
  const FloatRows given = rounded ? rounded_rows(kernels, matrix, x.f32(), rows, call.parallel(), scratch)
                                  : FloatRows{x.f32(), matrix.K, rows, nullptr, 0};
  multiply(kernels, matrix, given, call.parallel(), y);
}

}  // namespace dsv3
