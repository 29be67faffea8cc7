// Integer products by AVX2, which has no product of bytes that is exact for all.
//
// 8 bits become 16, whose products (madd) are added in pairs, in 32 bits. With 4 bits the product of bytes (maddubs), which
// adds two of them in 16 bits, is exact, and so are eight of its sums: 8 * 2 * 15 * 127 fits.
#include <immintrin.h>

#include <cstring>

#include "int_kernels.h"
#include "int_scales.h"
#include "unroll.h"

namespace dsv3::avx2 {
namespace {

constexpr size_t kMostRows = 4;
// Bytes ahead in the stream of weights. The processor's own prefetching stops at each 4 KiB page.
constexpr size_t kAhead = 1024;

// Panels that are read at the same time, and the rows that meet them.
struct Job {
  const uint8_t* at;
  const uint8_t* zeros;
  size_t panel_bytes, panel_zeros, panel_columns;  // from one of the panels to the next
  size_t depth, groups;
  size_t ahead;  // bytes to what is fetched; further rows find the panels in the cache
  bool narrow_scales;
  const int8_t* q;  // as `widened` makes it, with 8 bits
  size_t stride;    // bytes from row to row
  const float* scale;
  const int32_t* start;  // of the integer sums: what all weights without a zero point have too much; not with zeros
  const int32_t* sum;
  float* y;
  size_t ldy, columns;  // columns of the last panel
};

// Bytes of q for a number along K.
template <int Bits>
constexpr size_t kWidth = Bits == 8 ? 2 : 1;

// int16 in the order in which `add_line` takes the weights: 0, 2, 1, 3 of each quad. `count`: a multiple of 16.
void widen(const int8_t* q, size_t count, int8_t* to) {
  for (size_t k = 0; k < count; k += 16) {
    const __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(q + k)));
    const __m256i order = _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(wide, 0xd8), 0xd8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 2 * k), order);
  }
}

DSV3_ALWAYS_INLINE __m256i four_bytes(const int8_t* q) {
  int32_t four;
  std::memcpy(&four, q, 4);
  return _mm256_set1_epi32(four);
}

