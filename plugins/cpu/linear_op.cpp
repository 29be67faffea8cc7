// Linear: y = x @ weight.T, for weights in bfloat16, float16 or float32 that are read as they lie.
//
// A sum has 16 parts, the k-th product added by fmaf to part k mod 16 in ascending order; then the parts are added in
// pairs: i and i + 8, then i + 4, i + 2, i + 1. So a result depends on its own row of x and of the weight only.
#include <cmath>

#include "op.h"
#include "ops.h"
#include "widen.h"

namespace dsv3 {
namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t kRowsPerTask = 32;

float widen(float value, Element) { return value; }
float widen(uint16_t bits, Element element) { return element == Element::bf16 ? widen_bf16(bits) : widen_f16(bits); }

template <typename Weight>
float dot(const float* x, const Weight* weight, int64_t depth, Element element) {
  float parts[kLanes] = {};
  for (int64_t k = 0; k < depth; ++k) parts[k % kLanes] = std::fmaf(x[k], widen(weight[k], element), parts[k % kLanes]);
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t lane = 0; lane < half; ++lane) parts[lane] += parts[lane + half];
  }
  return parts[0];
}

struct Product {
  const float* x;
  int64_t rows, columns, depth;
  Element element;
  float* y;
};

template <typename Weight>
void multiply(const Product& product, const Weight* weight, const Parallel& parallel) {
  const auto& [x, rows, columns, depth, element, y] = product;
  const size_t tasks = static_cast<size_t>((columns + kRowsPerTask - 1) / kRowsPerTask);
  const auto task = [&, x = x, rows = rows, columns = columns, depth = depth, element = element, y = y](size_t index) {
    const int64_t first = static_cast<int64_t>(index) * kRowsPerTask;
    const int64_t last = first + kRowsPerTask < columns ? first + kRowsPerTask : columns;
    for (int64_t column = first; column < last; ++column) {
      for (int64_t row = 0; row < rows; ++row) {
        y[row * columns + column] = dot(x + row * depth, weight + column * depth, depth, element);
      }
    }
  };
  parallel.run(tasks, task);
}

struct Linear {
  static Schema schema() { return {"Linear", {{Element::f32}, {Element::any}}, {{Element::f32}}}; }

  explicit Linear(const NodeInfo&) {}

  void compute(Call& call) const {
    const Tensor x = call.input(0), weight = call.input(1);
    require(weight.shape.rank == 2, "weight: expected shape [N, K], got ", weight.shape.text());
    require(x.shape.rank >= 1 && x.shape.last() == weight.shape[1], "x: expected [..., ", weight.shape[1], "], got ",
            x.shape.text());
    Shape shape = x.shape;
    shape.dims[shape.rank - 1] = weight.shape[0];
    const Product product{x.f32(),        x.shape.rows(),           weight.shape[0], weight.shape[1],
                          weight.element, call.output_f32(0, shape)};
    if (weight.element == Element::f32) return multiply(product, weight.f32(), call.parallel());
    require(weight.element == Element::bf16 || weight.element == Element::f16,
            "weight: expected bfloat16, float16 or float32, got ", element_name(weight.element));
    multiply(product, static_cast<const uint16_t*>(weight.data), call.parallel());
  }
};

}  // namespace

const abi::CustomOp* linear_op() { return custom_op<Linear>(); }

}  // namespace dsv3
