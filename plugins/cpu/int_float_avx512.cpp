// Products of float32 rows with integer weights: numbers become floats in registers.
#include <immintrin.h>

#include "int_kernels.h"
#include "int_scales.h"

namespace dsv3::avx512 {
namespace {

constexpr int kMostRows = 4;

struct Job {
  const IntMatrix* matrix;
  size_t panel;
  const float* x;
  size_t ldx;
  float* y;
  size_t ldy;
};

// Quad number `quad` of a block, a byte each.
template <int Bits>
DSV3_ALWAYS_INLINE __m512i bytes_of(const uint8_t* block, size_t quad) {
  if constexpr (Bits == 8) return _mm512_loadu_si512(block + quad * 64);
  const __m512i both = _mm512_loadu_si512(block + quad / 2 * 64);
  return _mm512_and_si512(_mm512_srl_epi16(both, _mm_cvtsi32_si128(quad % 2 * 4)), _mm512_set1_epi8(15));
}

template <int Rows>
struct Lanes {
  __m512 of[Rows][4];
};

// x[m * ldx + i] for the four numbers i of a quad.
template <int Rows>
DSV3_ALWAYS_INLINE void add_quad(Lanes<Rows>& lanes, __m512i bytes, __m512 zero, const float* x, size_t ldx) {
  const __m512i low = _mm512_set1_epi32(255);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512i number = _mm512_and_si512(_mm512_srli_epi32(bytes, 8 * i), low);
    const __m512 weight = _mm512_sub_ps(_mm512_cvtepi32_ps(number), zero);
#pragma GCC unroll 4
    for (int m = 0; m < Rows; ++m) {
      lanes.of[m][i] = _mm512_fmadd_ps(_mm512_set1_ps(x[m * ldx + i]), weight, lanes.of[m][i]);
    }
  }
}

template <int Bits, int Rows>
DSV3_ALWAYS_INLINE void add_group(Lanes<Rows>& lanes, const uint8_t* block, __m512 zero, const Job& job, size_t begin,
                                  size_t count) {
  for (size_t quad = 0; quad < count / 4; ++quad) {
    add_quad<Rows>(lanes, bytes_of<Bits>(block, quad), zero, job.x + begin + quad * 4, job.ldx);
  }
  if (count % 4 == 0) return;
  float last[Rows * 4] = {};
  for (int m = 0; m < Rows; ++m) {
    for (size_t i = 0; i < count % 4; ++i) last[m * 4 + i] = job.x[m * job.ldx + begin + count / 4 * 4 + i];
  }
  add_quad<Rows>(lanes, bytes_of<Bits>(block, count / 4), zero, last, 4);
}

template <int Bits, int Rows>
void multiply(const Job& job) {
  const IntMatrix& matrix = *job.matrix;
  const size_t groups = matrix.groups();
  const uint8_t* panel = matrix.panel(job.panel);
  const uint8_t* zeros = matrix.panel_zeros(job.panel);
  __m512 zero = _mm512_set1_ps(1 << (Bits - 1)), total[Rows];
  for (int m = 0; m < Rows; ++m) total[m] = _mm512_setzero_ps();
  for (size_t g = 0; g < groups; ++g) {
    const uint8_t* numbers = panel + matrix.numbers_at(g);
    const size_t begin = g * matrix.group, left = matrix.K - begin;
    if (zeros != nullptr) {
      const auto* these = reinterpret_cast<const __m128i*>(zeros + g * kPanel);
      zero = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(these)));
    }
    Lanes<Rows> lanes;
#pragma GCC unroll 4
    for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) lanes.of[m][i] = _mm512_setzero_ps();
    }
    add_group<Bits, Rows>(lanes, numbers, zero, job, begin, left < matrix.group ? left : matrix.group);
    const __m512 scale = load_scales(panel + matrix.scales_at(g), matrix.narrow_scales);
#pragma GCC unroll 4
    for (int m = 0; m < Rows; ++m) {
      const __m512* lane = lanes.of[m];
      const __m512 sum = _mm512_add_ps(_mm512_add_ps(lane[0], lane[1]), _mm512_add_ps(lane[2], lane[3]));
      total[m] = _mm512_fmadd_ps(sum, scale, total[m]);
    }
  }
  const size_t columns = matrix.N - job.panel * kPanel;
  const auto mask = static_cast<__mmask16>(columns < kPanel ? (1u << columns) - 1 : 0xffffu);
  for (int m = 0; m < Rows; ++m) _mm512_mask_storeu_ps(job.y + m * job.ldy, mask, total[m]);
}

using Multiply = void (*)(const Job&);
template <int Bits>
constexpr Multiply kByRows[kMostRows] = {multiply<Bits, 1>, multiply<Bits, 2>, multiply<Bits, 3>, multiply<Bits, 4>};

}  // namespace

void float_panel(const IntMatrix& matrix, size_t first, size_t count, const float* x, size_t ldx, size_t rows, float* y,
                 size_t ldy) {
  const Multiply* multiply = matrix.bits == 8 ? kByRows<8> : kByRows<4>;
  for (size_t p = first; p < first + count; ++p, y += kPanel) {
    for (size_t m = 0; m < rows; m += kMostRows) {
      const size_t part = rows - m < kMostRows ? rows - m : kMostRows;
      multiply[part - 1]({&matrix, p, x + m * ldx, ldx, y + m * ldy, ldy});
    }
  }
}

}  // namespace dsv3::avx512
