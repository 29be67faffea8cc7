// Multi-head latent attention of some sequences over their cached latents, in its two forms (DeepSeek-V2, section 2.1).
#pragma once

#include <cstddef>
#include <cstdint>

#include "parallel.h"
#include "tensor.h"
#include "up_projections.h"

namespace dsv3 {

// Sequences [first, first + slots) of a step, S tokens each; rows lie one behind the other.
struct Step {
  const float* q_nope;   // [B, S, H, Dn]
  const float* q_pe;     // [B, S, H, Dr]
  Tensor cache;          // [B, T, Dc + Dr], the step's own rows written
  size_t rounded;        // numbers of a row, from the first on, that are rounded to float8 in groups of 128: Dc or 0
  const int64_t* start;  // [B] rows that each sequence had before
  size_t tokens;         // S
  float scale;
  float* out;            // [B, S, H * Dv]
};

// Whether a sequence's keys and values are made from its latents: for many queries; see choice_text in
// graphs/lower/onnxruntime/mla_attention.py, whose count of multiplications this is. It depends on nothing but the
// sequence itself.
bool decompressing_pays(const HeadSizes& sizes, size_t tokens, size_t rows);

// Queries are multiplied with W^UK and attend to the latents themselves.
void attend_absorbed(const Parallel& parallel, const UpProjections& up, const HeadSizes& sizes, const Step& step,
                     size_t first, size_t slots);

// Keys and values of each head are made, a block at a time.
void attend_decompressed(const Parallel& parallel, const UpProjections& up, const HeadSizes& sizes, const Step& step,
                         size_t first, size_t slots);

// Rows [begin, begin + count) of a sequence's latents in float32, at most kKeys: as they lie, or in space from `scratch`.
class LatentRows {
 public:
  LatentRows(const Step& step, const HeadSizes& sizes, Scratch& scratch);
  const float* get(size_t slot, size_t begin, size_t count) const;

 private:
  const Step& step_;
  size_t width_;
  float *space_, *scales_;
};

}  // namespace dsv3
