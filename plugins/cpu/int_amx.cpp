// Integer products of many rows by AMX.
//
// A panel's weights are made signed numbers first, in a buffer that stays in the caches for all rows; 4 bits lose their
// zero point there. A tile of 16 rows x 16 columns holds the exact sums of a group. It goes through memory into vector
// registers, where scales are applied; meanwhile the next group's tile is computed.
#include <immintrin.h>

#include <cstring>

#include "int_kernels.h"

namespace dsv3::amx {
namespace {

constexpr size_t kTileRows = 16;
// Fewer rows are faster by vectors.
constexpr size_t kFewRows = 8;
constexpr size_t kAhead = 4096;

// Tiles: 0 and 1 sums of 16 rows, 2 and 3 rows, 4 and 5 weights; 6 and 7 sums and rows of the last, fewer rows.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

// `chunk`: of K, that one tile holds.
void configure(size_t chunk, size_t last_rows) {
  TileConfig config;
  const auto set = [&config](int tile, size_t rows, size_t bytes) {
    config.rows[tile] = static_cast<uint8_t>(rows);
    config.bytes[tile] = static_cast<uint16_t>(bytes);
  };
  set(0, kTileRows, 64), set(1, kTileRows, 64);
  set(2, kTileRows, chunk), set(3, kTileRows, chunk);
  set(4, chunk / 4, 64), set(5, chunk / 4, 64);
  if (last_rows > 0) set(6, last_rows, 64), set(7, last_rows, chunk);
  _tile_loadconfig(&config);
}

// Signed weights of a panel [groups][depth / 4][16 n][4 k]. With 4 bits the zero points are taken off.
void make_signed(const IntMatrix& matrix, size_t panel, int8_t* to) {
  const size_t groups = matrix.groups(), depth = matrix.depth();
  const uint8_t* w = matrix.panel(panel);
  const uint8_t* zeros = matrix.panel_zeros(panel);
  const __m512i low = _mm512_set1_epi8(15), sign = _mm512_set1_epi8(static_cast<char>(128));
  for (size_t g = 0; g < groups; ++g) {
    _mm_prefetch(reinterpret_cast<const char*>(w + kAhead), _MM_HINT_T0);
    w += 64;
    if (matrix.bits == 8) {
      for (size_t quad = 0; quad < depth / 4; ++quad, w += 64, to += 64) {
        _mm_prefetch(reinterpret_cast<const char*>(w + kAhead), _MM_HINT_T0);
        _mm512_store_si512(to, _mm512_xor_si512(_mm512_loadu_si512(w), sign));
      }
      continue;
    }
    __m512i zero = _mm512_set1_epi8(8);
    if (zeros != nullptr) {
      const auto* these = reinterpret_cast<const __m128i*>(zeros + g * kPanel);
      zero = _mm512_mullo_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128(these)), _mm512_set1_epi32(0x01010101));
    }
    for (size_t pair = 0; pair < depth / 8; ++pair, w += 64, to += 128) {
      _mm_prefetch(reinterpret_cast<const char*>(w + kAhead), _MM_HINT_T0);
      const __m512i both = _mm512_loadu_si512(w);
      const __m512i high = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
      _mm512_store_si512(to, _mm512_sub_epi8(_mm512_and_si512(both, low), zero));
      _mm512_store_si512(to + 64, _mm512_sub_epi8(high, zero));
    }
  }
}

// A panel that is to be read next, some lines at a time.
struct Ahead {
  const uint8_t* at;
  const uint8_t* end;
  size_t lines;

  DSV3_ALWAYS_INLINE void step() {
    for (size_t i = 0; i < lines && at < end; ++i, at += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(at), _MM_HINT_T1);
    }
  }
};

struct Job {
  const int8_t* weights;  // signed
  const uint8_t* scales;  // of the first group; one each block_bytes
  const uint8_t* zeros;   // where they are still to be taken off
  size_t depth, chunk, groups, block_bytes;
  const int8_t* q;
  size_t stride;
  const float* scale;
  const int32_t* sum;
  float* y;
  size_t ldy;
  __mmask16 columns;
};

