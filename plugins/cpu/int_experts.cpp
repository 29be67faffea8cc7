#include "int_experts.h"

#include <algorithm>
#include <cstring>

#include "arena.h"

namespace dsv3 {
namespace {

// What a product writes before SwiGLU reads it: small enough for the first-level cache's neighbour.
constexpr size_t kPairNumbers = size_t{16} << 10;

// The same rows of another expert.
RowSource of_expert(const IntBankSource& source, size_t expert) {
  RowSource rows = source.rows;
  const size_t above = expert * source.shape.N;
  rows.weight += above * rows.weight_stride;
  rows.scale += above * rows.scale_stride;
  if (rows.zero) rows.zero += above * rows.zero_stride;
  return rows;
}

}  // namespace

PackedBank::PackedBank(const IntBankSource& source, size_t experts, const Parallel& parallel)
    : shape_(source.shape), stride_((shape_.bytes() + 63) / 64 * 64), data_(allocate_weights(experts * stride_)) {
  parallel.run(experts, [&](size_t expert) {
    const RowSource rows = of_expert(source, expert);
    pack_rows(shape_, rows, 0, shape_.panels(), data_.get() + expert * stride_);
    release_file_pages(rows.weight, shape_.N * rows.weight_stride);
    release_file_pages(rows.scale, shape_.N * rows.scale_stride * sizeof(float));
  });
}

IntExperts::IntExperts(std::shared_ptr<const PackedBank> gate_up, std::shared_ptr<const PackedBank> down, size_t count,
                       bool rounded)
    : gate_up_(std::move(gate_up)),
      down_(std::move(down)),
      rounded_(rounded),
      products_(int_kernels()) {
  experts = count;
  hidden = down_->shape().K;
  model = gate_up_->shape().K;
  hidden_step = kPanel / 2;
  model_step = kPanel;
}

void IntExperts::row_strides(Side side, size_t (&strides)[Rows::kPlanes]) const {
  const IntShape& rows = shape(side);
  strides[0] = rounded_ ? row_stride(rows) : rows.K * sizeof(float);
  strides[1] = rounded_ ? rows.groups() * sizeof(float) : 0;
  strides[2] = rounded_ ? rows.groups() * sizeof(int32_t) : 0;
}

void IntExperts::prepare(Side side, const float* x, const Rows& rows, size_t row) const {
  if (rounded_) {
    products_.quantise_row(shape(side), x, rows.plane<int8_t>(0, row), rows.plane<float>(1, row),
                           rows.plane<int32_t>(2, row));
  } else {
    std::memcpy(rows.plane<float>(0, row), x, shape(side).K * sizeof(float));
  }
}

void IntExperts::gated(size_t expert, size_t first, size_t count, const Rows& rows, size_t m, float* to,
                       size_t ldh) const {
  const IntMatrix matrix = gate_up_->matrix(expert);
  const size_t most = std::clamp(kPairNumbers / (m * kPanel), size_t{1}, count);
  Scratch scratch;
  float* pairs = scratch.take<float>(m * most * kPanel);
  for (size_t panel = first; panel < first + count; panel += most) {
    const size_t panels = std::min(most, first + count - panel);
    const size_t columns = std::min(panels * kPanel, matrix.N - panel * kPanel);
    multiply(matrix, panel, panels, rows, m, pairs, columns);
    for (size_t row = 0; row < m; ++row) {
      kernels.swiglu_pairs(pairs + row * columns, columns / 2, to + row * ldh + (panel - first) * hidden_step);
    }
  }
}

void IntExperts::down(size_t expert, size_t first, size_t count, const Rows& rows, size_t m, float* y,
                      size_t ldy) const {
  multiply(down_->matrix(expert), first, count, rows, m, y, ldy);
}

void IntExperts::multiply(const IntMatrix& matrix, size_t first, size_t count, const Rows& rows, size_t m, float* y,
                          size_t ldy) const {
  if (rounded_) {
    const QuantisedRows seen{m,
                             matrix.groups(),
                             rows.strides[0],
                             rows.plane<int8_t>(0),
                             rows.plane<float>(1),
                             rows.plane<int32_t>(2)};
    products_.panel(matrix, first, count, seen, y, ldy);
  } else {
    products_.float_panel(matrix, first, count, rows.plane<float>(0), matrix.K, m, y, ldy);
  }
}

}  // namespace dsv3
