// Rounding of rows to int8.
#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "int_kernels.h"

namespace dsv3::avx2 {
namespace {

// Of the magnitudes' bits, which sort like the numbers, a NaN above infinity.
float largest(const float* x, size_t count) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256i most = _mm256_setzero_si256();
  size_t k = 0;
  for (; k + 8 <= count; k += 8) {
    const __m256i value = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + k));
    most = _mm256_max_epu32(most, _mm256_and_si256(value, magnitude));
  }
  uint32_t lanes[8], bits = 0;
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), most);
  for (uint32_t lane : lanes) bits = lane > bits ? lane : bits;
  for (; k < count; ++k) {
    uint32_t one;
    std::memcpy(&one, x + k, 4);
    one &= 0x7fffffffu;
    bits = one > bits ? one : bits;
  }
  float amax;
  std::memcpy(&amax, &bits, 4);
  return amax;
}

__m256i rounded_of(__m256 x, __m256 scale) {
  const __m256 whole = _mm256_round_ps(_mm256_div_ps(x, scale), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  return _mm256_max_epi32(_mm256_min_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127)), _mm256_set1_epi32(-127));
}

int32_t round_group(const float* x, size_t count, size_t depth, float scale, int8_t* q) {
  const __m256 by = _mm256_set1_ps(scale);
  const __m256i firsts = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1,
                                          -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  __m256i sum = _mm256_setzero_si256();
  for (size_t k = 0; k < depth; k += 8) {
    float values[8] = {};
    const size_t there = k >= count ? 0 : count - k < 8 ? count - k : 8;
    if (there < 8) std::memcpy(values, x + k, there * sizeof(float));
    const __m256i rounded = rounded_of(_mm256_loadu_ps(there < 8 ? values : x + k), by);
    sum = _mm256_add_epi32(sum, rounded);
    const __m256i bytes = _mm256_shuffle_epi8(rounded, firsts);
    const int32_t halves[2] = {_mm256_extract_epi32(bytes, 0), _mm256_extract_epi32(bytes, 4)};
    std::memcpy(q + k, halves, 8);
  }
  int32_t lanes[8], total = 0;
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), sum);
  for (int32_t lane : lanes) total += lane;
  return total;
}

}  // namespace

void quantise_row(const IntShape& shape, const float* x, int8_t* q, float* scale, int32_t* sum) {
  const size_t groups = shape.groups(), depth = shape.depth();
  for (size_t g = 0; g < groups; ++g) {
    const size_t begin = g * shape.group, left = shape.K - begin, count = left < shape.group ? left : shape.group;
    scale[g] = largest(x + begin, count) / 127.0f;
    if (scale[g] > 0.0f && scale[g] < INFINITY) {
      sum[g] = round_group(x + begin, count, depth, scale[g], q + g * depth);
    } else {
      std::memset(q + g * depth, 0, depth);
      sum[g] = 0;
    }
  }
}

}  // namespace dsv3::avx2
