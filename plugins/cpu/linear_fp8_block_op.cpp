// LinearFp8Block: y = x @ (weight * scale).T, weights in float8 e4m3 with a scale for each block of 128 x 128, read as they
// lie. With activations "1x128" x is rounded to float8 first, in groups of 128.
#include <string>

#include "float_linear.h"
#include "op.h"
#include "ops.h"

namespace dsv3 {
namespace {

struct LinearFp8Block {
  static Schema schema() {
    return {"LinearFp8Block", {{Element::f32}, {Element::f8e4m3}, {Element::f32}}, {{Element::f32}}};
  }

  explicit LinearFp8Block(const NodeInfo& node) : kernels_(float_kernels()) {
    const std::string activations = node.text("activations", "none");
    require(activations == "none" || activations == "1x128", "activations: expected none or 1x128, got ", activations);
    rounded_ = activations == "1x128";
  }

  void compute(Call& call) const {
    const Tensor weight = call.input(1), scale = call.input(2);
    const FloatMatrix matrix = matrix_of(weight, scale.f32());
    const size_t row_blocks = (matrix.N + kScaleBlock - 1) / kScaleBlock;
    require_shape(scale, "scale", {static_cast<int64_t>(row_blocks), static_cast<int64_t>(matrix.groups())});
    run_linear(kernels_, matrix, rounded_, call);
  }

 private:
  const FloatKernels& kernels_;
  bool rounded_;
};

}  // namespace

const abi::CustomOp* linear_fp8_block_op() { return custom_op<LinearFp8Block>(); }

}  // namespace dsv3
