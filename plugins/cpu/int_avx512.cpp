// Integer products of few rows by VNNI: weights are read from memory once for up to eight rows.
#include <immintrin.h>

#include <cstring>

#include "int_kernels.h"

namespace dsv3::avx512 {
namespace {

// Bytes ahead in the stream of weights, to the first and to the second level's cache. The processor's own prefetching
// stops at each 4 KiB page.
constexpr size_t kNear = 512, kFar = 4096;
// Where arithmetic takes the time of reading, one prefetch of a line is enough.
constexpr size_t kMiddle = 2048;

constexpr int kMostRows = 8;

// A panel, and the rows that meet it.
struct Job {
  const uint8_t* at;
  const uint8_t* zeros;
  size_t depth, groups;
  bool cold;  // further rows find the panel in the cache
  const int8_t* q;
  size_t stride;
  const float* scale;
  const int32_t* start;  // of the integer sums: what all weights without a zero point have too much; not with zeros
  const int32_t* sum;
  float* y;
  size_t ldy;
  __mmask16 columns;
};

DSV3_ALWAYS_INLINE __m512i quad_of(const int8_t* q) {
  int32_t four;
  std::memcpy(&four, q, 4);
  return _mm512_set1_epi32(four);
}

// Sums in several chains, because an addition waits five cycles for the one before it.
template <int Rows>
constexpr int kChains = Rows == 1 ? 4 : Rows <= 4 ? 2 : 1;

template <int Bits, int Rows>
DSV3_ALWAYS_INLINE void prefetch(const uint8_t* line, const Job& job) {
  const char* at = reinterpret_cast<const char*>(line);
  if constexpr (Bits == 8 || Rows <= 4) {
    _mm_prefetch(at + (job.cold ? kNear : 0), _MM_HINT_T0);
    _mm_prefetch(at + (job.cold ? kFar : 0), _MM_HINT_T1);
  } else {
    _mm_prefetch(at + (job.cold ? kMiddle : 0), _MM_HINT_T0);
  }
}

template <int Rows>
struct Sums {
  __m512i of[Rows][kChains<Rows>];
};

template <int Rows>
DSV3_ALWAYS_INLINE void add_quad(Sums<Rows>& sums, __m512i weights, const int8_t* q, size_t stride, int chain) {
#pragma GCC unroll 8
  for (int m = 0; m < Rows; ++m) {
    __m512i& sum = sums.of[m][chain % kChains<Rows>];
    sum = _mm512_dpbusd_epi32(sum, weights, quad_of(q + m * stride));
  }
}

// 16 numbers along K: 256 bytes of weights, or 128.
template <int Bits, int Rows>
DSV3_ALWAYS_INLINE const uint8_t* add_four_quads(Sums<Rows>& sums, const uint8_t* w, const int8_t* q, const Job& job) {
  if constexpr (Bits == 8) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i, w += 64) {
      prefetch<Bits, Rows>(w, job);
      add_quad<Rows>(sums, _mm512_loadu_si512(w), q + 4 * i, job.stride, i);
    }
  } else {
    const __m512i low = _mm512_set1_epi8(15);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i, w += 64) {
      prefetch<Bits, Rows>(w, job);
      const __m512i both = _mm512_loadu_si512(w);
      add_quad<Rows>(sums, _mm512_and_si512(both, low), q + 8 * i, job.stride, 2 * i);
      add_quad<Rows>(sums, _mm512_and_si512(_mm512_srli_epi16(both, 4), low), q + 8 * i + 4, job.stride, 2 * i + 1);
    }
  }
  return w;
}

template <int Rows>
DSV3_ALWAYS_INLINE __m512i total_of(const Sums<Rows>& sums, int m) {
  __m512i sum = sums.of[m][0];
#pragma GCC unroll 4
  for (int chain = 1; chain < kChains<Rows>; ++chain) sum = _mm512_add_epi32(sum, sums.of[m][chain]);
  return sum;
}

