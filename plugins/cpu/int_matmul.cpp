// Rounding of rows, and which kernels run.
#include "int_matmul.h"

#include "int_kernels.h"

namespace dsv3 {

void RowBuffer::resize(const IntShape& shape, size_t rows) {
  rows_ = rows;
  groups_ = shape.groups();
  stride_ = row_stride(shape);
  // a tile of the last row may be read 64 bytes wide
  if (bytes_.size() < rows * stride_ + 128) bytes_.resize(rows * stride_ + 128);
  if (scale_.size() < rows * groups_) scale_.resize(rows * groups_), sum_.resize(rows * groups_);
}

void quantise_rows(const IntShape& shape, const float* x, size_t ldx, size_t rows, RowBuffer& buffer) {
  const IntKernels& kernels = int_kernels();
  buffer.resize(shape, rows);
  const size_t groups = shape.groups(), stride = row_stride(shape);
  for (size_t m = 0; m < rows; ++m) {
    kernels.quantise_row(shape, x + m * ldx, buffer.q() + m * stride, buffer.scale() + m * groups,
                         buffer.sum() + m * groups);
  }
}

const IntKernels& int_kernels() { return int_generic; }

}  // namespace dsv3
