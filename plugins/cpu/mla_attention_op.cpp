// MlaAttention: multi-head latent attention over a cache of latents, which is read as it lies.
#include <string>

#include "attention.h"
#include "op.h"
#include "ops.h"

namespace dsv3 {
namespace {

// Before the weights.
constexpr size_t kInputs = 4;
// "1": a token's result does not depend on how many tokens its step has, for which both forms may not be mixed.
constexpr const char* kInvariantEntry = "dsv3.cpu.invariant";

HeadSizes sizes_of(const NodeInfo& node) {
  const auto size = [&](const char* name) {
    const int64_t value = node.integer(name);
    require(value > 0, name, ": expected a positive number, got ", value);
    return static_cast<size_t>(value);
  };
  return {size("H"), size("Dn"), size("Dr"), size("Dc"), size("Dv")};
}

// kv_b's input, the latents, is rounded where its weight is float8 and its activations are "1x128".
size_t rounded_of(const NodeInfo& node, const HeadSizes& sizes) {
  if (node.text("weights", "") != "fp8") return 0;
  const std::string activations = node.text("activations", "none");
  require(activations == "none" || activations == "1x128", "activations: expected none or 1x128, got ", activations);
  return activations == "1x128" ? sizes.latent : 0;
}

struct MlaAttention {
  static Schema schema() {
    return {"MlaAttention",
            {{Element::f32}, {Element::f32}, {Element::any}, {Element::i64}, {Element::any, Presence::variadic}},
            {{Element::f32}}};
  }

  explicit MlaAttention(const NodeInfo& node)
      : sizes_(sizes_of(node)),
        scale_(node.real("scale")),
        invariant_(node.config(kInvariantEntry, "0") == "1"),
        rounded_(rounded_of(node, sizes_)),
        up_(up_projections(node, kInputs, sizes_)) {}

  void compute(Call& call) const {
    const Tensor q_nope = call.input(0), q_pe = call.input(1), cache = call.input(2), start = call.input(3);
    const auto H = static_cast<int64_t>(sizes_.heads), width = static_cast<int64_t>(sizes_.latent + sizes_.rope);
    require(q_nope.shape.rank == 4, "q_nope: expected [B, S, H, Dn], got ", q_nope.shape.text());
    const int64_t batch = q_nope.shape[0], tokens = q_nope.shape[1];
    require_shape(q_nope, "q_nope", {batch, tokens, H, static_cast<int64_t>(sizes_.nope)});
    require_shape(q_pe, "q_pe", {batch, tokens, H, static_cast<int64_t>(sizes_.rope)});
    require_shape(cache, "cache", {batch, -1, width});
    require_shape(start, "start", {batch});
    float* out = call.output_f32(0, {batch, tokens, H * static_cast<int64_t>(sizes_.value)});
    if (batch == 0 || tokens == 0) return;
    const Step step{q_nope.f32(), q_pe.f32(), cache, rounded_, start.i64(), static_cast<size_t>(tokens), scale_, out};
    for (int64_t slot = 0; slot < batch; ++slot) {
      require(step.start[slot] >= 0 && step.start[slot] + tokens <= cache.shape[1], "start: expected at most ",
              cache.shape[1] - tokens, " for ", tokens, " tokens in a cache of ", cache.shape[1], ", got ",
              step.start[slot]);
    }
    const auto decompressed = [&](size_t slot) {
      return !invariant_ && decompressing_pays(sizes_, step.tokens, static_cast<size_t>(step.start[slot]) + step.tokens);
    };
    // neighbours of one form together: they share the reading of the weights
    const auto slots = static_cast<size_t>(batch);
    for (size_t first = 0, end = 0; first < slots; first = end) {
      for (end = first + 1; end < slots && decompressed(end) == decompressed(first);) ++end;
      (decompressed(first) ? attend_decompressed : attend_absorbed)(call.parallel(), *up_, sizes_, step, first,
                                                                    end - first);
    }
  }

 private:
  HeadSizes sizes_;
  float scale_;
  bool invariant_;
  size_t rounded_;
  std::unique_ptr<UpProjections> up_;
};

}  // namespace

const abi::CustomOp* mla_attention_op() { return custom_op<MlaAttention>(); }

}  // namespace dsv3
