// Integer products by AVX2, whose only product of bytes (maddubs) adds two of them in 16 bits, saturating.
//
// With 8 bits, numbers are made signed and their signs moved to the rows' numbers: 2 * 128 * 127 fits 16 bits. With 4
// bits, eight sums of two products do: 8 * 2 * 15 * 127.
#include <immintrin.h>

#include <cstring>

#include "int_kernels.h"
#include "int_scales.h"

namespace dsv3::avx2 {
namespace {

constexpr int kMostRows = 4;
constexpr size_t kAhead = 2048;

struct Job {
  const uint8_t* at;
  const uint8_t* zeros;
  size_t depth, groups;
  bool narrow_scales;
  const int8_t* q;
  size_t stride;
  const float* scale;
  const int32_t* sum;
  float* y;
  size_t ldy, columns;
};

// Of 16 columns: eight and eight.
template <int Rows>
struct Sums {
  __m256i of[Rows][2];
};

DSV3_ALWAYS_INLINE __m256i quad_of(const int8_t* q) {
  int32_t four;
  std::memcpy(&four, q, 4);
  return _mm256_set1_epi32(four);
}

DSV3_ALWAYS_INLINE __m256i load(const uint8_t* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

// 32 numbers along K: 512 bytes.
template <int Rows>
DSV3_ALWAYS_INLINE const uint8_t* add_part8(Sums<Rows>& sums, const uint8_t* w, const int8_t* q,
                                            size_t stride) {
  const __m256i middle = _mm256_set1_epi8(static_cast<char>(128)), ones = _mm256_set1_epi16(1);
  for (int quad = 0; quad < 8; ++quad, w += 64, q += 4) {
    _mm_prefetch(reinterpret_cast<const char*>(w + kAhead), _MM_HINT_T0);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m256i number = _mm256_xor_si256(load(w + 32 * half), middle), size = _mm256_abs_epi8(number);
#pragma GCC unroll 4
      for (int m = 0; m < Rows; ++m) {
        const __m256i pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(quad_of(q + m * stride), number));
        sums.of[m][half] = _mm256_add_epi32(sums.of[m][half], _mm256_madd_epi16(pairs, ones));
      }
    }
  }
  return w;
}

// 32 numbers along K: 256 bytes.
template <int Rows>
DSV3_ALWAYS_INLINE const uint8_t* add_part4(Sums<Rows>& sums, const uint8_t* w, const int8_t* q,
                                            size_t stride) {
  const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  Sums<Rows> pairs;
#pragma GCC unroll 4
  for (int m = 0; m < Rows; ++m) pairs.of[m][0] = pairs.of[m][1] = _mm256_setzero_si256();
  for (int two = 0; two < 4; ++two, w += 64, q += 8) {
    _mm_prefetch(reinterpret_cast<const char*>(w + kAhead), _MM_HINT_T0);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m256i both = load(w + 32 * half);
      const __m256i first = _mm256_and_si256(both, low), second = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
#pragma GCC unroll 4
      for (int m = 0; m < Rows; ++m) {
        const int8_t* row = q + m * stride;
        __m256i& pair = pairs.of[m][half];
        pair = _mm256_add_epi16(pair, _mm256_maddubs_epi16(first, quad_of(row)));
        pair = _mm256_add_epi16(pair, _mm256_maddubs_epi16(second, quad_of(row + 4)));
      }
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      sums.of[m][half] = _mm256_add_epi32(sums.of[m][half], _mm256_madd_epi16(pairs.of[m][half], ones));
    }
  }
  return w;
}

// What is still to be taken off for each unit of a row's sum: numbers of 8 bits have lost 128.
template <int Bits>
DSV3_ALWAYS_INLINE __m256i zero_of(const uint8_t* zeros, size_t g, int half) {
  const __m256i lost = _mm256_set1_epi32(Bits == 8 ? 128 : 0);
  if (zeros == nullptr) return _mm256_sub_epi32(_mm256_set1_epi32(1 << (Bits - 1)), lost);
  const auto* these = reinterpret_cast<const __m128i*>(zeros + g * kPanel + 8 * half);
  return _mm256_sub_epi32(_mm256_cvtepu8_epi32(_mm_loadl_epi64(these)), lost);
}

void store(float* y, size_t columns, const __m256 (&total)[2]) {
  float values[kPanel];
  _mm256_storeu_ps(values, total[0]);
  _mm256_storeu_ps(values + 8, total[1]);
  std::memcpy(y, values, (columns < kPanel ? columns : kPanel) * sizeof(float));
}

template <int Bits, int Rows>
void multiply(const Job& job) {
  __m256 total[Rows][2];
  for (int m = 0; m < Rows; ++m) total[m][0] = total[m][1] = _mm256_setzero_ps();
  const uint8_t* w = job.at;
  const uint8_t* scales = w;
  const int8_t* q = job.q;
  for (size_t g = 0; g < job.groups; ++g) {
    if (job.narrow_scales && g % 2 == 1) {  // the second of those that share a line of scales
      scales += kScaleLine / 2;
    } else {
      _mm_prefetch(reinterpret_cast<const char*>(w + kAhead), _MM_HINT_T0);
      scales = w;
      w += kScaleLine;
    }
    Sums<Rows> sums;
#pragma GCC unroll 4
    for (int m = 0; m < Rows; ++m) sums.of[m][0] = sums.of[m][1] = _mm256_setzero_si256();
    for (const int8_t* end = q + job.depth; q < end; q += 32) {
      w = Bits == 8 ? add_part8<Rows>(sums, w, q, job.stride) : add_part4<Rows>(sums, w, q, job.stride);
    }
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m256 column = load_scales(scales, job.narrow_scales, half);
      const __m256i zero = zero_of<Bits>(job.zeros, g, half);
#pragma GCC unroll 4
      for (int m = 0; m < Rows; ++m) {
        const size_t at = m * job.groups + g;
        const __m256i too_much = _mm256_mullo_epi32(zero, _mm256_set1_epi32(job.sum[at]));
        const __m256 exact = _mm256_cvtepi32_ps(_mm256_sub_epi32(sums.of[m][half], too_much));
        const __m256 both = _mm256_mul_ps(_mm256_set1_ps(job.scale[at]), column);
        total[m][half] = _mm256_fmadd_ps(exact, both, total[m][half]);
      }
    }
  }
  for (int m = 0; m < Rows; ++m) store(job.y + m * job.ldy, job.columns, total[m]);
}

using Multiply = void (*)(const Job&);
template <int Bits>
constexpr Multiply kByRows[kMostRows] = {multiply<Bits, 1>, multiply<Bits, 2>, multiply<Bits, 3>, multiply<Bits, 4>};

}  // namespace

void int_panel(const IntMatrix& matrix, size_t first, size_t count, const QuantisedRows& rows, float* y, size_t ldy) {
  const Multiply* multiply = matrix.bits == 8 ? kByRows<8> : kByRows<4>;
  const size_t groups = matrix.groups();
  for (size_t p = first; p < first + count; ++p, y += kPanel) {
    for (size_t m = 0; m < rows.rows; m += kMostRows) {
      const size_t part = rows.rows - m < kMostRows ? rows.rows - m : kMostRows;
      multiply[part - 1]({matrix.panel(p), matrix.panel_zeros(p), matrix.depth(), groups, matrix.narrow_scales, rows.q + m * rows.stride,
                          rows.stride, rows.scale + m * groups, rows.sum + m * groups, y + m * ldy, ldy,
                          matrix.N - p * kPanel});
    }
  }
}

}  // namespace dsv3::avx2