template <int Bits, bool Zeros, int Rows>
void multiply(const Job& job) {
  __m512 total[Rows];
#pragma GCC unroll 8
  for (int m = 0; m < Rows; ++m) total[m] = _mm512_setzero_ps();
  const uint8_t* w = job.at;
  const int8_t* q = job.q;
  for (size_t g = 0; g < job.groups; ++g) {
    prefetch<Bits, Rows>(w, job);
    const __m512 scale = _mm512_loadu_ps(w);
    w += 64;
    Sums<Rows> sums;
#pragma GCC unroll 8
    for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 4
      for (int chain = 0; chain < kChains<Rows>; ++chain) sums.of[m][chain] = _mm512_setzero_si512();
      if constexpr (!Zeros) sums.of[m][0] = _mm512_set1_epi32(job.start[m * job.groups + g]);
    }
    for (const int8_t* end = q + job.depth; q < end; q += 16) w = add_four_quads<Bits, Rows>(sums, w, q, job);
    __m512i zero = _mm512_setzero_si512();
    if constexpr (Zeros) {
      zero = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(job.zeros + g * kPanel)));
    }
#pragma GCC unroll 8
    for (int m = 0; m < Rows; ++m) {
      __m512i sum = total_of<Rows>(sums, m);
      if constexpr (Zeros) {
        sum = _mm512_sub_epi32(sum, _mm512_mullo_epi32(zero, _mm512_set1_epi32(job.sum[m * job.groups + g])));
      }
      const __m512 exact = _mm512_cvtepi32_ps(sum);
      const __m512 both = _mm512_mul_ps(_mm512_set1_ps(job.scale[m * job.groups + g]), scale);
      total[m] = _mm512_fmadd_ps(exact, both, total[m]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < Rows; ++m) _mm512_mask_storeu_ps(job.y + m * job.ldy, job.columns, total[m]);
}

using Multiply = void (*)(const Job&);

template <int Bits, bool Zeros>
constexpr Multiply kByRows[kMostRows] = {multiply<Bits, Zeros, 1>, multiply<Bits, Zeros, 2>, multiply<Bits, Zeros, 3>,
                                         multiply<Bits, Zeros, 4>, multiply<Bits, Zeros, 5>, multiply<Bits, Zeros, 6>,
                                         multiply<Bits, Zeros, 7>, multiply<Bits, Zeros, 8>};

const Multiply* by_rows(const IntMatrix& matrix) {
  if (matrix.bits == 8) return matrix.zero_points ? kByRows<8, true> : kByRows<8, false>;
  return matrix.zero_points ? kByRows<4, true> : kByRows<4, false>;
}

}  // namespace

void int_panel(const IntMatrix& matrix, size_t first, size_t count, const QuantisedRows& rows, float* y, size_t ldy) {
  const Multiply* multiply = by_rows(matrix);
  Job job;
  job.depth = matrix.depth();
  job.groups = matrix.groups();
  job.stride = rows.stride;
  job.ldy = ldy;
  Scratch scratch;
  int32_t* start = nullptr;
  if (!matrix.zero_points) {
    start = scratch.take<int32_t>(rows.rows * job.groups);
    for (size_t i = 0; i < rows.rows * job.groups; ++i) start[i] = -(rows.sum[i] * (1 << (matrix.bits - 1)));
  }
  for (size_t p = first; p < first + count; ++p, y += kPanel) {
    const size_t columns = matrix.N - p * kPanel;
    job.at = matrix.panel(p);
    job.zeros = matrix.panel_zeros(p);
    job.columns = static_cast<__mmask16>(columns < kPanel ? (1u << columns) - 1 : 0xffffu);
    for (size_t m = 0; m < rows.rows; m += kMostRows) {
      const size_t part = rows.rows - m < kMostRows ? rows.rows - m : kMostRows;
      job.cold = m == 0;
      job.q = rows.q + m * rows.stride;
      job.scale = rows.scale + m * job.groups;
      job.sum = rows.sum + m * job.groups;
      job.start = start == nullptr ? nullptr : start + m * job.groups;
      job.y = y + m * ldy;
      multiply[part - 1](job);
    }
  }
}

}  // namespace dsv3::avx512
