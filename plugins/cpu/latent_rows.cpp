// Latents of a cache as attention reads them.
#include "attention.h"
#include "float_matmul.h"
#include "widen.h"

namespace dsv3 {

LatentRows::LatentRows(const Step& step, const HeadSizes& sizes, Scratch& scratch)
    : step_(step), width_(sizes.latent + sizes.rope), space_(nullptr), scales_(nullptr) {
  if (step.rounded > 0) scales_ = scratch.take<float>((step.rounded + kScaleBlock - 1) / kScaleBlock);
  if (step.rounded > 0 || step.cache.element != Element::f32) space_ = scratch.take<float>(kKeys * width_);
}

const float* LatentRows::get(size_t slot, size_t begin, size_t count) const {
  const size_t first = (slot * static_cast<size_t>(step_.cache.shape[1]) + begin) * width_;
  if (space_ == nullptr) return step_.cache.f32() + first;
  widen_row(step_.cache, first, count * width_, space_);
  for (size_t row = 0; row < (step_.rounded > 0 ? count : 0); ++row) {
    float* numbers = space_ + row * width_;
    float_kernels().round_row(numbers, step_.rounded, numbers, scales_);
    for (size_t k = 0; k < step_.rounded; ++k) numbers[k] *= scales_[k / kScaleBlock];
  }
  return space_;
}

}  // namespace dsv3