DSV3_ALWAYS_INLINE void group_even(const Job& job, size_t g, int32_t* sums) {
  const int8_t* q = job.q + g * job.depth;
  const int8_t* w = job.weights + g * job.depth * kPanel;
  _tile_zero(0);
  for (size_t k = 0; k < job.depth; k += job.chunk) {
    _tile_loadd(2, q + k, job.stride);
    _tile_loadd(4, w + k * kPanel, 64);
    _tile_dpbssd(0, 2, 4);
  }
  _tile_stored(0, sums, 64);
}

DSV3_ALWAYS_INLINE void group_odd(const Job& job, size_t g, int32_t* sums) {
  const int8_t* q = job.q + g * job.depth;
  const int8_t* w = job.weights + g * job.depth * kPanel;
  _tile_zero(1);
  for (size_t k = 0; k < job.depth; k += job.chunk) {
    _tile_loadd(3, q + k, job.stride);
    _tile_loadd(5, w + k * kPanel, 64);
    _tile_dpbssd(1, 3, 5);
  }
  _tile_stored(1, sums, 64);
}

DSV3_ALWAYS_INLINE void group_of_last_rows(const Job& job, size_t g, int32_t* sums) {
  const int8_t* q = job.q + g * job.depth;
  const int8_t* w = job.weights + g * job.depth * kPanel;
  _tile_zero(6);
  for (size_t k = 0; k < job.depth; k += job.chunk) {
    _tile_loadd(7, q + k, job.stride);
    _tile_loadd(4, w + k * kPanel, 64);
    _tile_dpbssd(6, 7, 4);
  }
  _tile_stored(6, sums, 64);
}

// What is still to be taken off for a zero point of 8 bits, for each unit of a row's sum.
template <bool Zeros>
DSV3_ALWAYS_INLINE __m512i zero_of(const Job& job, size_t g) {
  if constexpr (!Zeros) return _mm512_setzero_si512();
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(job.zeros + g * kPanel));
  return _mm512_sub_epi32(_mm512_cvtepu8_epi32(bytes), _mm512_set1_epi32(128));
}

template <bool Zeros>
DSV3_ALWAYS_INLINE __m512 add_row(const Job& job, size_t g, size_t m, const int32_t* sums, __m512 scale, __m512i zero,
                                  __m512 total) {
  __m512i exact = _mm512_load_si512(sums + m * kPanel);
  const size_t at = m * job.groups + g;
  if constexpr (Zeros) exact = _mm512_sub_epi32(exact, _mm512_mullo_epi32(zero, _mm512_set1_epi32(job.sum[at])));
  const __m512 both = _mm512_mul_ps(_mm512_set1_ps(job.scale[at]), scale);
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(exact), both, total);
}

template <bool Zeros>
DSV3_ALWAYS_INLINE void add_group(const Job& job, size_t g, const int32_t* sums, __m512 (&total)[kTileRows]) {
  const __m512 scale = _mm512_loadu_ps(job.scales + g * job.block_bytes);
  const __m512i zero = zero_of<Zeros>(job, g);
#pragma GCC unroll 16
  for (size_t m = 0; m < kTileRows; ++m) total[m] = add_row<Zeros>(job, g, m, sums, scale, zero, total[m]);
}

template <bool Zeros>
void multiply(const Job& job, Ahead& ahead) {
  alignas(64) int32_t even[kTileRows * kPanel], odd[kTileRows * kPanel];
  __m512 total[kTileRows];
#pragma GCC unroll 16
  for (size_t m = 0; m < kTileRows; ++m) total[m] = _mm512_setzero_ps();
  group_even(job, 0, even);
  size_t g = 0;
  for (; g + 1 < job.groups; g += 2) {
    group_odd(job, g + 1, odd);
    add_group<Zeros>(job, g, even, total);
    ahead.step();
    if (g + 2 < job.groups) group_even(job, g + 2, even);
    add_group<Zeros>(job, g + 1, odd, total);
    ahead.step();
  }
  if (g < job.groups) add_group<Zeros>(job, g, even, total);
#pragma GCC unroll 16
  for (size_t m = 0; m < kTileRows; ++m) _mm512_mask_storeu_ps(job.y + m * job.ldy, job.columns, total[m]);
}

