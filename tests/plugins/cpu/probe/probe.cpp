// Ops and functions that say what the base of the kernels (plugins/cpu) sees; compiled by tests only.
#include <cstdlib>
#include <new>
#include <numeric>
#include <vector>

#include "arena.h"
#include "op.h"
#include "scratch.h"

namespace dsv3 {
namespace {

// Of each input: present, element type, rank, whether it is an initializer, sum of its bytes; and its address.
struct Probe {
  int64_t integer;
  float real;
  std::string text;
  size_t threads;
  std::vector<const void*> constants;

  static Schema schema() {
    const Parameter optional{Element::any, Presence::optional};
    return {"Probe", {{Element::f32}, optional, optional, optional}, {{Element::i64}, {Element::f32}}};
  }

  explicit Probe(const NodeInfo& node)
      : integer(node.integer("integer", 7)),
        real(node.real("real", 0.5f)),
        text(node.text("text", "nothing")),
        threads(node.threads()) {
    for (size_t input = 0; input < node.input_count(); ++input) {
      const std::optional<Tensor> constant = node.constant(input);
      constants.push_back(constant ? constant->data : nullptr);
    }
  }

  void compute(Call& call) const {
    auto* facts = static_cast<int64_t*>(call.output(0, {4, 6}));
    for (size_t input = 0; input < 4; ++input, facts += 6) describe(call, input, facts);
    float* attributes = call.output_f32(1, {4});
    attributes[0] = static_cast<float>(integer);
    attributes[1] = real;
    attributes[2] = static_cast<float>(text.size());
    attributes[3] = static_cast<float>(threads);
  }

  void describe(const Call& call, size_t input, int64_t* facts) const {
    std::fill_n(facts, 6, 0);
    if (!call.has(input)) return;
    const Tensor tensor = call.input(input);
    const auto* bytes = static_cast<const uint8_t*>(tensor.data);
    const bool wide = tensor.element == Element::f32 || tensor.element == Element::i32;
    const bool half = tensor.element == Element::bf16 || tensor.element == Element::f16;
    const int64_t size = tensor.shape.count() * (wide ? 4 : half ? 2 : 1);
    const void* constant = input < constants.size() ? constants[input] : nullptr;
    facts[0] = 1;
    facts[1] = static_cast<int64_t>(tensor.element);
    facts[2] = static_cast<int64_t>(tensor.shape.rank);
    facts[3] = constant == tensor.data;
    facts[4] = std::accumulate(bytes, bytes + size, int64_t{0});
    facts[5] = static_cast<int64_t>(reinterpret_cast<uintptr_t>(tensor.data));
  }
};

// How many inputs there are behind the first, of whatever types: y = x + that.
struct ProbeVariadic {
  static Schema schema() {
    return {"ProbeVariadic", {{Element::f32}, {Element::any, Presence::variadic}}, {{Element::f32}}};
  }
  explicit ProbeVariadic(const NodeInfo&) {}
  void compute(Call& call) const {
    const Tensor x = call.input(0);
    float* y = call.output_f32(0, x.shape);
    for (int64_t i = 0; i < x.shape.count(); ++i) y[i] = x.f32()[i] + static_cast<float>(call.input_count() - 1);
  }
};

// Fails where its attribute `where` says.
struct ProbeFailure {
  std::string where;
  static Schema schema() { return {"ProbeFailure", {{Element::f32}}, {{Element::f32}}}; }
  explicit ProbeFailure(const NodeInfo& node) : where(node.text("where", "")) {
    if (where == "creation") fail("refused while created, ", 42);
    if (where == "weight") node.weight(0, "x");
    if (where == "attribute") node.integer("absent");
  }
  void compute(Call& call) const {
    if (where == "memory") throw std::bad_alloc();
    if (where == "type") call.input(0).i64();
    if (where == "task") call.parallel().run(100, [](size_t index) { require(index != 57, "task ", index); });
    if (where == "nothing known") throw 5;
    call.output_f32(0, {0});
  }
};

// Sums the numbers below its attribute `count` in a loop, each task having scratch of its own inside the caller's.
struct ProbeLoop {
  int64_t count;
  static Schema schema() { return {"ProbeLoop", {{Element::f32}}, {{Element::f32}}}; }
  explicit ProbeLoop(const NodeInfo& node) : count(node.integer("count")) {}
  void compute(Call& call) const {
    Scratch scratch;
    auto* parts = scratch.take<double>(static_cast<size_t>(count));
    call.parallel().run(static_cast<size_t>(count), [parts](size_t index) {
      Scratch own;
      const size_t size = 1 + index * 37 % 5000;
      auto* filled = own.take<double>(size);
      std::fill_n(filled, size, static_cast<double>(index));
      parts[index] = filled[size - 1];
    });
    call.output_f32(0, {1})[0] = static_cast<float>(std::accumulate(parts, parts + count, 0.0));
  }
};

const abi::CustomOp* const kOps[] = {custom_op<Probe>(), custom_op<ProbeVariadic>(), custom_op<ProbeFailure>(),
                                     custom_op<ProbeLoop>()};

std::vector<std::shared_ptr<const std::vector<int>>> packed;
int times_packed = 0;

}  // namespace
}  // namespace dsv3

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->get_api(dsv3::abi::kVersion);
  return dsv3::guarded(api, "probe", [&] {
    static OrtCustomOpDomain* domain = nullptr;
    if (domain == nullptr) {
      dsv3::check(api, dsv3::abi::create_custom_op_domain(api, "probe", &domain));
      for (const auto* op : dsv3::kOps) dsv3::check(api, dsv3::abi::custom_op_domain_add(api, domain, op));
    }
    dsv3::check(api, dsv3::abi::add_custom_op_domain(api, options, domain));
  });
}

// Allocates and fills that many weights of so many bytes, at most 64; returns the first one's address.
EXPORTED uintptr_t probe_allocate(size_t count, size_t bytes) {
  static std::vector<std::shared_ptr<uint8_t>> kept;
  kept.clear();
  for (size_t index = 0; index < count; ++index) {
    kept.push_back(dsv3::allocate_weights(bytes));
    if (reinterpret_cast<uintptr_t>(kept.back().get()) % 64 != 0) return 1;
    dsv3::short_lived_threads(2).run(4, [&, bytes](size_t part) {
      std::fill_n(kept.back().get() + bytes / 4 * part, bytes / 4, static_cast<uint8_t>(index + 1));
    });
  }
  for (size_t index = 0; index < count; ++index) {
    if (kept[index].get()[bytes / 2] != index + 1) return 2;
  }
  return count == 0 ? 0 : reinterpret_cast<uintptr_t>(kept[0].get());
}

EXPORTED size_t probe_allocated() { return dsv3::allocated_weight_bytes(); }

// Asks for what is packed from `source` and keeps it; returns how often anything was packed.
EXPORTED int probe_pack(const void* source, const char* layout) {
  using dsv3::packed;
  packed.push_back(dsv3::shared_weights<std::vector<int>>(source, layout, [] {
    ++dsv3::times_packed;
    return std::make_shared<std::vector<int>>(3, 1);
  }));
  return dsv3::times_packed;
}

EXPORTED void probe_forget() { dsv3::packed.clear(); }

EXPORTED void probe_release(const void* start, size_t bytes) { dsv3::release_file_pages(start, bytes); }