DSV3_ALWAYS_INLINE __m256i load(const uint8_t* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

// Of 16 columns: eight and eight.
template <size_t Rows, size_t Panels>
struct Sums {
  __m256i of[Panels][Rows][2];
};

template <size_t Rows, size_t Panels>
DSV3_ALWAYS_INLINE void fill(Sums<Rows, Panels>& sums, __m256i value) {
  unroll<Panels>([&](auto panel) DSV3_UNROLLED {
    unroll<Rows>([&](auto m) DSV3_UNROLLED { sums.of[panel][m][0] = sums.of[panel][m][1] = value; });
  });
}

DSV3_ALWAYS_INLINE void prefetch(const uint8_t* line, const Job& job) {
  _mm_prefetch(reinterpret_cast<const char*>(line + job.ahead), _MM_HINT_T0);
}

// A line of 64 bytes: 4 numbers along K of 8 bits, or 8 of 4 bits, whose sums of pairs are in 16 bits.
template <int Bits, size_t Rows, size_t Panels>
DSV3_ALWAYS_INLINE void add_line(Sums<Rows, Panels>& sums, const uint8_t* w, const int8_t* q, const Job& job) {
  const __m256i low = Bits == 8 ? _mm256_set1_epi16(255) : _mm256_set1_epi8(15);
  unroll<Panels>([&](auto panel) DSV3_UNROLLED {
    const uint8_t* line = w + panel * job.panel_bytes;
    prefetch(line, job);
    const __m256i left = load(line), right = load(line + 32);
    const __m256i left_first = _mm256_and_si256(left, low), right_first = _mm256_and_si256(right, low);
    __m256i left_second = _mm256_srli_epi16(left, Bits), right_second = _mm256_srli_epi16(right, Bits);
    if constexpr (Bits == 4) {
      left_second = _mm256_and_si256(left_second, low);
      right_second = _mm256_and_si256(right_second, low);
    }
    unroll<Rows>([&](auto m) DSV3_UNROLLED {
      const __m256i first = four_bytes(q + m * job.stride), second = four_bytes(q + m * job.stride + 4);
      __m256i& a = sums.of[panel][m][0];
      __m256i& b = sums.of[panel][m][1];
      if constexpr (Bits == 8) {
        a = _mm256_add_epi32(a, _mm256_madd_epi16(left_first, first));
        b = _mm256_add_epi32(b, _mm256_madd_epi16(right_first, first));
        a = _mm256_add_epi32(a, _mm256_madd_epi16(left_second, second));
        b = _mm256_add_epi32(b, _mm256_madd_epi16(right_second, second));
      } else {
        a = _mm256_add_epi16(a, _mm256_maddubs_epi16(left_first, first));
        b = _mm256_add_epi16(b, _mm256_maddubs_epi16(right_first, first));
        a = _mm256_add_epi16(a, _mm256_maddubs_epi16(left_second, second));
        b = _mm256_add_epi16(b, _mm256_maddubs_epi16(right_second, second));
      }
      // keeps the additions where they are: put off, they would need more registers than there are
      if constexpr (Bits == 4 && Rows > 2) __asm__ volatile("" : "+x"(a), "+x"(b));
    });
  });
}

// 32 numbers along K: 512 bytes of a panel, or 256. Returns what follows.
template <int Bits, size_t Rows, size_t Panels>
DSV3_ALWAYS_INLINE const uint8_t* add_part(Sums<Rows, Panels>& sums, const uint8_t* w, const int8_t* q,
                                           const Job& job) {
  if constexpr (Bits == 8) {
#pragma GCC unroll 1
    for (const uint8_t* end = w + 512; w < end; w += 64, q += 8) add_line<8>(sums, w, q, job);
  } else {
    Sums<Rows, Panels> pairs;
    fill(pairs, _mm256_setzero_si256());
#pragma GCC unroll 1
    for (const uint8_t* end = w + 256; w < end; w += 64, q += 8) add_line<4>(pairs, w, q, job);
    const __m256i ones = _mm256_set1_epi16(1);
    unroll<Panels>([&](auto panel) DSV3_UNROLLED {
      unroll<Rows>([&](auto m) DSV3_UNROLLED {
        unroll<2>([&](auto half) DSV3_UNROLLED {
          const __m256i wide = _mm256_madd_epi16(pairs.of[panel][m][half], ones);
          sums.of[panel][m][half] = _mm256_add_epi32(sums.of[panel][m][half], wide);
        });
      });
    });
  }
  return w;
}

DSV3_ALWAYS_INLINE void store(float* y, size_t columns, __m256 left, __m256 right) {
  float values[kPanel];
  _mm256_storeu_ps(values, left);
  _mm256_storeu_ps(values + 8, right);
  std::memcpy(y, values, (columns < kPanel ? columns : kPanel) * sizeof(float));
}

template <int Bits, bool Zeros, size_t Rows, size_t Panels = 1>
void multiply(const Job& job) {
  __m256 total[Panels][Rows][2];
  unroll<Panels>([&](auto panel) DSV3_UNROLLED {
    unroll<Rows>([&](auto m) DSV3_UNROLLED { total[panel][m][0] = total[panel][m][1] = _mm256_setzero_ps(); });
  });
  const uint8_t* w = job.at;
  const uint8_t* scales = w;
  const int8_t* q = job.q;
  for (size_t g = 0; g < job.groups; ++g) {
    if (job.narrow_scales && g % 2 == 1) {  // the second of those that share a line of scales
      scales += kScaleLine / 2;
    } else {
      unroll<Panels>([&](auto panel) DSV3_UNROLLED { prefetch(w + panel * job.panel_bytes, job); });
      scales = w;
      w += kScaleLine;
    }
    Sums<Rows, Panels> sums;
    unroll<Panels>([&](auto panel) DSV3_UNROLLED {
      unroll<Rows>([&](auto m) DSV3_UNROLLED {
        const __m256i start = Zeros ? _mm256_setzero_si256() : _mm256_set1_epi32(job.start[m * job.groups + g]);
        sums.of[panel][m][0] = sums.of[panel][m][1] = start;
      });
    });
    for (const int8_t* end = q + job.depth * kWidth<Bits>; q < end; q += 32 * kWidth<Bits>) {
      w = add_part<Bits>(sums, w, q, job);
    }
    unroll<Panels>([&](auto panel) DSV3_UNROLLED {
      unroll<2>([&](auto half) DSV3_UNROLLED {
        const __m256 column = load_scales(scales + panel * job.panel_bytes, job.narrow_scales, half);
        __m256i zero = _mm256_setzero_si256();
        if constexpr (Zeros) {
          const uint8_t* zeros = job.zeros + panel * job.panel_zeros + g * kPanel + 8 * half;
          zero = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(zeros)));
        }
        unroll<Rows>([&](auto m) DSV3_UNROLLED {
          const size_t at = m * job.groups + g;
          __m256i sum = sums.of[panel][m][half];
          if constexpr (Zeros) {
            sum = _mm256_sub_epi32(sum, _mm256_mullo_epi32(zero, _mm256_set1_epi32(job.sum[at])));
          }
          const __m256 both = _mm256_mul_ps(_mm256_set1_ps(job.scale[at]), column);
          total[panel][m][half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), both, total[panel][m][half]);
        });
      });
    });
  }
  unroll<Panels>([&](auto panel) DSV3_UNROLLED {
    const size_t columns = panel + 1 < Panels ? kPanel : job.columns;
    unroll<Rows>([&](auto m) DSV3_UNROLLED {
      store(job.y + m * job.ldy + panel * job.panel_columns, columns, total[panel][m][0], total[panel][m][1]);
    });
  });
}

