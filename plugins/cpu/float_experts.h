// The routed experts with weights in floating point, read as they lie.
#pragma once

#include "experts.h"
#include "float_matmul.h"

namespace dsv3 {

// A bank [E, N, K]: the matrix of expert 0; the others follow it.
class FloatBank {
 public:
  FloatBank() = default;
  explicit FloatBank(const FloatMatrix& first) : first_(first) {}
  FloatMatrix matrix(size_t expert) const;
  const FloatMatrix& first() const { return first_; }

 private:
  FloatMatrix first_{};
};

class FloatExperts : public ExpertBank {
 public:
  // `up` has no data where `gate` has 2 * I rows, gate and up of a hidden column side by side. `rounded`: activations are
  // rounded to float8 before each product.
  FloatExperts(const FloatBank& gate, const FloatBank& up, const FloatBank& down, size_t experts, bool rounded);

  void row_strides(Side side, size_t (&strides)[Rows::kPlanes]) const override;
  void prepare(Side side, const float* x, const Rows& rows, size_t row) const override;
  void gated(size_t expert, size_t first, size_t count, const Rows& rows, size_t m, float* hidden,
             size_t ldh) const override;
  void down(size_t expert, size_t first, size_t count, const Rows& rows, size_t m, float* y,
            size_t ldy) const override;

 private:
  FloatRows seen(const Rows& rows, size_t m) const;

  FloatBank gate_, up_, down_;
  bool rounded_;
  const FloatKernels& products_;
};

}  // namespace dsv3
