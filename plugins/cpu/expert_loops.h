// The loops of ExpertKernels in Lanes, for the files of each instruction set.
#pragma once

#include "expert_kernels.h"
#include "exponential.h"

namespace dsv3 {
namespace {

// A vector's worth at the end of a row, filled up.
struct Tail {
  float numbers[2 * Lanes::kWidth] = {};

  Tail(const float* from, size_t count) {
    for (size_t i = 0; i < count; ++i) numbers[i] = from[i];
  }
};

inline void store_some(Lanes value, size_t count, float* to) {
  float all[Lanes::kWidth];
  value.store(all);
  for (size_t i = 0; i < count; ++i) to[i] = all[i];
}

void swiglu(const float* gate, const float* up, size_t count, float* hidden) {
  size_t i = 0;
  for (; i + Lanes::kWidth <= count; i += Lanes::kWidth) {
    (silu(Lanes::load(gate + i)) * Lanes::load(up + i)).store(hidden + i);
  }
  if (i == count) return;
  const Tail gates(gate + i, count - i), ups(up + i, count - i);
  store_some(silu(Lanes::load(gates.numbers)) * Lanes::load(ups.numbers), count - i, hidden + i);
}

void swiglu_pairs(const float* pairs, size_t count, float* hidden) {
  size_t i = 0;
  Lanes gate, up;
  for (; i + Lanes::kWidth <= count; i += Lanes::kWidth) {
    load_pairs(pairs + 2 * i, gate, up);
    (silu(gate) * up).store(hidden + i);
  }
  if (i == count) return;
  load_pairs(Tail(pairs + 2 * i, 2 * (count - i)).numbers, gate, up);
  store_some(silu(gate) * up, count - i, hidden + i);
}

void add_weighted(float weight, const float* x, size_t count, float* y) {
  const Lanes all = Lanes::all(weight);
  size_t i = 0;
  for (; i + Lanes::kWidth <= count; i += Lanes::kWidth) fma(all, Lanes::load(x + i), Lanes::load(y + i)).store(y + i);
  if (i == count) return;
  const Tail xs(x + i, count - i), ys(y + i, count - i);
  store_some(fma(all, Lanes::load(xs.numbers), Lanes::load(ys.numbers)), count - i, y + i);
}

}  // namespace
}  // namespace dsv3