using Multiply = void (*)(const Job&);

template <int Bits, bool Zeros>
constexpr Multiply kByRows[kMostRows] = {multiply<Bits, Zeros, 1>, multiply<Bits, Zeros, 2>, multiply<Bits, Zeros, 3>,
                                         multiply<Bits, Zeros, 4>};
// Of few rows two panels at once: a core has more reads of memory under way from two streams than from one.
constexpr size_t kRowsOfTwo = 2;
template <int Bits, bool Zeros>
constexpr Multiply kTwoByRows[kRowsOfTwo] = {multiply<Bits, Zeros, 1, 2>, multiply<Bits, Zeros, 2, 2>};

const Multiply* by_rows(const IntMatrix& matrix) {
  if (matrix.bits == 8) return matrix.zero_points ? kByRows<8, true> : kByRows<8, false>;
  return matrix.zero_points ? kByRows<4, true> : kByRows<4, false>;
}

const Multiply* two_by_rows(const IntMatrix& matrix) {
  if (matrix.bits == 8) return matrix.zero_points ? kTwoByRows<8, true> : kTwoByRows<8, false>;
  return matrix.zero_points ? kTwoByRows<4, true> : kTwoByRows<4, false>;
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
  const int8_t* q = rows.q;
  if (matrix.bits == 8) {
    job.stride *= 2;
    int8_t* wide = scratch.take<int8_t>(rows.rows * job.stride);
    const size_t numbers = job.groups * job.depth;
    for (size_t m = 0; m < rows.rows; ++m) widen(rows.q + m * rows.stride, numbers, wide + m * job.stride);
    q = wide;
  }
  int32_t* start = nullptr;
  if (!matrix.zero_points) {
    start = scratch.take<int32_t>(rows.rows * job.groups);
    for (size_t i = 0; i < rows.rows * job.groups; ++i) start[i] = -(rows.sum[i] * (1 << (matrix.bits - 1)));
  }
  // All rows by some panels: `multiply` for each number of rows, `last` the last of the panels.
  const auto run = [&](const Multiply* multiply, size_t panel, size_t last) {
    job.at = matrix.panel(panel);
    job.zeros = matrix.panel_zeros(panel);
    job.columns = matrix.N - last * kPanel;
    for (size_t m = 0; m < rows.rows; m += kMostRows) {
      const size_t part = rows.rows - m < kMostRows ? rows.rows - m : kMostRows;
      job.ahead = m == 0 ? kAhead : 0;
      job.q = q + m * job.stride;
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

}  // namespace dsv3::avx2
