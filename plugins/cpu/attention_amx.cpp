// Products of float32 numbers on AMX, each number cut into two or three of bfloat16, the largest first.
//
// Prepared weights are tiles of 32 k x 16 n, pairs of k beside each other (16 rows of 64 bytes): for each two columns of
// tiles, along K, the largest parts of both, then the next ones.
#include <immintrin.h>

#include "attention_loops.h"
#include "scratch.h"

namespace dsv3 {
namespace {

constexpr size_t kTileRows = 16, kDepth = 32, kTileNumbers = kDepth * 16, kColumns = 32;

// Tiles: 0 to 3 sums, 4 and 5 rows, 6 and 7 weights; all of 16 rows of 64 bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

void configure() {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) config.rows[tile] = kTileRows, config.bytes[tile] = 64;
  _tile_loadconfig(&config);
}

size_t rounded_up(size_t value, size_t to) { return (value + to - 1) / to * to; }

// The largest part of each number, as the low 16 bits of a lane, and what is left.
__m512i take_part(__m512& numbers) {
  const __m512i part = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(numbers));
  numbers = _mm512_sub_ps(numbers, _mm512_castsi512_ps(_mm512_slli_epi32(part, 16)));
  return part;
}

template <int kParts>
const float* prepare(const float* weight, size_t K, size_t N, float* space) {
  auto* tiles = reinterpret_cast<uint16_t*>(space);
  const size_t depth = rounded_up(K, kDepth), columns = rounded_up(N, kColumns);
  for (size_t k = 0; k < depth; k += 2) {
    for (size_t n = 0; n < columns; n += 16) {
      const __mmask16 inside = n >= N ? 0 : N - n >= 16 ? 0xffff : (1u << (N - n)) - 1;
      const float* from = weight + k * N + n;
      __m512 first = _mm512_maskz_loadu_ps(k < K ? inside : 0, from);
      __m512 second = _mm512_maskz_loadu_ps(k + 1 < K ? inside : 0, from + N);
      uint16_t* to = tiles + n / kColumns * kColumns * depth * kParts + k / kDepth * 2 * kParts * kTileNumbers +
                     n % kColumns / 16 * kTileNumbers + k % kDepth / 2 * 32;
      for (int part = 0; part < kParts; ++part, to += 2 * kTileNumbers) {
        const __m512i low = take_part(first), high = take_part(second);
        _mm512_storeu_si512(to, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
      }
    }
  }
  return space;
}

// Rows of x in parts: [rows, filled up to 32][kParts][depth].
template <int kParts>
void cut(const float* x, size_t ldx, size_t rows, size_t K, uint16_t* to) {
  const size_t depth = rounded_up(K, kDepth);
  for (size_t m = 0; m < rounded_up(rows, 2 * kTileRows); ++m, to += kParts * depth) {
    for (size_t k = 0; k < depth; k += 16) {
      const __mmask16 given = m >= rows || k >= K ? 0 : K - k >= 16 ? 0xffff : (1u << (K - k)) - 1;
      __m512 numbers = _mm512_maskz_loadu_ps(given, m < rows ? x + m * ldx + k : x);
      for (int part = 0; part < kParts; ++part) {
        auto* stored = reinterpret_cast<__m256i*>(to + part * depth + k);
        _mm256_storeu_si256(stored, _mm512_cvtepi32_epi16(take_part(numbers)));
      }
    }
  }
}

// Adds the products of a part of 32 rows and a part of the weights to the sums.
inline void add_product(const uint16_t* rows, size_t below, size_t stride, const uint16_t* weight) {
  _tile_loadd(4, rows, stride);
  _tile_loadd(5, rows + below, stride);
  _tile_loadd(6, weight, 64);
  _tile_loadd(7, weight + kTileNumbers, 64);
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

// sums[32][32] of 32 cut rows and two columns of tiles.
template <int kParts>
void multiply(const uint16_t* rows, size_t depth, const uint16_t* weight, float* sums) {
  const size_t stride = kParts * depth * sizeof(uint16_t), below = kTileRows * kParts * depth;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (size_t k = 0; k < depth; k += kDepth, weight += 2 * kParts * kTileNumbers) {
    // the smallest products first
    for (int both = kParts - 1; both >= 0; --both) {
      for (int part = both; part >= 0; --part) {
        add_product(rows + part * depth + k, below, stride, weight + (both - part) * 2 * kTileNumbers);
      }
    }
  }
  _tile_stored(0, sums, kColumns * sizeof(float));
  _tile_stored(1, sums + 16, kColumns * sizeof(float));
  _tile_stored(2, sums + 16 * kColumns, kColumns * sizeof(float));
  _tile_stored(3, sums + 16 * kColumns + 16, kColumns * sizeof(float));
}

template <int kParts>
void prepared_product(const float* x, size_t ldx, size_t rows, const float* prepared, size_t K, size_t N, float* y,
                      size_t ldy) {
  const auto* tiles = reinterpret_cast<const uint16_t*>(prepared);
  const size_t depth = rounded_up(K, kDepth), filled = rounded_up(rows, 2 * kTileRows);
  Scratch scratch;
  auto* parts = scratch.take<uint16_t>(filled * kParts * depth);
  cut<kParts>(x, ldx, rows, K, parts);
  alignas(64) float sums[2 * kTileRows * kColumns];
  configure();
  for (size_t n = 0; n < N; n += kColumns) {
    for (size_t m = 0; m < rows; m += 2 * kTileRows) {
      multiply<kParts>(parts + m * kParts * depth, depth, tiles + n * depth * kParts, sums);
      for (size_t row = m; row < least(rows, m + 2 * kTileRows); ++row) {
        std::memcpy(y + row * ldy + n, sums + (row - m) * kColumns, least(kColumns, N - n) * sizeof(float));
      }
    }
  }
  _tile_release();
}

}  // namespace

const AttentionKernels attention_amx = {attend, product, prepare<3>, prepared_product<3>, exp_one};
const AttentionKernels attention_amx_of_rounded = {attend, product, prepare<2>, prepared_product<2>, exp_one};

}  // namespace dsv3
