// MoERoute: group-limited top-k routing, as plugins/moe_route defines it. A token's choice depends on its own logits alone:
// sums are in a fixed order, and of equal scores the lower expert wins.
#include <algorithm>
#include <string>

#include "exponential.h"
#include "op.h"
#include "ops.h"
#include "scratch.h"

namespace dsv3 {
namespace {

constexpr size_t kTokensOfTask = 8;

struct Routing {
  size_t chosen, groups, kept_groups, group_top;
  bool sigmoid, normalize;
  float scaling;
};

// Marks the largest number that is not taken, and returns its place; of equal ones the first. One must be left.
size_t take_largest(const float* values, size_t count, bool* taken) {
  size_t best = 0;
  while (taken[best]) ++best;
  for (size_t place = best + 1; place < count; ++place) {
    if (!taken[place] && values[place] > values[best]) best = place;
  }
  taken[best] = true;
  return best;
}

void sigmoids(const float* logits, size_t count, float* scores) {
  for (size_t e = 0; e < count; ++e) {
    const Lanes power = exponential(Lanes::all(-logits[e]));
    (Lanes::all(1.0f) / (Lanes::all(1.0f) + power)).store(scores + e);
  }
}

void softmax(const float* logits, size_t count, float* scores) {
  const float top = *std::max_element(logits, logits + count);
  float sum = 0;
  for (size_t e = 0; e < count; ++e) {
    exponential(Lanes::all(logits[e] - top)).store(scores + e);
    sum += scores[e];
  }
  for (size_t e = 0; e < count; ++e) scores[e] /= sum;
}

// Takes all experts but those of the best groups; a group's score is the sum of its best experts', the best first.
void take_other_groups(const Routing& routing, const float* choice, size_t experts, bool* taken, Scratch& scratch) {
  const size_t width = experts / routing.groups;
  float* scores = scratch.take<float>(routing.groups);
  bool* kept = scratch.take<bool>(routing.groups);
  for (size_t group = 0; group < routing.groups; ++group) {
    bool* marks = taken + group * width;
    scores[group] = 0;
    for (size_t i = 0; i < routing.group_top; ++i) {
      scores[group] += choice[group * width + take_largest(choice + group * width, width, marks)];
    }
  }
  std::fill(taken, taken + experts, true);
  std::fill(kept, kept + routing.groups, false);
  for (size_t i = 0; i < routing.kept_groups; ++i) {
    const size_t group = take_largest(scores, routing.groups, kept);
    std::fill(taken + group * width, taken + (group + 1) * width, false);
  }
}

void route(const Routing& routing, const float* logits, const float* bias, size_t experts, int64_t* ids, float* weights) {
  Scratch scratch;
  float* scores = scratch.take<float>(experts);
  float* choice = scratch.take<float>(experts);
  bool* taken = scratch.take<bool>(experts);
  (routing.sigmoid ? sigmoids : softmax)(logits, experts, scores);
  for (size_t e = 0; e < experts; ++e) choice[e] = scores[e] + bias[e];
  std::fill(taken, taken + experts, false);
  if (routing.groups > 1) take_other_groups(routing, choice, experts, taken, scratch);
  float total = 0;
  for (size_t i = 0; i < routing.chosen; ++i) {
    const size_t expert = take_largest(choice, experts, taken);
    ids[i] = static_cast<int64_t>(expert);
    weights[i] = scores[expert];
    total += weights[i];
  }
  for (size_t i = 0; i < routing.chosen; ++i) {
    if (routing.normalize) weights[i] /= total + 1e-20f;
    weights[i] *= routing.scaling;
  }
}

size_t positive(const NodeInfo& node, const char* attribute) {
  const int64_t value = node.integer(attribute);
  require(value > 0, attribute, ": expected a positive number, got ", value);
  return static_cast<size_t>(value);
}

struct MoERoute {
  static Schema schema() {
    return {"MoERoute", {{Element::f32}, {Element::f32}}, {{Element::i64}, {Element::f32}}};
  }

  explicit MoERoute(const NodeInfo& node)
      : routing_{positive(node, "k"),         positive(node, "n_group"), positive(node, "topk_group"),
                 positive(node, "group_top"), false,                     node.integer("normalize") != 0,
                 node.real("scaling")} {
    const std::string scoring = node.text("scoring", "sigmoid");
    require(scoring == "sigmoid" || scoring == "softmax", "scoring: expected sigmoid or softmax, got ", scoring);
    routing_.sigmoid = scoring == "sigmoid";
  }

  void compute(Call& call) const {
    const Tensor logits = call.input(0), bias = call.input(1);
    require(logits.shape.rank == 2, "logits: expected [T, E], got ", logits.shape.text());
    require_shape(bias, "bias", {logits.shape[1]});
    const auto tokens = static_cast<size_t>(logits.shape[0]), experts = static_cast<size_t>(logits.shape[1]);
    check(experts);
    const Shape shape{logits.shape[0], static_cast<int64_t>(routing_.chosen)};
    auto* ids = static_cast<int64_t*>(call.output(0, shape));
    float* weights = call.output_f32(1, shape);
    call.parallel().run((tokens + kTokensOfTask - 1) / kTokensOfTask, [&](size_t task) {
      const size_t end = std::min(tokens, (task + 1) * kTokensOfTask);
      for (size_t token = task * kTokensOfTask; token < end; ++token) {
        const size_t row = token * routing_.chosen;
        route(routing_, logits.f32() + token * experts, bias.f32(), experts, ids + row, weights + row);
      }
    });
  }

 private:
  void check(size_t experts) const {
    const auto& [chosen, groups, kept, top, sigmoid, normalize, scaling] = routing_;
    require(experts % groups == 0 && kept <= groups, "n_group, topk_group: expected parts of ", experts, " experts, got ",
            groups, " and ", kept);
    const size_t width = experts / groups, eligible = groups > 1 ? kept * width : experts;
    require(chosen <= eligible && top <= width, "k, group_top: expected at most ", eligible, " eligible experts and ",
            width, " of a group, got ", chosen, " and ", top);
  }

  Routing routing_;
};

}  // namespace

const abi::CustomOp* moe_route_op() { return custom_op<MoERoute>(); }

}  // namespace dsv3
