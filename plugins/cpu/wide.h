// Sixteen float32 side by side, in as many registers as the including file's instruction set needs; weights of any float
// type are widened as they are loaded. Everything here is of the including file's own: see isa.h.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "widen.h"

namespace dsv3 {
namespace {

constexpr size_t kWide = 16;

// Numbers in memory.
struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};
struct F8 {
  uint8_t bits;
};

#if defined(__AVX2__)

// Bits of float16 numbers 2^-8 times those of e4m3 in each 16 bits; exponent and mantissa lie the same way, 7 bits higher.
// Of the format's one NaN a NaN: it is where adding 1 carries.
inline __m256i f16_of_f8(__m256i bytes) {
  const __m256i magnitude = _mm256_and_si256(bytes, _mm256_set1_epi16(0x7f));
  const __m256i sign = _mm256_slli_epi16(_mm256_sub_epi16(bytes, magnitude), 8);
  const __m256i carry = _mm256_and_si256(_mm256_add_epi16(magnitude, _mm256_set1_epi16(1)), _mm256_set1_epi16(0x80));
  return _mm256_or_si256(_mm256_slli_epi16(_mm256_or_si256(magnitude, carry), 7), sign);
}

inline __m256i sixteen_bytes(const F8* from) {
  return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

inline __m256i sixteen_halves(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

// Of four registers with 4 parts each: ((0 + 2) + (1 + 3)) of each, side by side.
inline __m128 sums_of_four(__m128 a, __m128 b, __m128 c, __m128 d) {
  _MM_TRANSPOSE4_PS(a, b, c, d);
  return _mm_add_ps(_mm_add_ps(a, c), _mm_add_ps(b, d));
}

#endif

#if defined(__AVX512F__)

struct Wide {
  __m512 v;
};

inline Wide all(float value) { return {_mm512_set1_ps(value)}; }
inline Wide fma(Wide a, Wide b, Wide c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Wide load(const float* from) { return {_mm512_loadu_ps(from)}; }
inline Wide load(const Bf16* from) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(sixteen_halves(from)), 16))};
}
inline Wide load(const F16* from) { return {_mm512_cvtph_ps(sixteen_halves(from))}; }
inline Wide load(const F8* from) {
  return {_mm512_mul_ps(_mm512_cvtph_ps(f16_of_f8(sixteen_bytes(from))), _mm512_set1_ps(256.0f))};
}

inline __m128 quarters(Wide parts) {
  const __m256 high = _mm512_extractf32x8_ps(parts.v, 1);
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(parts.v), high);
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

struct Wide {
  __m256 low, high;
};

inline Wide all(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
inline Wide fma(Wide a, Wide b, Wide c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Wide load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline Wide load(const Bf16* from) {
  const __m256i all = sixteen_halves(from);
  const __m256i low = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(all));
  const __m256i high = _mm256_cvtepu16_epi32(_mm256_extracti128_si256(all, 1));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(low, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(high, 16))};
}
inline Wide wide_of_f16(__m256i halves) {
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(halves)), _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))};
}
inline Wide load(const F16* from) { return wide_of_f16(sixteen_halves(from)); }
inline Wide load(const F8* from) {
  const Wide small = wide_of_f16(f16_of_f8(sixteen_bytes(from)));
  const __m256 scale = _mm256_set1_ps(256.0f);
  return {_mm256_mul_ps(small.low, scale), _mm256_mul_ps(small.high, scale)};
}

inline __m128 quarters(Wide parts) {
  const __m256 half = _mm256_add_ps(parts.low, parts.high);
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

#else

struct Wide {
  float v[kWide];
};

inline Wide all(float value) {
  Wide wide;
  for (float& one : wide.v) one = value;
  return wide;
}
inline Wide fma(Wide a, Wide b, Wide c) {
  for (size_t i = 0; i < kWide; ++i) c.v[i] = std::fmaf(a.v[i], b.v[i], c.v[i]);
  return c;
}

inline float widen(float value) { return value; }
inline float widen(Bf16 value) { return widen_bf16(value.bits); }
inline float widen(F16 value) { return widen_f16(value.bits); }
inline float widen(F8 value) {
  const unsigned magnitude = value.bits & 0x7fu, carry = (magnitude + 1) & 0x80u;
  return widen_f16(static_cast<uint16_t>((magnitude | carry) << 7 | (value.bits & 0x80u) << 8)) * 256.0f;
}

template <typename Number>
Wide load(const Number* from) {
  Wide wide;
  for (size_t i = 0; i < kWide; ++i) wide.v[i] = widen(from[i]);
  return wide;
}

#endif

// The first `count` numbers, then zeros.
template <typename Number>
inline Wide load_some(const Number* from, size_t count) {
  Number filled[kWide] = {};
  std::memcpy(filled, from, count * sizeof(Number));
  return load(filled);
}

// The sums of four numbers' parts.
#if defined(__AVX2__)
inline void sum_four(const Wide (&parts)[4], float (&sums)[4]) {
  const __m128 made = sums_of_four(quarters(parts[0]), quarters(parts[1]), quarters(parts[2]), quarters(parts[3]));
  _mm_storeu_ps(sums, made);
}
#else
inline void sum_four(const Wide (&parts)[4], float (&sums)[4]) {
  for (size_t c = 0; c < 4; ++c) {
    Wide left = parts[c];
    for (size_t half = kWide / 2; half > 0; half /= 2) {
      for (size_t i = 0; i < half; ++i) left.v[i] += left.v[i + half];
    }
    sums[c] = left.v[0];
  }
}
#endif

}  // namespace
}  // namespace dsv3
