// Rounding of rows to int8.
#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "int_kernels.h"

namespace dsv3::avx512 {
namespace {

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

// Whether `divided` is exact for this scale: its residues must not underflow, and the theorem excludes a mantissa of
// ones only.
bool ordinary(float scale) {
  return scale > 0x1p-60f && scale < 0x1p60f && (bits_of(scale) & 0x7fffff) != 0x7fffff;
}

// x / scale, rounded as a division rounds it, from the rounded reciprocal: a first step makes the quotient faithful,
// the second correct (Markstein, "Computation of elementary functions on the IBM RISC System/6000 processor", 1990).
DSV3_ALWAYS_INLINE __m512 divided(__m512 x, __m512 scale, __m512 reciprocal) {
  __m512 quotient = _mm512_mul_ps(x, reciprocal);
  quotient = _mm512_fmadd_ps(_mm512_fnmadd_ps(quotient, scale, x), reciprocal, quotient);
  return _mm512_fmadd_ps(_mm512_fnmadd_ps(quotient, scale, x), reciprocal, quotient);
}

DSV3_ALWAYS_INLINE __mmask16 mask_of(size_t left) {
  return left >= 16 ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << left) - 1);
}

DSV3_ALWAYS_INLINE float largest(const float* x, size_t count) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i most = _mm512_setzero_si512();
  for (size_t k = 0; k < count; k += 16) {
    const __m512i value = _mm512_maskz_loadu_epi32(mask_of(count - k), x + k);
    most = _mm512_max_epu32(most, _mm512_and_si512(value, magnitude));
  }
  const uint32_t bits = _mm512_reduce_max_epu32(most);
  float amax;
  std::memcpy(&amax, &bits, 4);
  return amax;
}

template <bool Exactly>
DSV3_ALWAYS_INLINE int32_t round_group(const float* x, size_t count, size_t depth, float scale, int8_t* q) {
  const __m512 by = _mm512_set1_ps(scale), reciprocal = _mm512_set1_ps(1.0f / scale);
  const __m512i most = _mm512_set1_epi32(127), least = _mm512_set1_epi32(-127);
  __m512i sum = _mm512_setzero_si512();
  for (size_t k = 0; k < depth; k += 16) {
    const __m512 value = _mm512_maskz_loadu_ps(k < count ? mask_of(count - k) : 0, x + k);
    const __m512 quotient = Exactly ? _mm512_div_ps(value, by) : divided(value, by, reciprocal);
    __m512i rounded = _mm512_cvt_roundps_epi32(quotient, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    rounded = _mm512_max_epi32(_mm512_min_epi32(rounded, most), least);
    sum = _mm512_add_epi32(sum, rounded);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q + k), _mm512_cvtepi32_epi8(rounded));
  }
  return _mm512_reduce_add_epi32(sum);
}

}  // namespace

void quantise_row(const IntShape& shape, const float* x, int8_t* q, float* scale, int32_t* sum) {
  const size_t groups = shape.groups(), depth = shape.depth();
  for (size_t g = 0; g < groups; ++g) {
    const size_t begin = g * shape.group, left = shape.K - begin, count = left < shape.group ? left : shape.group;
    int8_t* to = q + g * depth;
    const float by = largest(x + begin, count) / 127.0f;
    scale[g] = by;
    if (ordinary(by)) {
      sum[g] = round_group<false>(x + begin, count, depth, by, to);
    } else if (by > 0.0f && by < INFINITY) {
      sum[g] = round_group<true>(x + begin, count, depth, by, to);
    } else {
      std::memset(to, 0, depth);
      sum[g] = 0;
    }
  }
}

}  // namespace dsv3::avx512
