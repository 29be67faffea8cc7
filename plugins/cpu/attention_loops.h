// The loops of AttentionKernels in Lanes, for the files of each instruction set.
#pragma once

#include <limits>

#include "attention_kernels.h"
#include "exponential.h"

namespace dsv3 {
namespace {

// Vectors for sixteen queries, and rows that have accumulators at once: 8 of them hide fma's latency. Of values 16 go
// together where registers last, a cache line of each key.
constexpr size_t kVectors = kQueries / Lanes::kWidth;
constexpr size_t kKeysAtOnce = Lanes::kWidth == 16 ? 8 : Lanes::kWidth == 8 ? 4 : 1;
constexpr size_t kValuesAtOnce = Lanes::kWidth == 16 ? 16 : kKeysAtOnce;

// sums[j][16] = sum over i of left[i][16] * right[i * step + j * stride], for the first `count` of AtOnce j, in order
// of i; starting from `sums` * `decay`[16] where that is given.
template <size_t AtOnce>
inline void outer(const float* left, size_t length, const float* right, size_t step, size_t stride, size_t count,
                  const float* decay, float* sums) {
  Lanes total[AtOnce][kVectors];
  const float* column[AtOnce];
  for (size_t j = 0; j < AtOnce; ++j) {
    column[j] = right + (j < count ? j : 0) * stride;
    for (size_t v = 0; v < kVectors; ++v) {
      total[j][v] = Lanes::all(0.0f);
      if (decay != nullptr && j < count) {
        total[j][v] = Lanes::load(sums + j * kQueries + v * Lanes::kWidth) * Lanes::load(decay + v * Lanes::kWidth);
      }
    }
  }
  for (size_t i = 0; i < length; ++i) {
    Lanes row[kVectors];
    for (size_t v = 0; v < kVectors; ++v) row[v] = Lanes::load(left + i * kQueries + v * Lanes::kWidth);
    for (size_t j = 0; j < AtOnce; ++j) {
      const Lanes factor = Lanes::all(column[j][i * step]);
      for (size_t v = 0; v < kVectors; ++v) total[j][v] = fma(row[v], factor, total[j][v]);
    }
  }
  for (size_t j = 0; j < count; ++j) {
    for (size_t v = 0; v < kVectors; ++v) total[j][v].store(sums + j * kQueries + v * Lanes::kWidth);
  }
}

inline size_t least(size_t a, size_t b) { return a < b ? a : b; }

// What a query does not see counts nothing: e^-infinity is 0.
inline void hide(const KeyBlock& block, float* scores) {
  for (size_t query = 0; query < kQueries; ++query) {
    for (size_t key = block.visible[query]; key < block.count; ++key) {
      scores[key * kQueries + query] = -std::numeric_limits<float>::infinity();
    }
  }
}

void attend(const Queries& queries, const KeyBlock& block) {
  alignas(64) float scores[kKeys * kQueries];
  alignas(64) float decay[kQueries];
  for (size_t key = 0; key < block.count; key += kKeysAtOnce) {
    outer<kKeysAtOnce>(queries.q, queries.width, block.keys + key * block.key_stride, 1, block.key_stride,
                       least(kKeysAtOnce, block.count - key), nullptr, scores + key * kQueries);
  }
  hide(block, scores);
  const Lanes scale = Lanes::all(queries.scale);
  for (size_t first = 0; first < kQueries; first += Lanes::kWidth) {
    const Lanes before = Lanes::load(queries.largest + first);
    Lanes largest = before;
    for (size_t key = 0; key < block.count; ++key) {
      float* score = scores + key * kQueries + first;
      const Lanes scaled = Lanes::load(score) * scale;
      scaled.store(score);
      largest = larger(scaled, largest);
    }
    const Lanes shrunk = exponential(before - largest);
    Lanes sum = Lanes::load(queries.sum + first) * shrunk;
    for (size_t key = 0; key < block.count; ++key) {
      float* score = scores + key * kQueries + first;
      const Lanes share = exponential(Lanes::load(score) - largest);
      share.store(score);
      sum = sum + share;
    }
    largest.store(queries.largest + first);
    sum.store(queries.sum + first);
    shrunk.store(decay + first);
  }
  for (size_t column = 0; column < queries.columns; column += kValuesAtOnce) {
    outer<kValuesAtOnce>(scores, block.count, block.values + column, block.value_stride, 1,
                         least(kValuesAtOnce, queries.columns - column), decay, queries.mixed + column * kQueries);
  }
}

// Rows of x and vectors of y that have accumulators at once.
constexpr size_t kRows = Lanes::kWidth == 16 ? 8 : 4;
constexpr size_t kColumnVectors = Lanes::kWidth == 1 ? 1 : 2;

template <size_t Rows, size_t Vectors>
inline void product_block(const float* x, size_t ldx, const float* weight, size_t K, size_t N, float* y, size_t ldy) {
  Lanes total[Rows][Vectors];
  for (size_t m = 0; m < Rows; ++m) {
    for (size_t v = 0; v < Vectors; ++v) total[m][v] = Lanes::all(0.0f);
  }
  for (size_t k = 0; k < K; ++k) {
    Lanes row[Vectors];
    for (size_t v = 0; v < Vectors; ++v) row[v] = Lanes::load(weight + k * N + v * Lanes::kWidth);
    for (size_t m = 0; m < Rows; ++m) {
      const Lanes factor = Lanes::all(x[m * ldx + k]);
      for (size_t v = 0; v < Vectors; ++v) total[m][v] = fma(factor, row[v], total[m][v]);
    }
  }
  for (size_t m = 0; m < Rows; ++m) {
    for (size_t v = 0; v < Vectors; ++v) total[m][v].store(y + m * ldy + v * Lanes::kWidth);
  }
}

inline void product_number(const float* x, const float* weight, size_t K, size_t N, float* y) {
  float total = 0.0f;
  for (size_t k = 0; k < K; ++k) total = std::fmaf(x[k], weight[k * N], total);
  *y = total;
}

template <size_t Rows>
inline void product_rows(const float* x, size_t ldx, const float* weight, size_t K, size_t N, float* y, size_t ldy) {
  size_t n = 0;
  for (; n + kColumnVectors * Lanes::kWidth <= N; n += kColumnVectors * Lanes::kWidth) {
    product_block<Rows, kColumnVectors>(x, ldx, weight + n, K, N, y + n, ldy);
  }
  for (; n + Lanes::kWidth <= N; n += Lanes::kWidth) product_block<Rows, 1>(x, ldx, weight + n, K, N, y + n, ldy);
  for (; n < N; ++n) {
    for (size_t m = 0; m < Rows; ++m) product_number(x + m * ldx, weight + n, K, N, y + m * ldy + n);
  }
}

void product(const float* x, size_t ldx, size_t rows, const float* weight, size_t K, size_t N, float* y, size_t ldy) {
  size_t m = 0;
  for (; m + kRows <= rows; m += kRows) product_rows<kRows>(x + m * ldx, ldx, weight, K, N, y + m * ldy, ldy);
  for (; m < rows; ++m) product_rows<1>(x + m * ldx, ldx, weight, K, N, y + m * ldy, ldy);
}

inline const float* as_it_is(const float* weight, size_t, size_t, float*) { return weight; }

float exp_one(float x) {
  float numbers[Lanes::kWidth];
  exponential(Lanes::all(x)).store(numbers);
  return numbers[0];
}

}  // namespace
}  // namespace dsv3
