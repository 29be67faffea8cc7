// Products of float32 rows with integer weights: numbers become floats in registers.
#include <immintrin.h>

#include <cstring>

#include "int_kernels.h"
#include "int_scales.h"

namespace dsv3::avx2 {
namespace {

// One row meets eight columns of a panel.
struct Job {
  const IntMatrix* matrix;
  size_t panel;
  int half;
  const float* x;
};

template <int Bits>
DSV3_ALWAYS_INLINE __m256i bytes_of(const uint8_t* half_block, size_t quad) {
  if constexpr (Bits == 8) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(half_block + quad * 64));
  const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(half_block + quad / 2 * 64));
  return _mm256_and_si256(_mm256_srl_epi16(both, _mm_cvtsi32_si128(quad % 2 * 4)), _mm256_set1_epi8(15));
}

DSV3_ALWAYS_INLINE void add_quad(__m256 (&lanes)[4], __m256i bytes, __m256 zero, const float* x) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m256i number = _mm256_and_si256(_mm256_srli_epi32(bytes, 8 * i), _mm256_set1_epi32(255));
    const __m256 weight = _mm256_sub_ps(_mm256_cvtepi32_ps(number), zero);
    lanes[i] = _mm256_fmadd_ps(_mm256_set1_ps(x[i]), weight, lanes[i]);
  }
}

template <int Bits>
__m256 multiply(const Job& job) {
  const IntMatrix& matrix = *job.matrix;
  const size_t groups = matrix.groups();
  const uint8_t* panel = matrix.panel(job.panel);
  const uint8_t* zeros = matrix.panel_zeros(job.panel);
  __m256 zero = _mm256_set1_ps(1 << (Bits - 1)), total = _mm256_setzero_ps();
  for (size_t g = 0; g < groups; ++g) {
    const uint8_t* numbers = panel + matrix.numbers_at(g);
    const size_t left = matrix.K - g * matrix.group, count = left < matrix.group ? left : matrix.group;
    const float* x = job.x + g * matrix.group;
    const uint8_t* block = numbers + 32 * job.half;
    if (zeros != nullptr) {
      const auto* these = reinterpret_cast<const __m128i*>(zeros + g * kPanel + 8 * job.half);
      zero = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(these)));
    }
    __m256 lanes[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    for (size_t quad = 0; quad < count / 4; ++quad) add_quad(lanes, bytes_of<Bits>(block, quad), zero, x + quad * 4);
    if (count % 4 != 0) {
      float last[4] = {};
      std::memcpy(last, x + count / 4 * 4, count % 4 * sizeof(float));
      add_quad(lanes, bytes_of<Bits>(block, count / 4), zero, last);
    }
    const __m256 sum = _mm256_add_ps(_mm256_add_ps(lanes[0], lanes[1]), _mm256_add_ps(lanes[2], lanes[3]));
    const __m256 scale = load_scales(panel + matrix.scales_at(g), matrix.narrow_scales, job.half);
    total = _mm256_fmadd_ps(sum, scale, total);
  }
  return total;
}

}  // namespace

void float_panel(const IntMatrix& matrix, size_t first, size_t count, const float* x, size_t ldx, size_t rows, float* y,
                 size_t ldy) {
  for (size_t p = first; p < first + count; ++p, y += kPanel) {
    const size_t left = matrix.N - p * kPanel, columns = left < kPanel ? left : kPanel;
    for (size_t m = 0; m < rows; ++m) {
      float values[kPanel];
      for (int half = 0; half < 2; ++half) {
        const Job job = {&matrix, p, half, x + m * ldx};
        _mm256_storeu_ps(values + 8 * half, matrix.bits == 8 ? multiply<8>(job) : multiply<4>(job));
      }
      std::memcpy(y + m * ldy, values, columns * sizeof(float));
    }
  }
}

}  // namespace dsv3::avx2
