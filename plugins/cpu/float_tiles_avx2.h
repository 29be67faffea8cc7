// Products of several rows by AVX2: tiles whose sums fit its sixteen registers. Where there is more than one tile of rows,
// weights are widened to float32 once for all of them.
#pragma once

#include <type_traits>

#include "float_matmul.h"
#include "scratch.h"
#include "unroll.h"
#include "wide.h"

namespace dsv3 {
namespace {

// Twelve registers of sums, two of weights.
constexpr size_t kTileRows = 3, kTileColumns = 2;
// Widened weights that stay in the second-level cache while all rows pass by.
constexpr size_t kBytesOfColumns = size_t{256} << 10;

inline void store(Wide wide, float* to) {
  _mm256_storeu_ps(to, wide.low);
  _mm256_storeu_ps(to + 8, wide.high);
}

// Sums of products, their first and their last eight parts.
template <size_t Rows, size_t Columns>
struct TileSums {
  __m256 of[2][Rows][Columns];
};

// What a tile multiplies: rows and columns of numbers along K, and how far ahead the next columns are.
template <typename Weight, size_t Rows, size_t Columns>
struct Operands {
  const float* x[Rows];
  const Weight* weight[Columns];
  size_t ahead;
};

template <size_t Rows, size_t Columns>
DSV3_ALWAYS_INLINE void clear(TileSums<Rows, Columns>& sums) {
  unroll<2>([&](auto half) DSV3_UNROLLED {
    unroll<Rows>([&](auto m) DSV3_UNROLLED {
      unroll<Columns>([&](auto c) DSV3_UNROLLED { sums.of[half][m][c] = _mm256_setzero_ps(); });
    });
  });
}

// Adds sixteen products to each sum.
template <typename Weight, size_t Rows, size_t Columns>
DSV3_ALWAYS_INLINE void add_sixteen(TileSums<Rows, Columns>& sums, const Operands<Weight, Rows, Columns>& from,
                                    size_t k) {
  unroll<Columns>([&](auto c) DSV3_UNROLLED {
    const Wide weight = load(from.weight[c] + k);
    unroll<Rows>([&](auto m) DSV3_UNROLLED {
      const float* x = from.x[m] + k;
      sums.of[0][m][c] = _mm256_fmadd_ps(_mm256_loadu_ps(x), weight.low, sums.of[0][m][c]);
      sums.of[1][m][c] = _mm256_fmadd_ps(_mm256_loadu_ps(x + 8), weight.high, sums.of[1][m][c]);
    });
  });
}

// The `count` numbers along K that are left, and zeros.
template <typename Number>
struct Filled {
  Number numbers[kWide] = {};

