#include "experts.h"

#include <algorithm>
#include <cstring>

#include "expert_slots.h"

namespace dsv3 {
namespace {

// Intermediate values of the tokens that go through together take at most this; a long prompt goes in parts.
constexpr size_t kMostScratch = size_t{128} << 20;
// Rows that are gathered for a product at a time stay in the second-level cache beside some panels; full tiles of them.
constexpr size_t kRowBytes = size_t{1} << 20;
constexpr size_t kTileRows = 16;
// Numbers of which the preparation is not worth waking other threads.
constexpr size_t kFewNumbers = size_t{16} << 10;
constexpr size_t kTasksPerThread = 6;
// Results of a task before they are added: they stay in the second-level cache. But few columns are no whole task.
constexpr size_t kEachBytes = size_t{2} << 20;
constexpr size_t kLeastColumns = 64;

size_t ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }

// Loops over [0, count) in ranges, on one thread where there is little to do.
template <typename Body>
void for_rows(const Parallel& parallel, size_t count, size_t numbers_per_row, const Body& body) {
  if (count * numbers_per_row <= kFewNumbers || parallel.threads == 1) {
    for (size_t row = 0; row < count; ++row) body(row);
    return;
  }
  const size_t step = std::max(ceil_div(count, parallel.threads * kTasksPerThread), size_t{1});
  parallel.run(ceil_div(count, step), [&](size_t task) {
    for (size_t row = task * step; row < std::min(count, (task + 1) * step); ++row) body(row);
  });
}

// A part of an expert's hidden columns.
struct Task {
  size_t group, first, count;
};

class Part {
 public:
  Part(const ExpertBank& bank, const ExpertCall& call, const Parallel& parallel)
      : bank_(bank),
        call_(call),
        parallel_(parallel),
        slots_(call.tokens * call.choices),
        sorted_(sort_slots(call.ids, slots_, bank.experts, scratch_)) {}

  void run() {
    prepare_tokens();
    multiply_gated();
    prepare_hidden();
    multiply_down();
  }

 private:
  Rows take(ExpertBank::Side side, size_t count, Scratch& scratch) const {
    size_t strides[Rows::kPlanes] = {};
    bank_.row_strides(side, strides);
    return Rows::take(scratch, strides, count);
  }

  void prepare_tokens() {
    tokens_ = take(ExpertBank::into, call_.tokens, scratch_);
    for_rows(parallel_, call_.tokens, bank_.model,
             [&](size_t token) { bank_.prepare(ExpertBank::into, call_.x + token * bank_.model, tokens_, token); });
  }

  void multiply_gated() {
    hidden_ = scratch_.take<float>(slots_ * bank_.hidden);
    const size_t most = 2 * sorted_.group_count + parallel_.threads * kTasksPerThread * 2;
    Task* tasks = scratch_.take<Task>(most);
    const size_t count = share_out(tasks);
    parallel_.run(count, [&](size_t index) { gated_task(tasks[index]); });
  }

  // Splits experts so that tasks cost about the same: to read a column's weights costs as much as some 16 rows' products
  // with it.
  size_t share_out(Task* tasks) const {
    constexpr size_t kReading = 16;
    const size_t steps = bank_.hidden_steps();
    const size_t all = (sorted_.group_count * kReading + slots_) * steps;
    const size_t target = std::max(all / (parallel_.threads * kTasksPerThread), size_t{1});
    size_t made = 0;
    for (size_t group = 0; group < sorted_.group_count; ++group) {
      const size_t cost = (kReading + sorted_.groups[group].count) * steps;
      const size_t parts = std::clamp((cost + target / 2) / target, size_t{1}, steps);
      const size_t step = ceil_div(steps, parts);
      for (size_t first = 0; first < steps; first += step) tasks[made++] = {group, first, std::min(step, steps - first)};
    }
    return made;
  }

  void gated_task(const Task& task) const {
    const ExpertSlots::Group& group = sorted_.groups[task.group];
    const size_t most = std::max(kRowBytes / tokens_.strides[0] / kTileRows, size_t{1}) * kTileRows;
    Scratch scratch;
    const Rows gathered = group.count > 1 ? take(ExpertBank::into, std::min(most, group.count), scratch) : Rows{};
    for (size_t row = 0; row < group.count; row += most) {
      const size_t rows = std::min(most, group.count - row), place = group.first + row;
      for (size_t i = 0; i < rows && group.count > 1; ++i) gathered.copy(i, tokens_, token_at(place + i));
      bank_.gated(group.expert, task.first, task.count, group.count > 1 ? gathered : tokens_.from(token_at(place)), rows,
                  hidden_ + place * bank_.hidden + task.first * bank_.hidden_step, bank_.hidden);
    }
  }

