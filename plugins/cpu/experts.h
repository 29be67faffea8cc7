// The routed experts: y[t] = sum over j of weights[t, j] * down_e @ (silu(gate_e @ x[t]) * (up_e @ x[t])), e = ids[t, j].
//
// A token's choices are added by fmaf in the order of `ids`, starting at 0. With products that treat each row on its own,
// a token's result is the same bits in every batch, by any number of threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "expert_kernels.h"
#include "parallel.h"
#include "scratch.h"

namespace dsv3 {

// Rows as a product wants them, in up to three arrays: numbers, scales, sums.
struct Rows {
  static constexpr size_t kPlanes = 3;
  uint8_t* planes[kPlanes] = {};
  size_t strides[kPlanes] = {};  // bytes from row to row, 0 where there is no such array

  static Rows take(Scratch& scratch, const size_t (&strides)[kPlanes], size_t count);
  Rows from(size_t row) const;
  void copy(size_t row, const Rows& source, size_t source_row) const;
  template <typename T>
  T* plane(size_t index, size_t row = 0) const {
    return reinterpret_cast<T*>(planes[index] + row * strides[index]);
  }
};

// The weights of all experts and their products. Columns of a product come in steps: what a kernel gives at once.
class ExpertBank {
 public:
  enum Side { into, out };  // the product with gate and up; that with down

  virtual ~ExpertBank() = default;

  // Brings rows of float32 into the form that the products of a side take.
  virtual void row_strides(Side side, size_t (&strides)[Rows::kPlanes]) const = 0;
  virtual void prepare(Side side, const float* x, const Rows& rows, size_t row) const = 0;

  // hidden[m * ldh + c - first * hidden_step] = silu(gate @ row m) * (up @ row m) for the columns of steps
  // [first, first + count).
  virtual void gated(size_t expert, size_t first, size_t count, const Rows& rows, size_t m, float* hidden,
                     size_t ldh) const = 0;
  // y[m * ldy + c - first * model_step] = (down @ row m) likewise.
  virtual void down(size_t expert, size_t first, size_t count, const Rows& rows, size_t m, float* y,
                    size_t ldy) const = 0;

  size_t experts = 0, hidden = 0, model = 0;  // E, I, D
  size_t hidden_step = 0, model_step = 0;
  const ExpertKernels& kernels = expert_kernels();  // for one instruction set as long as the bank lives
  size_t hidden_steps() const { return (hidden + hidden_step - 1) / hidden_step; }
  size_t model_steps() const { return (model + model_step - 1) / model_step; }
};

// What goes through the experts.
struct ExpertCall {
  const float* x;        // [tokens, D]
  const int64_t* ids;    // [tokens, choices], each in [0, E)
  const float* weights;  // [tokens, choices]
  size_t tokens, choices;
  float* y;              // [tokens, D]
};

void run_experts(const ExpertBank& bank, const ExpertCall& call, const Parallel& parallel);

}  // namespace dsv3
