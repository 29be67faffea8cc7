// The scales of a group as packed: float, or bfloat16.
#pragma once

#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "int_matmul.h"

namespace dsv3 {

inline float scale_of(const uint8_t* scales, bool narrow, size_t n) {
  uint32_t bits = 0;
  if (narrow) {
    std::memcpy(reinterpret_cast<uint8_t*>(&bits) + 2, scales + 2 * n, 2);
  } else {
    std::memcpy(&bits, scales + 4 * n, 4);
  }
  float scale;
  std::memcpy(&scale, &bits, 4);
  return scale;
}

#if defined(__AVX512F__)
DSV3_ALWAYS_INLINE __m512 load_scales(const uint8_t* scales, bool narrow) {
  if (!narrow) return _mm512_loadu_ps(scales);
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}
#elif defined(__AVX2__)
// Of columns [8 * half, 8 * half + 8).
DSV3_ALWAYS_INLINE __m256 load_scales(const uint8_t* scales, bool narrow, int half) {
  if (!narrow) return _mm256_loadu_ps(reinterpret_cast<const float*>(scales) + 8 * half);
  const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(scales) + half);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}
#endif

}  // namespace dsv3
