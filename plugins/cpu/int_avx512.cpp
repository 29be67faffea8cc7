// Integer products of few rows by VNNI: weights are read from memory once for up to eight rows.
#include <immintrin.h>

#include <cstring>

#include "int_kernels.h"
#include "int_scales.h"

namespace dsv3::avx512 {
namespace {

// Bytes ahead in the stream of weights, to the first and to the second level's cache. The processor's own prefetching
// stops at each 4 KiB page.
constexpr size_t kNear = 512, kFar = 4096;
// Where arithmetic takes the time of reading, one prefetch of a line is enough.
constexpr size_t kMiddle = 2048;

constexpr int kMostRows = 8;

// Panels that are read at the same time, and the rows that meet them.
struct Job {
  const uint8_t* at;
  const uint8_t* zeros;
  size_t panel_bytes, panel_zeros, panel_columns;  // from one of the panels to the next
  size_t depth, groups;
  bool cold;  // further rows find the panels in the cache
  bool narrow_scales;
  const int8_t* q;
  size_t stride;
  const float* scale;
  const int32_t* start;  // of the integer sums: what all weights without a zero point have too much; not with zeros
  const int32_t* sum;
  float* y;
  size_t ldy;
  __mmask16 columns;  // of the last panel
};

DSV3_ALWAYS_INLINE __m512i quad_of(const int8_t* q) {
  int32_t four;
  std::memcpy(&four, q, 4);
  return _mm512_set1_epi32(four);
}

// Sums in several chains, because an addition waits five cycles for the one before it.
template <int Rows, int Panels>
constexpr int kChains = Rows * Panels == 1 ? 4 : Rows * Panels <= 4 ? 2 : 1;

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

template <int Rows, int Panels>
struct Sums {
  __m512i of[Panels][Rows][kChains<Rows, Panels>];
};

template <int Rows, int Panels>
DSV3_ALWAYS_INLINE void add_quad(Sums<Rows, Panels>& sums, int panel, __m512i weights, const int8_t* q, size_t stride,
                                 int chain) {
#pragma GCC unroll 8
  for (int m = 0; m < Rows; ++m) {
    __m512i& sum = sums.of[panel][m][chain % kChains<Rows, Panels>];
    sum = _mm512_dpbusd_epi32(sum, weights, quad_of(q + m * stride));
  }
}

// 16 numbers along K: of each panel 256 bytes of weights, or 128, from `w` on.
template <int Bits, int Rows, int Panels>
DSV3_ALWAYS_INLINE void add_four_quads(Sums<Rows, Panels>& sums, const uint8_t* w, const int8_t* q, const Job& job) {
#pragma GCC unroll 4
  for (int i = 0; i < Bits / 2; ++i, w += 64) {
#pragma GCC unroll 2
    for (int panel = 0; panel < Panels; ++panel) {
      const uint8_t* line = w + panel * job.panel_bytes;
      prefetch<Bits, Rows>(line, job);
      const __m512i found = _mm512_loadu_si512(line);
      if constexpr (Bits == 8) {
        add_quad<Rows, Panels>(sums, panel, found, q + 4 * i, job.stride, i);
      } else {
        const __m512i low = _mm512_set1_epi8(15);
        add_quad<Rows, Panels>(sums, panel, _mm512_and_si512(found, low), q + 8 * i, job.stride, 2 * i);
        add_quad<Rows, Panels>(sums, panel, _mm512_and_si512(_mm512_srli_epi16(found, 4), low), q + 8 * i + 4,
                               job.stride, 2 * i + 1);
      }
    }
  }
}

template <int Rows, int Panels>
DSV3_ALWAYS_INLINE __m512i total_of(const Sums<Rows, Panels>& sums, int panel, int m) {
  __m512i sum = sums.of[panel][m][0];
#pragma GCC unroll 4
  for (int chain = 1; chain < kChains<Rows, Panels>; ++chain) sum = _mm512_add_epi32(sum, sums.of[panel][m][chain]);
  return sum;
}

template <int Bits, bool Zeros, int Rows, int Panels = 1>
void multiply(const Job& job) {
  __m512 total[Panels][Rows];
#pragma GCC unroll 8
  for (int m = 0; m < Rows * Panels; ++m) total[m / Rows][m % Rows] = _mm512_setzero_ps();
  const uint8_t* w = job.at;
  const int8_t* q = job.q;
  const uint8_t* scales = w;
  for (size_t g = 0; g < job.groups; ++g) {
    __m512 scale[Panels];
    Sums<Rows, Panels> sums;
    const bool second = job.narrow_scales && g % 2 == 1;  // of those that share a line of scales
    if (second) {
      scales += kScaleLine / 2;
    } else {
      scales = w;
      w += kScaleLine;
    }
#pragma GCC unroll 2
    for (int panel = 0; panel < Panels; ++panel) {
      const uint8_t* line = scales + panel * job.panel_bytes;
      if (!second) prefetch<Bits, Rows>(line, job);
      scale[panel] = load_scales(line, job.narrow_scales);
#pragma GCC unroll 8
      for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 4
        for (int chain = 0; chain < kChains<Rows, Panels>; ++chain) {
          sums.of[panel][m][chain] = _mm512_setzero_si512();
        }
        if constexpr (!Zeros) sums.of[panel][m][0] = _mm512_set1_epi32(job.start[m * job.groups + g]);
      }
    }
    for (const int8_t* end = q + job.depth; q < end; q += 16, w += 32 * Bits) {
      add_four_quads<Bits, Rows, Panels>(sums, w, q, job);
    }
#pragma GCC unroll 2
    for (int panel = 0; panel < Panels; ++panel) {
      __m512i zero = _mm512_setzero_si512();
      if constexpr (Zeros) {
        const uint8_t* zeros = job.zeros + panel * job.panel_zeros + g * kPanel;
        zero = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros)));
      }
#pragma GCC unroll 8
      for (int m = 0; m < Rows; ++m) {
        __m512i sum = total_of<Rows, Panels>(sums, panel, m);
        if constexpr (Zeros) {
          sum = _mm512_sub_epi32(sum, _mm512_mullo_epi32(zero, _mm512_set1_epi32(job.sum[m * job.groups + g])));
        }
        const __m512 exact = _mm512_cvtepi32_ps(sum);
        const __m512 both = _mm512_mul_ps(_mm512_set1_ps(job.scale[m * job.groups + g]), scale[panel]);
        total[panel][m] = _mm512_fmadd_ps(exact, both, total[panel][m]);
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < Rows; ++m) {
    float* y = job.y + m * job.ldy;
#pragma GCC unroll 2
    for (int panel = 0; panel + 1 < Panels; ++panel) _mm512_storeu_ps(y + panel * job.panel_columns, total[panel][m]);
    _mm512_mask_storeu_ps(y + (Panels - 1) * job.panel_columns, job.columns, total[Panels - 1][m]);
  }
}

