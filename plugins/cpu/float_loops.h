// The loops of FloatKernels in Wide, for the files of each instruction set.
#pragma once

#include "float_matmul.h"
#include "lanes.h"
#include "wide.h"
#if defined(__AVX2__) && !defined(__AVX512F__)
#include "float_tiles_avx2.h"
#endif

namespace dsv3 {
namespace {

// Columns, and rows at most, whose sums are in registers together.
constexpr size_t kColumns = 4;
#if defined(__AVX512F__)
constexpr size_t kMostRows = 6;
#elif defined(__AVX2__)
constexpr size_t kMostRows = 1;
#else
constexpr size_t kMostRows = 2;
#endif
// Weights that stay in the second-level cache while all rows pass by.
constexpr size_t kBytesOfWeights = size_t{256} << 10;

inline size_t least(size_t a, size_t b) { return a < b ? a : b; }

// Four columns' weights, some rows, and where their results go.
template <typename Weight>
struct Tile {
  const Weight* weight[kColumns];
  const float* weight_scale[kColumns];
  size_t K;
  size_t ahead;  // numbers from a weight to what is read next from memory
  const float* x;
  size_t stride;
  const float* scale;
  size_t scale_stride;
  float* y;
  size_t ldy, columns;
};

template <typename Weight, size_t Rows>
inline void add(const Wide (&weights)[kColumns], const Wide (&x)[Rows], Wide (&sums)[Rows][kColumns]) {
#pragma GCC unroll 6
  for (size_t m = 0; m < Rows; ++m) {
#pragma GCC unroll 4
    for (size_t c = 0; c < kColumns; ++c) sums[m][c] = fma(x[m], weights[c], sums[m][c]);
  }
}

// Adds the products of k in [begin, end) to `sums`.
template <typename Weight, size_t Rows>
inline void add_range(const Tile<Weight>& tile, size_t begin, size_t end, Wide (&sums)[Rows][kColumns]) {
  Wide weights[kColumns], x[Rows];
  size_t k = begin;
  for (; k + kWide <= end; k += kWide) {
#pragma GCC unroll 4
    for (size_t c = 0; c < kColumns; ++c) {
      __builtin_prefetch(tile.weight[c] + k + tile.ahead, 0, 2);
      weights[c] = load(tile.weight[c] + k);
    }
#pragma GCC unroll 6
    for (size_t m = 0; m < Rows; ++m) x[m] = load(tile.x + m * tile.stride + k);
    add<Weight, Rows>(weights, x, sums);
  }
  if (k == end) return;
  for (size_t c = 0; c < kColumns; ++c) weights[c] = load_some(tile.weight[c] + k, end - k);
  for (size_t m = 0; m < Rows; ++m) x[m] = load_some(tile.x + m * tile.stride + k, end - k);
  add<Weight, Rows>(weights, x, sums);
}

template <size_t Rows>
inline void clear(Wide (&sums)[Rows][kColumns]) {
#pragma GCC unroll 6
  for (size_t m = 0; m < Rows; ++m) {
#pragma GCC unroll 4
    for (size_t c = 0; c < kColumns; ++c) sums[m][c] = all(0.0f);
  }
}

template <size_t Rows>
void add_all(const Tile<F8>& tile, Wide (&sums)[Rows][kColumns]) {
  for (size_t g = 0, begin = 0; begin < tile.K; ++g, begin += kScaleBlock) {
    Wide block[Rows][kColumns];
    clear<Rows>(block);
    add_range<F8, Rows>(tile, begin, least(begin + kScaleBlock, tile.K), block);
    for (size_t m = 0; m < Rows; ++m) {
      const float row_scale = tile.scale != nullptr ? tile.scale[m * tile.scale_stride + g] : 1.0f;
      for (size_t c = 0; c < kColumns; ++c) {
        sums[m][c] = fma(block[m][c], all(row_scale * tile.weight_scale[c][g]), sums[m][c]);
      }
    }
  }
}

template <size_t Rows, typename Weight>
inline void add_all(const Tile<Weight>& tile, Wide (&sums)[Rows][kColumns]) {
  add_range<Weight, Rows>(tile, 0, tile.K, sums);
}

template <typename Weight, size_t Rows>
void multiply(const Tile<Weight>& tile) {
  Wide sums[Rows][kColumns];
  clear<Rows>(sums);
  add_all<Rows>(tile, sums);
  for (size_t m = 0; m < Rows; ++m) {
    float results[kColumns];
    sum_four(sums[m], results);
    for (size_t c = 0; c < tile.columns; ++c) tile.y[m * tile.ldy + c] = results[c];
  }
}

template <typename Weight>
void multiply_rows(const Tile<Weight>& tile, size_t rows) {
  if constexpr (kMostRows > 2) {
    if (rows == 6) return multiply<Weight, 6>(tile);
    if (rows == 5) return multiply<Weight, 5>(tile);
    if (rows == 4) return multiply<Weight, 4>(tile);
    if (rows == 3) return multiply<Weight, 3>(tile);
  }
  if constexpr (kMostRows > 1) {
    if (rows == 2) return multiply<Weight, 2>(tile);
  }
  multiply<Weight, 1>(tile);
}

template <typename Weight>
void product_of(const FloatMatrix& matrix, size_t first, size_t count, const FloatRows& rows, float* y, size_t ldy) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  if (rows.rows > kMostRows) return product_by_tiles<Weight>(matrix, first, count, rows, y, ldy);
#endif
  const auto* weights = static_cast<const Weight*>(matrix.data);
  const size_t K = matrix.K, end = first + count, columns_bytes = kColumns * K * sizeof(Weight);
  const size_t at_once = (columns_bytes < kBytesOfWeights ? kBytesOfWeights / columns_bytes : 1) * kColumns;
  for (size_t block = first; block < end; block += at_once) {
    const size_t block_end = least(block + at_once, end);
    for (size_t m = 0; m < rows.rows; m += kMostRows) {
      const float* scale = rows.scale != nullptr ? rows.scale + m * rows.scale_stride : nullptr;
      Tile<Weight> tile{{}, {}, K, 0, rows.x + m * rows.stride, rows.stride, scale, rows.scale_stride, nullptr, ldy, 0};
      for (size_t n = block; n < block_end; n += kColumns) {
        tile.columns = least(kColumns, block_end - n);
        // Further rows find the weights in a cache.
        tile.ahead = m == 0 && n + 2 * kColumns <= end ? kColumns * K : 0;
        for (size_t c = 0; c < kColumns; ++c) {
          const size_t column = n + least(c, tile.columns - 1);
          tile.weight[c] = weights + column * K;
          tile.weight_scale[c] = matrix.scale != nullptr ? matrix.scale + column / kScaleBlock * matrix.groups() : nullptr;
        }
        tile.y = y + m * ldy + (n - first);
        multiply_rows<Weight>(tile, least(kMostRows, rows.rows - m));
      }
    }
  }
}

void product(const FloatMatrix& matrix, size_t first, size_t count, const FloatRows& rows, float* y, size_t ldy) {
  switch (matrix.element) {
    case Element::bf16: return product_of<Bf16>(matrix, first, count, rows, y, ldy);
    case Element::f16: return product_of<F16>(matrix, first, count, rows, y, ldy);
    case Element::f8e4m3: return product_of<F8>(matrix, first, count, rows, y, ldy);
    default: return product_of<float>(matrix, first, count, rows, y, ldy);
  }
}

// To the nearest number of float8 e4m3, half to even; |x| is at most 448. Adding 1.5 * 2^20 times a number's power of two
// leaves 3 bits behind it, and below 2^-6 multiples of 2^-9.
inline Lanes rounded_to_f8(Lanes x) {
  const Lanes shift = power_below(larger(Lanes::all(0x1p-6f), magnitude(x))) * Lanes::all(0x1.8p20f);
  return (x + shift) - shift;
}

void round_group(const float* x, size_t count, float scale, float* values) {
  const Lanes by = Lanes::all(scale);
  size_t k = 0;
  for (; k + Lanes::kWidth <= count; k += Lanes::kWidth) rounded_to_f8(Lanes::load(x + k) / by).store(values + k);
  if (k == count) return;
  float filled[Lanes::kWidth] = {};
  std::memcpy(filled, x + k, (count - k) * sizeof(float));
  rounded_to_f8(Lanes::load(filled) / by).store(filled);
  std::memcpy(values + k, filled, (count - k) * sizeof(float));
}

// The largest magnitude, a NaN above infinity.
inline float largest(const float* x, size_t count) {
  uint32_t most = 0;
  for (size_t k = 0; k < count; ++k) {
    uint32_t bits;
    std::memcpy(&bits, x + k, 4);
    bits &= 0x7fffffffu;
    most = bits > most ? bits : most;
  }
  return float_of_bits(most);
}

void round_row(const float* x, size_t K, float* values, float* scale) {
  for (size_t begin = 0; begin < K; begin += kScaleBlock, ++scale) {
    const size_t count = least(kScaleBlock, K - begin);
    *scale = largest(x + begin, count) / 448.0f;
    if (*scale < 0x1p-126f) *scale = 1.0f;
    round_group(x + begin, count, *scale, values + begin);
  }
}

}  // namespace
}  // namespace dsv3