  Filled(const Number* from, size_t count) { std::memcpy(numbers, from, count * sizeof(Number)); }
};

// Adds the products of k in [begin, end).
template <typename Weight, size_t Rows, size_t Columns>
DSV3_ALWAYS_INLINE void add_products(TileSums<Rows, Columns>& sums, const Operands<Weight, Rows, Columns>& from,
                                     size_t begin, size_t end) {
  size_t k = begin;
  for (; k + kWide <= end; k += kWide) {
    unroll<Columns>([&](auto c) DSV3_UNROLLED { __builtin_prefetch(from.weight[c] + k + from.ahead, 0, 2); });
    add_sixteen(sums, from, k);
  }
  if (k == end) return;
  unroll<Rows>([&](auto m) DSV3_UNROLLED {
    const Filled<float> x(from.x[m] + k, end - k);
    unroll<Columns>([&](auto c) DSV3_UNROLLED {
      const Wide product = fma(load(x.numbers), load(Filled<Weight>(from.weight[c] + k, end - k).numbers),
                               {sums.of[0][m][c], sums.of[1][m][c]});
      sums.of[0][m][c] = product.low;
      sums.of[1][m][c] = product.high;
    });
  });
}

// Where a tile begins, its scales (null without), and where its results go.
template <typename Weight>
struct TileAt {
  const float* x;
  size_t x_stride;
  const Weight* weight;
  size_t K, ahead;
  const float* row_scale;
  size_t row_scale_stride;
  const float* weight_scale[kTileColumns];
  float* y;
  size_t ldy;
};

template <bool Scaled, size_t Rows, size_t Columns, typename Weight>
void multiply_tile(const TileAt<Weight>& at) {
  Operands<Weight, Rows, Columns> from;
  unroll<Rows>([&](auto m) DSV3_UNROLLED { from.x[m] = at.x + m * at.x_stride; });
  unroll<Columns>([&](auto c) DSV3_UNROLLED { from.weight[c] = at.weight + c * at.K; });
  from.ahead = at.ahead;
  TileSums<Rows, Columns> sums;
  clear(sums);
  if constexpr (Scaled) {
    for (size_t g = 0, begin = 0; begin < at.K; ++g, begin += kScaleBlock) {
      TileSums<Rows, Columns> block;
      clear(block);
      add_products(block, from, begin, begin + kScaleBlock < at.K ? begin + kScaleBlock : at.K);
      unroll<Rows>([&](auto m) DSV3_UNROLLED {
        const float row = at.row_scale != nullptr ? at.row_scale[m * at.row_scale_stride + g] : 1.0f;
        unroll<Columns>([&](auto c) DSV3_UNROLLED {
          const __m256 scale = _mm256_set1_ps(row * at.weight_scale[c][g]);
          unroll<2>([&](auto half) DSV3_UNROLLED {
            sums.of[half][m][c] = _mm256_fmadd_ps(block.of[half][m][c], scale, sums.of[half][m][c]);
          });
        });
      });
    }
  } else {
    add_products(sums, from, 0, at.K);
  }
  unroll<Rows>([&](auto m) DSV3_UNROLLED {
    unroll<Columns>([&](auto c) DSV3_UNROLLED {
      const __m128 part = quarters({sums.of[0][m][c], sums.of[1][m][c]});
      const __m128 half = _mm_add_ps(part, _mm_movehl_ps(part, part));
      at.y[m * at.ldy + c] = _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
    });
  });
}

// The first `rows` rows of a tile by its first `columns` columns.
template <bool Scaled, typename Weight>
void multiply_part(const TileAt<Weight>& at, size_t rows, size_t columns) {
  if (columns == kTileColumns) {
    if (rows == 3) return multiply_tile<Scaled, 3, 2>(at);
    if (rows == 2) return multiply_tile<Scaled, 2, 2>(at);
    return multiply_tile<Scaled, 1, 2>(at);
  }
  if (rows == 3) return multiply_tile<Scaled, 3, 1>(at);
  if (rows == 2) return multiply_tile<Scaled, 2, 1>(at);
  multiply_tile<Scaled, 1, 1>(at);
}

// y[m * ldy + c] of all rows by `columns` columns, the first of which is number `first` of the matrix.
template <bool Scaled, typename Weight>
void multiply_columns(const FloatMatrix& matrix, const Weight* weights, size_t first, size_t columns,
                      const FloatRows& rows, float* y, size_t ldy) {
  const size_t K = matrix.K;
  for (size_t m = 0; m < rows.rows; m += kTileRows) {
    const size_t some = kTileRows < rows.rows - m ? kTileRows : rows.rows - m;
    const float* scale = rows.scale != nullptr ? rows.scale + m * rows.scale_stride : nullptr;
    TileAt<Weight> at{rows.x + m * rows.stride, rows.stride, weights, K, 0, scale, rows.scale_stride, {}, nullptr, ldy};
    for (size_t c = 0; c < columns; c += kTileColumns, at.weight += kTileColumns * K) {
      const size_t wide = kTileColumns < columns - c ? kTileColumns : columns - c;
      // What the first rows read may come from memory.
      at.ahead = m == 0 && c + 2 * kTileColumns <= columns ? kTileColumns * K : 0;
      at.y = y + m * ldy + c;
      for (size_t i = 0; Scaled && i < wide; ++i) {
        at.weight_scale[i] = matrix.scale + (first + c + i) / kScaleBlock * matrix.groups();
      }
      multiply_part<Scaled>(at, some, wide);
    }
  }
}

template <typename Weight>
void widen(const Weight* weights, size_t count, float* to) {
  size_t i = 0;
  for (; i + kWide <= count; i += kWide) store(load(weights + i), to + i);
  if (i == count) return;
  float filled[kWide];
  store(load_some(weights + i, count - i), filled);
  std::memcpy(to + i, filled, (count - i) * sizeof(float));
}

template <typename Weight>
void product_by_tiles(const FloatMatrix& matrix, size_t first, size_t count, const FloatRows& rows, float* y,
                      size_t ldy) {
  constexpr bool kScaled = std::is_same_v<Weight, F8>;
  const auto* weights = static_cast<const Weight*>(matrix.data);
  const size_t K = matrix.K, fit = kBytesOfColumns / sizeof(float) / (K > 0 ? K : 1), end = first + count;
  const size_t at_once = (fit > kTileColumns ? fit : kTileColumns) / kTileColumns * kTileColumns;
  const bool widens = !std::is_same_v<Weight, float> && rows.rows > kTileRows;
  Scratch scratch;
  float* made = widens ? scratch.take<float>((at_once < count ? at_once : count) * K) : nullptr;
  for (size_t n = first; n < end; n += at_once) {
    const size_t columns = at_once < end - n ? at_once : end - n;
    if (widens) {
      widen(weights + n * K, columns * K, made);
      multiply_columns<kScaled>(matrix, made, n, columns, rows, y + (n - first), ldy);
    } else {
      multiply_columns<kScaled>(matrix, weights + n * K, n, columns, rows, y + (n - first), ldy);
    }
  }
}

}  // namespace
}  // namespace dsv3