  size_t token_at(size_t place) const { return sorted_.slot_at[place] / call_.choices; }

  void prepare_hidden() {
    places_ = take(ExpertBank::out, slots_, scratch_);
    for_rows(parallel_, slots_, bank_.hidden,
             [&](size_t place) { bank_.prepare(ExpertBank::out, hidden_ + place * bank_.hidden, places_, place); });
  }

  // Each task takes some columns of all experts, so that it can add a token's choices itself, in their order.
  void multiply_down() const {
    const size_t steps = bank_.model_steps();
    const size_t columns = std::max(kEachBytes / sizeof(float) / slots_, kLeastColumns);
    const size_t most = ceil_div(columns, bank_.model_step);
    const size_t step = std::min(ceil_div(steps, parallel_.threads * kTasksPerThread), most);
    parallel_.run(ceil_div(steps, step), [&](size_t task) { down_task(task * step, std::min(step, steps - task * step)); });
  }

  void down_task(size_t first, size_t count) const {
    const size_t begin = first * bank_.model_step, columns = std::min(count * bank_.model_step, bank_.model - begin);
    Scratch scratch;
    float* each = scratch.take<float>(slots_ * columns);
    for (size_t index = 0; index < sorted_.group_count; ++index) {
      const ExpertSlots::Group& group = sorted_.groups[index];
      bank_.down(group.expert, first, count, places_.from(group.first), group.count, each + group.first * columns, columns);
    }
    for (size_t token = 0; token < call_.tokens; ++token) {
      float* y = call_.y + token * bank_.model + begin;
      std::fill_n(y, columns, 0.0f);
      for (size_t slot = token * call_.choices; slot < (token + 1) * call_.choices; ++slot) {
        bank_.kernels.add_weighted(call_.weights[slot], each + sorted_.place_of[slot] * columns, columns, y);
      }
    }
  }

  const ExpertBank& bank_;
  const ExpertCall& call_;
  const Parallel& parallel_;
  Scratch scratch_;
  size_t slots_;
  ExpertSlots sorted_;
  Rows tokens_, places_;
  float* hidden_ = nullptr;
};

size_t bytes_per_token(const ExpertBank& bank, size_t choices) {
  size_t in[Rows::kPlanes] = {}, out[Rows::kPlanes] = {};
  bank.row_strides(ExpertBank::into, in);
  bank.row_strides(ExpertBank::out, out);
  size_t token = 0, slot = bank.hidden * sizeof(float);
  for (size_t plane = 0; plane < Rows::kPlanes; ++plane) token += in[plane], slot += out[plane];
  return token + choices * slot;
}

}  // namespace

Rows Rows::take(Scratch& scratch, const size_t (&strides)[kPlanes], size_t count) {
  Rows rows;
  for (size_t plane = 0; plane < kPlanes; ++plane) {
    rows.strides[plane] = strides[plane];
    // a kernel may read a vector beyond the last row
    if (strides[plane] > 0) rows.planes[plane] = scratch.take<uint8_t>(count * strides[plane] + 128);
  }
  return rows;
}

Rows Rows::from(size_t row) const {
  Rows rows = *this;
  for (size_t plane = 0; plane < kPlanes; ++plane) rows.planes[plane] += row * strides[plane];
  return rows;
}

void Rows::copy(size_t row, const Rows& source, size_t source_row) const {
  for (size_t plane = 0; plane < kPlanes; ++plane) {
    if (strides[plane] == 0) continue;
    std::memcpy(planes[plane] + row * strides[plane], source.planes[plane] + source_row * strides[plane], strides[plane]);
  }
}

void run_experts(const ExpertBank& bank, const ExpertCall& call, const Parallel& parallel) {
  if (call.tokens == 0) return;
  const size_t parts = ceil_div(call.tokens * bytes_per_token(bank, call.choices), kMostScratch);
  const size_t step = ceil_div(call.tokens, std::max(parts, size_t{1}));
  for (size_t first = 0; first < call.tokens; first += step) {
    ExpertCall part = call;
    part.x += first * bank.model;
    part.ids += first * call.choices;
    part.weights += first * call.choices;
    part.tokens = std::min(step, call.tokens - first);
    part.y += first * bank.model;
    Part(bank, part, parallel).run();
  }
}

}  // namespace dsv3
