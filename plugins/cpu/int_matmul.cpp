// Which kernels run, and how a product is cut into tasks.
#include "int_matmul.h"

#include <algorithm>

#include "int_kernels.h"
#include "isa.h"

namespace dsv3 {
namespace {

#if defined(__x86_64__)
const IntKernels kAvx2 = {avx2::quantise_row, avx2::int_panel, avx2::float_panel};
const IntKernels kAvx512 = {avx512::quantise_row, avx512::int_panel, avx512::float_panel};
const IntKernels kAmx = {avx512::quantise_row, amx::int_panel, avx512::float_panel};
#endif

// Less is not worth waking a thread for.
constexpr size_t kBytesOfTask = 96 << 10;
// Rounded rows that stay in the second-level cache while panels pass by.
constexpr size_t kBytesOfRows = 1 << 20;
constexpr size_t kRowsOfQuantising = 16;

size_t ceil_div(size_t value, size_t by) { return (value + by - 1) / by; }

// Calls body(first panel, panels, first row, rows) for all of a product, in parallel.
template <typename Body>
void in_tasks(const Parallel& parallel, const IntMatrix& matrix, size_t rows, size_t row_bytes, const Body& body) {
  const size_t panels = matrix.panels();
  // Sixteen rows take some times longer than reading the weights does.
  const size_t work = matrix.bytes() * std::max<size_t>(1, rows / 16);
  const size_t most = parallel.threads == 1 ? 1 : parallel.threads * (rows > 16 ? 4 : 2);
  const size_t wanted = std::min(work / kBytesOfTask, most);
  // A multiple of 16 rows: tiles are full.
  const size_t at_once = std::max<size_t>(1, kBytesOfRows / row_bytes / 16) * 16;
  const size_t row_parts = ceil_div(rows, at_once);
  const size_t panel_parts = std::clamp<size_t>(ceil_div(wanted, row_parts), 1, panels);
  parallel.run(row_parts * panel_parts, [&](size_t task) {
    const size_t part = task % panel_parts, row = task / panel_parts * at_once;
    const size_t begin = panels * part / panel_parts, end = panels * (part + 1) / panel_parts;
    body(begin, end - begin, row, std::min(at_once, rows - row));
  });
}

}  // namespace

const IntKernels& int_kernels() {
  switch (isa()) {
#if defined(__x86_64__)
    case Isa::amx: return kAmx;
    case Isa::avx512: return kAvx512;
    case Isa::avx2: return kAvx2;
#endif
    default: return int_generic;
  }
}

QuantisedRows quantise_rows(const Parallel& parallel, const IntKernels& kernels, const IntShape& shape, const float* x,
                            size_t ldx, size_t rows, Scratch& scratch) {
  const size_t groups = shape.groups(), stride = row_stride(shape);
  int8_t* q = scratch.take<int8_t>(rows * stride);
  float* scale = scratch.take<float>(rows * groups);
  int32_t* sum = scratch.take<int32_t>(rows * groups);
  parallel.run(ceil_div(rows, kRowsOfQuantising), [&](size_t task) {
    const size_t begin = task * kRowsOfQuantising, end = std::min(rows, begin + kRowsOfQuantising);
    for (size_t m = begin; m < end; ++m) {
      kernels.quantise_row(shape, x + m * ldx, q + m * stride, scale + m * groups, sum + m * groups);
    }
  });
  return {rows, groups, stride, q, scale, sum};
}

void int_matmul(const Parallel& parallel, const IntKernels& kernels, const IntMatrix& matrix,
                const QuantisedRows& rows, float* y, size_t ldy) {
  in_tasks(parallel, matrix, rows.rows, rows.stride, [&](size_t panel, size_t panels, size_t row, size_t count) {
    const QuantisedRows part = {count,
                                rows.groups,
                                rows.stride,
                                rows.q + row * rows.stride,
                                rows.scale + row * rows.groups,
                                rows.sum + row * rows.groups};
    kernels.panel(matrix, panel, panels, part, y + row * ldy + panel * kPanel, ldy);
  });
}

void int_matmul_float(const Parallel& parallel, const IntKernels& kernels, const IntMatrix& matrix, const float* x,
                      size_t ldx, size_t rows, float* y, size_t ldy) {
  const auto body = [&](size_t panel, size_t panels, size_t row, size_t count) {
    kernels.float_panel(matrix, panel, panels, x + row * ldx, ldx, count, y + row * ldy + panel * kPanel, ldy);
  };
  in_tasks(parallel, matrix, rows, matrix.K * sizeof(float), body);
}

}  // namespace dsv3
