// Up-projections in float32, and in formats that are widened head by head in each step.
#include <algorithm>

#include "up_projections.h"
#include "widen.h"

namespace dsv3 {
namespace {

// to[n][m] = from[m][n].
void transpose(const float* from, size_t rows, size_t columns, float* to) {
  constexpr size_t kTile = 16;
  for (size_t first = 0; first < columns; first += kTile) {
    const size_t last = std::min(columns, first + kTile);
    for (size_t m = 0; m < rows; ++m) {
      for (size_t n = first; n < last; ++n) to[n * rows + m] = from[m * columns + n];
    }
  }
}

class FloatUpProjections : public UpProjections {
 public:
  FloatUpProjections(const NodeInfo& node, size_t first, const HeadSizes& sizes)
      : kernels_(attention_kernels()), sizes_(sizes) {
    const Tensor uk = node.weight(first, "w_uk"), uv = node.weight(first + 1, "w_uv");
    const auto heads = static_cast<int64_t>(sizes.heads), latent = static_cast<int64_t>(sizes.latent);
    require_shape(uk, "w_uk", {heads, static_cast<int64_t>(sizes.nope), latent});
    require_shape(uv, "w_uv", {heads, latent, static_cast<int64_t>(sizes.value)});
    uk_ = uk.f32();
    uv_ = uv.f32();
  }

  void absorb(size_t head, const float* q, size_t ldq, size_t rows, float* y, size_t ldy) const override {
    kernels_.product(q, ldq, rows, uk(head), sizes_.nope, sizes_.latent, y, ldy);
  }
  void expand(size_t head, const float* mixed, size_t ldx, size_t rows, float* y, size_t ldy) const override {
    kernels_.product(mixed, ldx, rows, uv(head), sizes_.latent, sizes_.value, y, ldy);
  }
  const float* keys(size_t head, Scratch& scratch) const override {
    float* made = scratch.take<float>(sizes_.nope * sizes_.latent);
    transpose(uk(head), sizes_.nope, sizes_.latent, made);
    return made;
  }
  const float* values(size_t head, Scratch&) const override { return uv(head); }

 private:
  const float* uk(size_t head) const { return uk_ + head * sizes_.nope * sizes_.latent; }
  const float* uv(size_t head) const { return uv_ + head * sizes_.latent * sizes_.value; }

  const AttentionKernels& kernels_;
  HeadSizes sizes_;
  const float *uk_, *uv_;
};

// kv_b [H*(Dn+Dv), Dc] as the checkpoint has it: a head's W^UK, then its transposed W^UV.
class StoredUpProjections : public UpProjections {
 public:
  StoredUpProjections(const NodeInfo& node, size_t first, const HeadSizes& sizes)
      : kernels_(attention_kernels()), sizes_(sizes), stored_(node.weight(first, "kv_b")) {
    const auto rows = static_cast<int64_t>(sizes.heads * (sizes.nope + sizes.value));
    const auto latent = static_cast<int64_t>(sizes.latent);
    require_shape(stored_, "kv_b", {rows, latent});
    if (stored_.element != Element::f8e4m3) return;
    scale_ = node.weight(first + 1, "kv_b_scale");
    require_shape(scale_, "kv_b_scale", {(rows + kBlock - 1) / kBlock, (latent + kBlock - 1) / kBlock});
  }

  void absorb(size_t head, const float* q, size_t ldq, size_t rows, float* y, size_t ldy) const override {
    Scratch scratch;
    kernels_.product(q, ldq, rows, widened(first_row(head), sizes_.nope, scratch), sizes_.nope, sizes_.latent, y, ldy);
  }
  void expand(size_t head, const float* mixed, size_t ldx, size_t rows, float* y, size_t ldy) const override {
    Scratch scratch;
    kernels_.product(mixed, ldx, rows, values(head, scratch), sizes_.latent, sizes_.value, y, ldy);
  }
  const float* keys(size_t head, Scratch& scratch) const override {
    return transposed(first_row(head), sizes_.nope, scratch);
  }
  const float* values(size_t head, Scratch& scratch) const override {
    return transposed(first_row(head) + sizes_.nope, sizes_.value, scratch);
  }

 private:
  static constexpr int64_t kBlock = 128;

  size_t first_row(size_t head) const { return head * (sizes_.nope + sizes_.value); }

  const float* transposed(size_t first, size_t rows, Scratch& scratch) const {
    float* made = scratch.take<float>(rows * sizes_.latent);
    transpose(widened(first, rows, scratch), rows, sizes_.latent, made);
    return made;
  }

  const float* widened(size_t first, size_t rows, Scratch& scratch) const {
    const size_t width = sizes_.latent;
    float* made = scratch.take<float>(rows * width);
    for (size_t row = 0; row < rows; ++row) {
      widen_row(stored_, (first + row) * width, width, made + row * width);
      if (stored_.element == Element::f8e4m3) scale_row(first + row, made + row * width);
    }
    return made;
  }

  void scale_row(size_t row, float* numbers) const {
    const float* scales = scale_.f32() + row / kBlock * static_cast<size_t>(scale_.shape.last());
    for (size_t k = 0; k < sizes_.latent; ++k) numbers[k] *= scales[k / kBlock];
  }

  const AttentionKernels& kernels_;
  HeadSizes sizes_;
  Tensor stored_, scale_;
};

}  // namespace

std::unique_ptr<UpProjections> float_up_projections(const NodeInfo& node, size_t first, const HeadSizes& sizes) {
  return std::make_unique<FloatUpProjections>(node, first, sizes);
}

std::unique_ptr<UpProjections> stored_up_projections(const NodeInfo& node, size_t first, const HeadSizes& sizes) {
  return std::make_unique<StoredUpProjections>(node, first, sizes);
}

std::unique_ptr<UpProjections> up_projections(const NodeInfo& node, size_t first, const HeadSizes& sizes) {
  const std::string weights = node.text("weights", "");
  if (weights == "int") return int_up_projections(node, first, sizes);
  if (weights == "float") return float_up_projections(node, first, sizes);
  if (weights == "half" || weights == "fp8") return stored_up_projections(node, first, sizes);
  fail("weights: expected int, float, half or fp8, got ", weights);
}

}  // namespace dsv3
