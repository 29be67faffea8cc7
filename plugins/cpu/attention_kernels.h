// The inner loops of attention in float32, for each instruction set; all give the same bits, but for AMX's products.
#pragma once

#include <cstddef>

namespace dsv3 {

// Queries that are computed together, one in each lane.
constexpr size_t kQueries = 16;
// Keys of a block. Blocks begin at multiples of it, so that a query's result depends on its position and cache alone.
constexpr size_t kKeys = 64;

// Sixteen queries, and what they have seen so far (online softmax: Milakov & Gimelshein 2018).
struct Queries {
  const float* q;       // [width][16]
  size_t width;         // of queries and keys
  float scale;          // of scores, not 0
  float* largest;       // [16] the largest score
  float* sum;           // [16] of exp(score - largest)
  float* mixed;         // [columns][16] of exp(score - largest) * value
  size_t columns;       // of values
};

// Rows of keys and values, `stride` numbers apart.
struct KeyBlock {
  const float* keys;
  size_t key_stride;
  const float* values;
  size_t value_stride;
  size_t count;               // at most kKeys
  const size_t* visible;      // [16] how many of them each query sees, from the first on
};

struct AttentionKernels {
  // Adds a block to what the queries have seen. A score is a chain of fmaf over the width in order, a mixed value one
  // over the keys in order.
  void (*attend)(const Queries& queries, const KeyBlock& block);

  // y[m][n] = sum over k, in order, by fmaf, of x[m][k] * weight[k][n]; rows are ldx and ldy apart, weight's N.
  void (*product)(const float* x, size_t ldx, size_t rows, const float* weight, size_t K, size_t N, float* y,
                  size_t ldy);

  // The same for many rows, with a weight that `prepare` made in `space` of prepared_numbers(K, N) floats, or left as it
  // was. AMX cuts both factors into bfloat16 numbers and adds the products of these in float32: of three to a number,
  // those that count in float32 (an error of 2^-24 of a product), of two, for weights that were rounded to 8 bits, all but
  // that of the smaller ones (2^-16). There too a row's result does not depend on the other rows.
  const float* (*prepare)(const float* weight, size_t K, size_t N, float* space);
  void (*prepared_product)(const float* x, size_t ldx, size_t rows, const float* prepared, size_t K, size_t N, float* y,
                           size_t ldy);

  // exp(x), as `attend` has it.
  float (*exp)(float x);
};

// Three bfloat16 numbers for one, filled up to whole tiles of 32 x 32.
inline size_t prepared_numbers(size_t K, size_t N) { return (K + 31) / 32 * 32 * ((N + 31) / 32 * 32) * 3 / 2; }

extern const AttentionKernels attention_generic, attention_avx2, attention_avx512, attention_amx,
    attention_amx_of_rounded;

// Of the instruction set that runs here (isa.h); for weights that were rounded to 8 bits, or for any.
const AttentionKernels& attention_kernels(bool rounded = false);

}  // namespace dsv3