using Multiply = void (*)(const Job&);

template <int Bits, bool Zeros>
constexpr Multiply kByRows[kMostRows] = {multiply<Bits, Zeros, 1>, multiply<Bits, Zeros, 2>, multiply<Bits, Zeros, 3>,
                                         multiply<Bits, Zeros, 4>, multiply<Bits, Zeros, 5>, multiply<Bits, Zeros, 6>,
                                         multiply<Bits, Zeros, 7>, multiply<Bits, Zeros, 8>};
// Of few rows two panels at once: a core has more reads of memory under way from two streams than from one.
constexpr size_t kRowsOfTwo = 4;
template <int Bits, bool Zeros>
constexpr Multiply kTwoByRows[kRowsOfTwo] = {multiply<Bits, Zeros, 1, 2>, multiply<Bits, Zeros, 2, 2>,
                                             multiply<Bits, Zeros, 3, 2>, multiply<Bits, Zeros, 4, 2>};

const Multiply* by_rows(const IntMatrix& matrix) {
  if (matrix.bits == 8) return matrix.zero_points ? kByRows<8, true> : kByRows<8, false>;
  return matrix.zero_points ? kByRows<4, true> : kByRows<4, false>;
}

const Multiply* two_by_rows(const IntMatrix& matrix) {
  if (matrix.bits == 8) return matrix.zero_points ? kTwoByRows<8, true> : kTwoByRows<8, false>;
  return matrix.zero_points ? kTwoByRows<4, true> : kTwoByRows<4, false>;
}

__mmask16 columns_of(const IntMatrix& matrix, size_t panel) {
  const size_t columns = matrix.N - panel * kPanel;
  return static_cast<__mmask16>(columns < kPanel ? (1u << columns) - 1 : 0xffffu);
}

}  // namespace

void int_panel(const IntMatrix& matrix, size_t first, size_t count, const QuantisedRows& rows, float* y, size_t ldy) {
  Job job{};
  job.depth = matrix.depth();
  job.groups = matrix.groups();
  job.narrow_scales = matrix.narrow_scales;
  job.panel_bytes = matrix.panel_bytes();
  job.panel_zeros = job.groups * kPanel;
  job.stride = rows.stride;
  job.ldy = ldy;
  Scratch scratch;
  int32_t* start = nullptr;
  if (!matrix.zero_points) {
    start = scratch.take<int32_t>(rows.rows * job.groups);
    for (size_t i = 0; i < rows.rows * job.groups; ++i) start[i] = -(rows.sum[i] * (1 << (matrix.bits - 1)));
  }
  // All rows by some panels: `multiply` for each number of rows, `last` the last of the panels.
  const auto run = [&](const Multiply* multiply, size_t panel, size_t last) {
    job.at = matrix.panel(panel);
    job.zeros = matrix.panel_zeros(panel);
    job.columns = columns_of(matrix, last);
    for (size_t m = 0; m < rows.rows; m += kMostRows) {
      const size_t part = rows.rows - m < kMostRows ? rows.rows - m : kMostRows;
      job.cold = m == 0;
      job.q = rows.q + m * rows.stride;
      job.scale = rows.scale + m * job.groups;
      job.sum = rows.sum + m * job.groups;
      job.start = start == nullptr ? nullptr : start + m * job.groups;
      job.y = y + m * ldy + (panel - first) * kPanel;
      multiply[part - 1](job);
    }
  };
  // The second stream begins in the middle, so that what is fetched ahead of each is read soon.
  const size_t pairs = rows.rows <= kRowsOfTwo ? count / 2 : 0;
  job.panel_bytes *= pairs;
  job.panel_zeros *= pairs;
  job.panel_columns = kPanel * pairs;
  for (size_t panel = first; panel < first + pairs; ++panel) run(two_by_rows(matrix), panel, panel + pairs);
  for (size_t panel = first + 2 * pairs; panel < first + count; ++panel) run(by_rows(matrix), panel, panel);
}

}  // namespace dsv3::avx512
