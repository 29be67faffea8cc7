// The two parts of MLA's kv_b, W^UK [H, Dn, Dc] and W^UV [H, Dc, Dv], in the formats that engines keep them in.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "attention_kernels.h"
#include "op.h"
#include "scratch.h"

namespace dsv3 {

struct HeadSizes {
  size_t heads, nope, rope, latent, value;  // H, Dn, Dr, Dc, Dv
};

class UpProjections {
 public:
  virtual ~UpProjections() = default;

  // y[rows, Dc] = q[rows, Dn] x W^UK of a head; rows are ldq and ldy apart.
  virtual void absorb(size_t head, const float* q, size_t ldq, size_t rows, float* y, size_t ldy) const = 0;
  // y[rows, Dv] = mixed[rows, Dc] x W^UV of a head.
  virtual void expand(size_t head, const float* mixed, size_t ldx, size_t rows, float* y, size_t ldy) const = 0;
  // The transposed W^UK of a head, float32 [Dc, Dn], and its W^UV, [Dc, Dv]; what is made for that lies in `scratch`.
  virtual const float* keys(size_t head, Scratch& scratch) const = 0;
  virtual const float* values(size_t head, Scratch& scratch) const = 0;
  // Whether both were rounded to 8 bits.
  virtual bool rounded() const { return false; }
};

// From the inputs of a node from `first` on, in the format that its attribute `weights` names:
//   int    for each 16 heads w_uk int8 [Dn, heads*Dc], scale f32 [1, heads*Dc]; then the same of w_uv [Dc, heads*Dv]
//   float  w_uk f32 [H, Dn, Dc], w_uv f32 [H, Dc, Dv]
//   half   kv_b bf16 or f16 [H*(Dn+Dv), Dc]
//   fp8    kv_b f8e4m3 [H*(Dn+Dv), Dc], scale f32 of 128 x 128 blocks
std::unique_ptr<UpProjections> up_projections(const NodeInfo& node, size_t first, const HeadSizes& sizes);

// The functions behind it, a file each.
std::unique_ptr<UpProjections> int_up_projections(const NodeInfo& node, size_t first, const HeadSizes& sizes);
std::unique_ptr<UpProjections> float_up_projections(const NodeInfo& node, size_t first, const HeadSizes& sizes);
std::unique_ptr<UpProjections> stored_up_projections(const NodeInfo& node, size_t first, const HeadSizes& sizes);

}  // namespace dsv3
