// Linear: y = x @ weight.T, for weights in bfloat16, float16 or float32 that are read as they lie.
#include "float_linear.h"
#include "op.h"
#include "ops.h"

namespace dsv3 {
namespace {

struct Linear {
  static Schema schema() { return {"Linear", {{Element::f32}, {Element::any}}, {{Element::f32}}}; }

  explicit Linear(const NodeInfo&) : kernels_(float_kernels()) {}

  void compute(Call& call) const {
    const Tensor weight = call.input(1);
    const Element element = weight.element;
    require(element == Element::f32 || element == Element::bf16 || element == Element::f16,
            "weight: expected bfloat16, float16 or float32, got ", element_name(element));
    run_linear(kernels_, matrix_of(weight, nullptr), false, call);
  }

 private:
  const FloatKernels& kernels_;
};

}  // namespace

const abi::CustomOp* linear_op() { return custom_op<Linear>(); }

}  // namespace dsv3
