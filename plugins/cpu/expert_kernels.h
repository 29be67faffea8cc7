// What the routed experts do besides products, for each instruction set; all give the same bits.
#pragma once

#include <cstddef>

namespace dsv3 {

struct ExpertKernels {
  // hidden[i] = silu(gate[i]) * up[i] for i < count.
  void (*swiglu)(const float* gate, const float* up, size_t count, float* hidden);
  // The same of rows side by side: gate[i] = pairs[2 * i], up[i] = pairs[2 * i + 1].
  void (*swiglu_pairs)(const float* pairs, size_t count, float* hidden);
  // y[i] = fmaf(weight, x[i], y[i]) for i < count.
  void (*add_weighted)(float weight, const float* x, size_t count, float* y);
};

extern const ExpertKernels experts_generic, experts_avx2, experts_avx512;

// Of the instruction set that runs here (isa.h).
const ExpertKernels& expert_kernels();

}  // namespace dsv3