template <bool Zeros>
void multiply_last_rows(const Job& job, size_t rows, Ahead& ahead) {
  alignas(64) int32_t sums[2][kTileRows * kPanel];
  __m512 total[kTileRows];
  for (size_t m = 0; m < rows; ++m) total[m] = _mm512_setzero_ps();
  group_of_last_rows(job, 0, sums[0]);
  for (size_t g = 0; g < job.groups; ++g) {
    if (g + 1 < job.groups) group_of_last_rows(job, g + 1, sums[(g + 1) % 2]);
    const __m512 scale = _mm512_loadu_ps(job.scales + g * job.block_bytes);
    const __m512i zero = zero_of<Zeros>(job, g);
    for (size_t m = 0; m < rows; ++m) total[m] = add_row<Zeros>(job, g, m, sums[g % 2], scale, zero, total[m]);
    ahead.step();
  }
  for (size_t m = 0; m < rows; ++m) _mm512_mask_storeu_ps(job.y + m * job.ldy, job.columns, total[m]);
}

template <bool Zeros>
void all_rows(Job job, const QuantisedRows& rows, float* y, Ahead& ahead) {
  for (size_t m = 0; m < rows.rows; m += kTileRows) {
    job.q = rows.q + m * rows.stride;
    job.scale = rows.scale + m * job.groups;
    job.sum = rows.sum + m * job.groups;
    job.y = y + m * job.ldy;
    if (rows.rows - m >= kTileRows) {
      multiply<Zeros>(job, ahead);
    } else {
      multiply_last_rows<Zeros>(job, rows.rows - m, ahead);
    }
  }
}

}  // namespace

void int_panel(const IntMatrix& matrix, size_t first, size_t count, const QuantisedRows& rows, float* y, size_t ldy) {
  if (rows.rows <= kFewRows) return avx512::int_panel(matrix, first, count, rows, y, ldy);
  Scratch scratch;
  Job job{};
  job.depth = matrix.depth();
  job.chunk = job.depth % 64 == 0 ? 64 : 32;
  job.groups = matrix.groups();
  job.block_bytes = matrix.block_bytes();
  job.stride = rows.stride;
  job.ldy = ldy;
  int8_t* weights = scratch.take<int8_t>(job.groups * job.depth * kPanel);
  job.weights = weights;
  const size_t steps = (rows.rows + kTileRows - 1) / kTileRows * job.groups;
  configure(job.chunk, rows.rows % kTileRows);
  for (size_t p = first; p < first + count; ++p, y += kPanel) {
    make_signed(matrix, p, weights);
    // The compiler does not know that tiles read memory.
    __asm__ volatile("" ::: "memory");
    const size_t columns = matrix.N - p * kPanel;
    job.scales = matrix.panel(p);
    job.zeros = matrix.bits == 8 ? matrix.panel_zeros(p) : nullptr;
    job.columns = columns < kPanel ? static_cast<__mmask16>((1u << columns) - 1) : static_cast<__mmask16>(0xffff);
    const uint8_t* next = matrix.panel(p + 1);
    const size_t bytes = p + 1 < first + count ? matrix.panel_bytes() : 0;
    Ahead ahead{next, next + bytes, (bytes / 64 + steps - 1) / steps};
    if (job.zeros != nullptr) {
      all_rows<true>(job, rows, y, ahead);
    } else {
      all_rows<false>(job, rows, y, ahead);
    }
  }
  _tile_release();
}

}  // namespace dsv3::amx
