#include "float_experts.h"

#include <algorithm>
#include <cstring>

namespace dsv3 {
namespace {

// Columns of a step: some rows of a matrix, so that a task's results fill cache lines.
constexpr size_t kStep = 16;

// Hidden columns that a product writes at once before SwiGLU reads them.
constexpr size_t kGatedNumbers = size_t{16} << 10;

size_t element_bytes(Element element) {
  if (element == Element::f32) return 4;
  return element == Element::f8e4m3 ? 1 : 2;
}

}  // namespace

FloatMatrix FloatBank::matrix(size_t expert) const {
  FloatMatrix one = first_;
  one.data = static_cast<const uint8_t*>(one.data) + expert * one.N * one.K * element_bytes(one.element);
  if (one.scale != nullptr) one.scale += expert * ((one.N + kScaleBlock - 1) / kScaleBlock) * one.groups();
  return one;
}

FloatExperts::FloatExperts(const FloatBank& gate, const FloatBank& up, const FloatBank& down, size_t count, bool rounded)
    : gate_(gate), up_(up), down_(down), rounded_(rounded), products_(float_kernels()) {
  experts = count;
  hidden = down.first().K;
  model = down.first().N;
  hidden_step = kStep;
  model_step = kStep;
}

void FloatExperts::row_strides(Side side, size_t (&strides)[Rows::kPlanes]) const {
  const FloatMatrix& matrix = (side == into ? gate_ : down_).first();
  strides[0] = matrix.K * sizeof(float);
  strides[1] = rounded_ ? matrix.groups() * sizeof(float) : 0;
  strides[2] = 0;
}

void FloatExperts::prepare(Side side, const float* x, const Rows& rows, size_t row) const {
  const size_t depth = side == into ? model : hidden;
  if (rounded_) {
    products_.round_row(x, depth, rows.plane<float>(0, row), rows.plane<float>(1, row));
  } else {
    std::memcpy(rows.plane<float>(0, row), x, depth * sizeof(float));
  }
}

void FloatExperts::gated(size_t expert, size_t first, size_t count, const Rows& rows, size_t m, float* to,
                         size_t ldh) const {
  const size_t begin = first * kStep, end = std::min(begin + count * kStep, hidden);
  const size_t most = std::clamp(kGatedNumbers / m / kStep * kStep, kStep, count * kStep);
  const FloatMatrix gate = gate_.matrix(expert), up = up_.matrix(expert);
  const bool paired = up_.first().data == nullptr;
  Scratch scratch;
  float* gates = scratch.take<float>(m * most * 2);
  float* ups = gates + m * most;
  for (size_t column = begin; column < end; column += most) {
    const size_t columns = std::min(most, end - column);
    if (paired) {
      products_.product(gate, 2 * column, 2 * columns, seen(rows, m), gates, 2 * columns);
    } else {
      products_.product(gate, column, columns, seen(rows, m), gates, columns);
      products_.product(up, column, columns, seen(rows, m), ups, columns);
    }
    for (size_t row = 0; row < m; ++row) {
      float* hidden_row = to + row * ldh + (column - begin);
      if (paired) {
        kernels.swiglu_pairs(gates + row * 2 * columns, columns, hidden_row);
      } else {
        kernels.swiglu(gates + row * columns, ups + row * columns, columns, hidden_row);
      }
    }
  }
}

void FloatExperts::down(size_t expert, size_t first, size_t count, const Rows& rows, size_t m, float* y,
                        size_t ldy) const {
  const size_t begin = first * kStep, columns = std::min(count * kStep, model - begin);
  products_.product(down_.matrix(expert), begin, columns, seen(rows, m), y, ldy);
}

FloatRows FloatExperts::seen(const Rows& rows, size_t m) const {
  return {rows.plane<float>(0), rows.strides[0] / sizeof(float), m, rounded_ ? rows.plane<float>(1) : nullptr,
          rows.strides[1] / sizeof(float)};
}

}  // namespace dsv3
