// A vector of float32 as wide as the instruction set that the including file is compiled for; one number in plain C++.
//
// All operations round as IEEE 754 says, number by number, so that a formula in them gives the same bits everywhere.
// Everything here is of the including file's own: see isa.h.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace dsv3 {
namespace {

#if defined(__AVX512F__)

struct Lanes {
  static constexpr size_t kWidth = 16;
  __m512 v;

  static Lanes all(float value) { return {_mm512_set1_ps(value)}; }
  static Lanes load(const float* from) { return {_mm512_loadu_ps(from)}; }
  void store(float* to) const { _mm512_storeu_ps(to, v); }
};

inline Lanes operator+(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Lanes operator-(Lanes a, Lanes b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Lanes operator*(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Lanes operator/(Lanes a, Lanes b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Lanes larger(Lanes a, Lanes b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Lanes smaller(Lanes a, Lanes b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Lanes power_of_two(Lanes shifted, int bias) {
  const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted.v), 23);
  return {_mm512_castsi512_ps(_mm512_add_epi32(exponent, _mm512_set1_epi32(bias << 23)))};
}

inline Lanes with_bits(Lanes a, int bits) {
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a.v), _mm512_set1_epi32(bits)))};
}

inline void load_pairs(const float* from, Lanes& even, Lanes& odd) {
  const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odds = _mm512_add_epi32(evens, _mm512_set1_epi32(1));
  const __m512 low = _mm512_loadu_ps(from), high = _mm512_loadu_ps(from + 16);
  even.v = _mm512_permutex2var_ps(low, evens, high);
  odd.v = _mm512_permutex2var_ps(low, odds, high);
}

#elif defined(__AVX2__) && defined(__FMA__)

struct Lanes {
  static constexpr size_t kWidth = 8;
  __m256 v;

  static Lanes all(float value) { return {_mm256_set1_ps(value)}; }
  static Lanes load(const float* from) { return {_mm256_loadu_ps(from)}; }
  void store(float* to) const { _mm256_storeu_ps(to, v); }
};

inline Lanes operator+(Lanes a, Lanes b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Lanes operator-(Lanes a, Lanes b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Lanes operator*(Lanes a, Lanes b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Lanes operator/(Lanes a, Lanes b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Lanes larger(Lanes a, Lanes b) { return {_mm256_max_ps(a.v, b.v)}; }
inline Lanes smaller(Lanes a, Lanes b) { return {_mm256_min_ps(a.v, b.v)}; }
inline Lanes power_of_two(Lanes shifted, int bias) {
  const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(shifted.v), 23);
  return {_mm256_castsi256_ps(_mm256_add_epi32(exponent, _mm256_set1_epi32(bias << 23)))};
}

inline Lanes with_bits(Lanes a, int bits) {
  return {_mm256_and_ps(a.v, _mm256_castsi256_ps(_mm256_set1_epi32(bits)))};
}

inline void load_pairs(const float* from, Lanes& even, Lanes& odd) {
  const __m256 low = _mm256_loadu_ps(from), high = _mm256_loadu_ps(from + 8);
  // shuffles treat each half of a register on its own
  const __m256 first = _mm256_permute2f128_ps(low, high, 0x20), second = _mm256_permute2f128_ps(low, high, 0x31);
  even.v = _mm256_shuffle_ps(first, second, 0x88);
  odd.v = _mm256_shuffle_ps(first, second, 0xdd);
}

#else

struct Lanes {
  static constexpr size_t kWidth = 1;
  float v;

  static Lanes all(float value) { return {value}; }
  static Lanes load(const float* from) { return {*from}; }
  void store(float* to) const { *to = v; }
};

inline Lanes operator+(Lanes a, Lanes b) { return {a.v + b.v}; }
inline Lanes operator-(Lanes a, Lanes b) { return {a.v - b.v}; }
inline Lanes operator*(Lanes a, Lanes b) { return {a.v * b.v}; }
inline Lanes operator/(Lanes a, Lanes b) { return {a.v / b.v}; }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { return {std::fmaf(a.v, b.v, c.v)}; }
// `b` where one is a NaN, as x86 has it.
inline Lanes larger(Lanes a, Lanes b) { return {a.v > b.v ? a.v : b.v}; }
inline Lanes smaller(Lanes a, Lanes b) { return {a.v < b.v ? a.v : b.v}; }
// 2^(n + bias - 127), n the integer in the low bits of `shifted`; 0 for the exponent -127.
inline Lanes power_of_two(Lanes shifted, int bias) {
  uint32_t bits;
  std::memcpy(&bits, &shifted.v, 4);
  bits = (bits << 23) + (static_cast<uint32_t>(bias) << 23);
  Lanes result;
  std::memcpy(&result.v, &bits, 4);
  return result;
}
inline Lanes with_bits(Lanes a, int bits) {
  uint32_t number;
  std::memcpy(&number, &a.v, 4);
  number &= static_cast<uint32_t>(bits);
  std::memcpy(&a.v, &number, 4);
  return a;
}
// 2 * kWidth numbers: those at even places, those at odd ones.
inline void load_pairs(const float* from, Lanes& even, Lanes& odd) {
  even.v = from[0];
  odd.v = from[1];
}

#endif

inline Lanes magnitude(Lanes a) { return with_bits(a, 0x7fffffff); }
// The largest power of two that is not above a positive, normal number; of infinity and NaN infinity.
inline Lanes power_below(Lanes a) { return with_bits(a, 0x7f800000); }

}  // namespace
}  // namespace dsv3
