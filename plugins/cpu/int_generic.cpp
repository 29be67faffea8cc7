// Integer products in plain C++: what the others are compared with, and what runs on a CPU without them.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "int_kernels.h"
#include "int_scales.h"

namespace dsv3 {
namespace {

// Bits of |x|, which sort like the numbers, a NaN above infinity.
uint32_t magnitude(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits & 0x7fffffffu;
}

void quantise_group(const float* x, size_t count, size_t depth, int8_t* q, float* scale, int32_t* sum) {
  uint32_t largest = 0;
  for (size_t k = 0; k < count; ++k) largest = std::max(largest, magnitude(x[k]));
  float amax;
  std::memcpy(&amax, &largest, 4);
  *scale = amax / 127.0f;
  *sum = 0;
  std::fill_n(q, depth, static_cast<int8_t>(0));
  if (!(*scale > 0.0f && *scale < INFINITY)) return;
  for (size_t k = 0; k < count; ++k) {
    q[k] = static_cast<int8_t>(std::clamp(std::nearbyint(x[k] / *scale), -127.0f, 127.0f));
    *sum += q[k];
  }
}

void quantise_row(const IntShape& shape, const float* x, int8_t* q, float* scale, int32_t* sum) {
  const size_t groups = shape.groups(), depth = shape.depth();
  for (size_t g = 0; g < groups; ++g) {
    const size_t begin = g * shape.group, count = std::min(shape.group, shape.K - begin);
    quantise_group(x + begin, count, depth, q + g * depth, scale + g, sum + g);
  }
}

// Number k of row n of a group's block.
int weight(const uint8_t* block, int bits, size_t n, size_t k) {
  const size_t quad = k / 4, inner = n * 4 + k % 4;
  if (bits == 8) return block[quad * 64 + inner];
  return block[quad / 2 * 64 + inner] >> (quad % 2 * 4) & 15;
}

int zero_point(const uint8_t* zeros, int bits, size_t g, size_t n) {
  return zeros ? zeros[g * kPanel + n] : 1 << (bits - 1);
}

int32_t group_sum(const uint8_t* block, int bits, size_t n, const int8_t* q, size_t depth) {
  int32_t sum = 0;
  for (size_t k = 0; k < depth; ++k) sum += q[k] * weight(block, bits, n, k);
  return sum;
}

void panel(const IntMatrix& matrix, size_t first, size_t count, const QuantisedRows& rows, float* y, size_t ldy) {
  const size_t groups = matrix.groups(), depth = matrix.depth();
  for (size_t p = first; p < first + count; ++p, y += kPanel) {
    const uint8_t* zeros = matrix.panel_zeros(p);
    const size_t columns = std::min(kPanel, matrix.N - p * kPanel);
    for (size_t m = 0; m < rows.rows; ++m) {
      float total[kPanel] = {};
      for (size_t g = 0; g < groups; ++g) {
        const uint8_t* numbers = matrix.panel(p) + matrix.numbers_at(g);
        const uint8_t* scales = matrix.panel(p) + matrix.scales_at(g);
        const int8_t* q = rows.q + m * rows.stride + g * depth;
        for (size_t n = 0; n < kPanel; ++n) {
          const int32_t all = group_sum(numbers, matrix.bits, n, q, depth);
          const int32_t sum = all - zero_point(zeros, matrix.bits, g, n) * rows.sum[m * groups + g];
          const float scale = rows.scale[m * groups + g] * scale_of(scales, matrix.narrow_scales, n);
          total[n] = std::fmaf(static_cast<float>(sum), scale, total[n]);
        }
      }
      std::copy_n(total, columns, y + m * ldy);
    }
  }
}

float float_group(const uint8_t* block, int bits, size_t n, int zero, const float* x, size_t count) {
  float lanes[4] = {};
  for (size_t k = 0; k < count; ++k) {
    lanes[k % 4] = std::fmaf(x[k], static_cast<float>(weight(block, bits, n, k) - zero), lanes[k % 4]);
  }
  return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
}

void float_panel(const IntMatrix& matrix, size_t first, size_t count, const float* x, size_t ldx, size_t rows,
                 float* y, size_t ldy) {
  const size_t groups = matrix.groups();
  for (size_t p = first; p < first + count; ++p, y += kPanel) {
    const uint8_t* zeros = matrix.panel_zeros(p);
    const size_t columns = std::min(kPanel, matrix.N - p * kPanel);
    for (size_t m = 0; m < rows; ++m) {
      float total[kPanel] = {};
      for (size_t g = 0; g < groups; ++g) {
        const uint8_t* numbers = matrix.panel(p) + matrix.numbers_at(g);
        const uint8_t* scales = matrix.panel(p) + matrix.scales_at(g);
        const size_t begin = g * matrix.group, there = std::min(matrix.group, matrix.K - begin);
        for (size_t n = 0; n < columns; ++n) {
          const int zero = zero_point(zeros, matrix.bits, g, n);
          const float sum = float_group(numbers, matrix.bits, n, zero, x + m * ldx + begin, there);
          total[n] = std::fmaf(sum, scale_of(scales, matrix.narrow_scales, n), total[n]);
        }
      }
      std::copy_n(total, columns, y + m * ldy);
    }
  }
}

}  // namespace

const IntKernels int_generic = {quantise_row, panel, float_panel};

}  // namespace dsv3
