// The routed experts with 8- or 4-bit weights in groups along K.
#pragma once

#include <memory>

#include "experts.h"
#include "int_matmul.h"

namespace dsv3 {

// A bank as the engine stores it: for each expert rows of K, see RowSource. The strides from expert to expert are those
// of rows times their number.
struct IntBankSource {
  IntShape shape;    // of one expert's matrix
  RowSource rows;    // of expert 0
};

// All experts' matrices, packed one behind the other.
class PackedBank {
 public:
  PackedBank(const IntBankSource& source, size_t experts, const Parallel& parallel);
  IntMatrix matrix(size_t expert) const { return {shape_, data_.get() + expert * stride_}; }
  const IntShape& shape() const { return shape_; }

 private:
  IntShape shape_;
  size_t stride_;
  std::shared_ptr<uint8_t> data_;
};

// `rounded`: activations are rounded to int8 in the weights' groups before each product.
class IntExperts : public ExpertBank {
 public:
  // `gate_up` has 2 * I rows, gate and up of a hidden column side by side.
  IntExperts(std::shared_ptr<const PackedBank> gate_up, std::shared_ptr<const PackedBank> down, size_t experts,
             bool rounded);

  void row_strides(Side side, size_t (&strides)[Rows::kPlanes]) const override;
  void prepare(Side side, const float* x, const Rows& rows, size_t row) const override;
  void gated(size_t expert, size_t first, size_t count, const Rows& rows, size_t m, float* hidden,
             size_t ldh) const override;
  void down(size_t expert, size_t first, size_t count, const Rows& rows, size_t m, float* y,
            size_t ldy) const override;

 private:
  const IntShape& shape(Side side) const { return (side == into ? gate_up_ : down_)->shape(); }
  void multiply(const IntMatrix& matrix, size_t first, size_t count, const Rows& rows, size_t m, float* y,
                size_t ldy) const;

  std::shared_ptr<const PackedBank> gate_up_, down_;
  bool rounded_;
  const IntKernels& products_;
};

}  // namespace dsv3
