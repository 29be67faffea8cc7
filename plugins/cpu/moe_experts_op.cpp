// MoEExperts: the routed experts in float32, gate and up side by side in one bank, or in bfloat16 or float16, gate, up and
// down on their own.
#include "float_experts.h"
#include "moe_call.h"
#include "op.h"
#include "ops.h"

namespace dsv3 {
namespace {

FloatBank bank_of(const NodeInfo& node, size_t input, const char* name, const Shape& expected) {
  const Tensor bank = node.weight(input, name);
  require_shape(bank, name, expected);
  return FloatBank({bank.element, static_cast<size_t>(bank.shape[1]), static_cast<size_t>(bank.shape[2]), bank.data,
                    nullptr});
}

struct MoEExperts {
  static Schema schema() {
    return {"MoEExperts",
            {{Element::f32},
             {Element::i64},
             {Element::f32},
             {Element::any},
             {Element::any},
             {Element::any, Presence::optional}},
            {{Element::f32}}};
  }

  explicit MoEExperts(const NodeInfo& node) : bank_(experts_of(node)) {}

  void compute(Call& call) const { run_experts_op(bank_, call); }

 private:
  static FloatExperts experts_of(const NodeInfo& node) {
    const bool apart = node.constant(5).has_value();
    const Tensor gate = node.weight(3, apart ? "gate" : "gate_up"), down = node.weight(apart ? 5 : 4, "down");
    for (const Tensor& bank : {gate, down}) {
      require(bank.element == gate.element && (gate.element == Element::f32 || gate.element == Element::bf16 ||
                                               gate.element == Element::f16),
              "gate, up and down: expected float32, bfloat16 or float16, got ", element_name(gate.element), " and ",
              element_name(bank.element));
      require(bank.shape.rank == 3, "gate, up and down: expected rank 3, got shape ", bank.shape.text());
    }
    const int64_t experts = down.shape[0], model = down.shape[1], hidden = down.shape[2];
    const FloatBank into = bank_of(node, 3, apart ? "gate" : "gate_up", {experts, apart ? hidden : 2 * hidden, model});
    const FloatBank up = apart ? bank_of(node, 4, "up", {experts, hidden, model}) : FloatBank();
    require(!apart || up.first().element == gate.element, "up: expected ", element_name(gate.element), ", got ",
            element_name(up.first().element));
    const FloatBank out = bank_of(node, apart ? 5 : 4, "down", {experts, model, hidden});
    return {into, up, out, static_cast<size_t>(experts), false};
  }

  FloatExperts bank_;
};

}  // namespace

const abi::CustomOp* moe_experts_op() { return custom_op<MoEExperts>(); }

}  // namespace dsv3
