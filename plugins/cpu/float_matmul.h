// Products with weights in floating point that are read as they lie, rows of K: float32, bfloat16, float16, or float8 e4m3
// with a scale for each block of 128 x 128.
//
// Numbers. A sum over K has 16 parts: the k-th product is added by fmaf to part k mod 16, in ascending order; then parts
// are added in pairs, i and i + 8, then i + 4, i + 2, i + 1. With float8 the parts of 128 neighbours along K are summed
// so, from 0, and each is added to those of all K by fmaf with the factor row scale * weight scale. So a result depends on
// its own row of x and of the weight only, and is the same bits by every instruction set.
#pragma once

#include <cstddef>

#include "tensor.h"

namespace dsv3 {

// Neighbours along N and along K that share a scale of a float8 weight, and along K one of a rounded row.
constexpr size_t kScaleBlock = 128;

struct FloatMatrix {
  Element element;
  size_t N, K;
  const void* data;    // [N, K]
  const float* scale;  // of float8: [ceil(N / 128), ceil(K / 128)]

  size_t groups() const { return (K + kScaleBlock - 1) / kScaleBlock; }
};

// Rows of float32, `stride` numbers apart. Rows that were rounded to float8 hold its numbers and have scales.
struct FloatRows {
  const float* x;
  size_t stride, rows;
  const float* scale;  // [rows][scale_stride], or null
  size_t scale_stride;
};

// Kernels of one instruction set. All give the same bits.
struct FloatKernels {
  // Rounds a row to float8 e4m3 in groups of 128: values[k] is the rounded x[k] / scale, and scale = amax / 448, or 1 where
  // that is zero or subnormal.
  void (*round_row)(const float* x, size_t K, float* values, float* scale);

  // y[m * ldy + n - first] for all rows m and the columns n of [first, first + count).
  void (*product)(const FloatMatrix& matrix, size_t first, size_t count, const FloatRows& rows, float* y, size_t ldy);
};

extern const FloatKernels float_generic, float_avx2, float_avx512;

// Of the instruction set that `isa()` names now.
const FloatKernels& float_kernels();

}  // namespace dsv3
