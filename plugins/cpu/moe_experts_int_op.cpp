// MoEExpertsInt: the routed experts with 8- or 4-bit weights, as com.microsoft.QMoE gets them.
#include <string>

#include "arena.h"
#include "int_experts.h"
#include "moe_call.h"
#include "op.h"
#include "ops.h"

namespace dsv3 {
namespace {

struct Bank {
  const char* name;
  size_t numbers, scales, zeros;  // the inputs
};

constexpr Bank kGateUp{"gate_up", 3, 4, 7};
constexpr Bank kDown{"down", 5, 6, 8};

std::string name_of(const Bank& bank, const char* part) { return std::string(bank.name) + part; }

size_t positive(const NodeInfo& node, const char* attribute) {
  const int64_t value = node.integer(attribute);
  require(value > 0, attribute, ": expected a positive number, got ", value);
  return static_cast<size_t>(value);
}

// Of a bank's scales [E, N, G], an expert at a time, so that few pages of the file are in memory.
bool all_narrow(const Tensor& scales) {
  const auto count = static_cast<size_t>(scales.shape[1] * scales.shape[2]);
  bool narrow = true;
  for (int64_t expert = 0; narrow && expert < scales.shape[0]; ++expert) {
    const float* of_expert = scales.f32() + static_cast<size_t>(expert) * count;
    narrow = are_narrow(of_expert, count);
    release_file_pages(of_expert, count * sizeof(float));
  }
  return narrow;
}

// The inputs of a bank with N rows of K numbers.
IntBankSource source_of(const NodeInfo& node, const Bank& bank, size_t N, size_t K, int64_t& experts) {
  const Tensor numbers = node.weight(bank.numbers, bank.name);
  require(numbers.shape.rank == 3, bank.name, ": expected shape [E, N, bytes], got ", numbers.shape.text());
  if (experts < 0) experts = numbers.shape[0];
  IntBankSource source{};
  source.shape = {static_cast<int>(node.integer("bits")), positive(node, "group"), N, K, false};
  const auto groups = static_cast<int64_t>(source.shape.groups()), rows = static_cast<int64_t>(N);
  const int64_t bits = source.shape.bits;
  require(bits == 8 || bits == 4, "bits: expected 8 or 4, got ", bits);
  require(bits == 8 || source.shape.group % 2 == 0, "group: expected an even number for 4 bits, got ", source.shape.group);
  const int64_t row_bytes = groups * static_cast<int64_t>(source.shape.group) * bits / 8;
  require_shape(numbers, bank.name, {experts, rows, row_bytes});
  const Tensor scales = node.weight(bank.scales, name_of(bank, "_scale").c_str());
  require_shape(scales, name_of(bank, "_scale").c_str(), {experts, rows, groups});
  source.rows = {numbers.u8(), static_cast<size_t>(row_bytes), scales.f32(), source.shape.groups(), nullptr, 0};
  source.shape.narrow_scales = all_narrow(scales);
  if (const auto zeros = node.constant(bank.zeros)) {
    const int64_t zero_bytes = (groups * bits + 7) / 8;
    require_shape(*zeros, name_of(bank, "_zero").c_str(), {experts, rows, zero_bytes});
    source.rows.zero = zeros->u8();
    source.rows.zero_stride = static_cast<size_t>(zero_bytes);
    source.shape.zero_points = true;
  }
  return source;
}

std::shared_ptr<const PackedBank> packed(const IntBankSource& source, size_t experts, const NodeInfo& node) {
  const IntShape& shape = source.shape;
  const std::string layout = "experts int" + std::to_string(shape.bits) + " group " + std::to_string(shape.group) + " " +
                             std::to_string(experts) + "x" + std::to_string(shape.N) + "x" + std::to_string(shape.K) +
                             (shape.zero_points ? " zero points" : "") +
                             (shape.narrow_scales ? " narrow scales" : "");
  return shared_weights<PackedBank>(source.rows.weight, layout, [&] {
    return std::make_shared<PackedBank>(source, experts, short_lived_threads(node.threads()));
  });
}

struct MoEExpertsInt {
  static Schema schema() {
    return {"MoEExpertsInt",
            {{Element::f32},
             {Element::i64},
             {Element::f32},
             {Element::u8},
             {Element::f32},
             {Element::u8},
             {Element::f32},
             {Element::u8, Presence::optional},
             {Element::u8, Presence::optional}},
            {{Element::f32}}};
  }

  explicit MoEExpertsInt(const NodeInfo& node) : bank_(bank_of(node)) {}

  void compute(Call& call) const { run_experts_op(bank_, call); }

 private:
  static IntExperts bank_of(const NodeInfo& node) {
    const size_t model = positive(node, "K"), hidden = positive(node, "I");
    const std::string activations = node.text("activations", "none");
    require(activations == "int8" || activations == "none", "activations: expected int8 or none, got ", activations);
    int64_t experts = -1;
    const IntBankSource gate_up = source_of(node, kGateUp, 2 * hidden, model, experts);
    const IntBankSource down = source_of(node, kDown, model, hidden, experts);
    const auto count = static_cast<size_t>(experts);
    return {packed(gate_up, count, node), packed(down, count, node), count, activations == "int8"};
  }

  IntExperts bank_;
};

}  // namespace

const abi::CustomOp* moe_experts_int_op() { return custom_op<MoEExpertsInt>(); }

}  // namespace dsv3
