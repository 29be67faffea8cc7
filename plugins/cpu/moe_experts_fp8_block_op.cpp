// MoEExpertsFp8Block: the routed experts in float8 e4m3 with a scale for each block of 128 x 128.
#include <string>

#include "float_experts.h"
#include "moe_call.h"
#include "op.h"
#include "ops.h"

namespace dsv3 {
namespace {

int64_t blocks(int64_t size) {
  constexpr auto block = static_cast<int64_t>(kScaleBlock);
  return (size + block - 1) / block;
}

FloatBank bank_of(const NodeInfo& node, size_t input, const std::string& name, const Shape& expected) {
  const Tensor bank = node.weight(input, name.c_str()), scale = node.weight(input + 1, (name + "_scale").c_str());
  require_shape(bank, name.c_str(), expected);
  require_shape(scale, (name + "_scale").c_str(), {expected[0], blocks(expected[1]), blocks(expected[2])});
  require(bank.element == Element::f8e4m3, name, ": expected float8e4m3fn, got ", element_name(bank.element));
  return FloatBank({bank.element, static_cast<size_t>(expected[1]), static_cast<size_t>(expected[2]), bank.data,
                    scale.f32()});
}

struct MoEExpertsFp8Block {
  static Schema schema() {
    const Parameter weight{Element::f8e4m3}, f32{Element::f32};
    return {"MoEExpertsFp8Block", {f32, {Element::i64}, f32, weight, f32, weight, f32, weight, f32}, {f32}};
  }

  explicit MoEExpertsFp8Block(const NodeInfo& node) : bank_(experts_of(node)) {}

  void compute(Call& call) const { run_experts_op(bank_, call); }

 private:
  static FloatExperts experts_of(const NodeInfo& node) {
    const std::string activations = node.text("activations", "none");
    require(activations == "none" || activations == "1x128", "activations: expected none or 1x128, got ", activations);
    const Tensor down = node.weight(7, "down");
    require(down.shape.rank == 3, "down: expected shape [E, D, I], got ", down.shape.text());
    const int64_t experts = down.shape[0], model = down.shape[1], hidden = down.shape[2];
    return {bank_of(node, 3, "gate", {experts, hidden, model}), bank_of(node, 5, "up", {experts, hidden, model}),
            bank_of(node, 7, "down", {experts, model, hidden}), static_cast<size_t>(experts), activations == "1x128"};
  }

  FloatExperts bank_;
};

}  // namespace

const abi::CustomOp* moe_experts_fp8_block_op() { return custom_op<MoEExpertsFp8Block>(); }

}  // namespace dsv3
