// From the engine's weight tables to panels of 16 rows.
#include <algorithm>
#include <cstring>

#include "int_matmul.h"

namespace dsv3 {
namespace {

unsigned number(const uint8_t* packed, int bits, size_t index) {
  return bits == 8 ? packed[index] : packed[index / 2] >> (index % 2 * 4) & 15;
}

// One row of one group of 8 bits, four at a time; `count` numbers are there.
void put_row8(uint8_t* block, size_t n, const uint8_t* weight, size_t count, size_t depth, uint8_t zero) {
  for (size_t k = 0; k < depth; k += 4) {
    uint8_t quad[4] = {zero, zero, zero, zero};
    if (k < count) std::memcpy(quad, weight + k, std::min<size_t>(4, count - k));
    std::memcpy(block + k * 16 + n * 4, quad, 4);
  }
}

// The same with 4 bits. Eight numbers are two quads: the first goes to the low halves, the second to the high ones.
void put_row4(uint8_t* block, size_t n, const uint8_t* weight, size_t count, size_t depth, unsigned zero) {
  for (size_t k = 0; k < depth; k += 8) {
    uint8_t numbers[8];
    for (size_t i = 0; i < 8; ++i) numbers[i] = static_cast<uint8_t>(k + i < count ? number(weight, 4, k + i) : zero);
    uint8_t* quads = block + k * 8 + n * 4;
    for (size_t i = 0; i < 4; ++i) quads[i] = static_cast<uint8_t>(numbers[i] | numbers[i + 4] << 4);
  }
}

void put_scale(uint8_t* scales, bool narrow, size_t n, float scale) {
  uint8_t bytes[sizeof scale];
  std::memcpy(bytes, &scale, sizeof scale);
  if (narrow) {
    std::memcpy(scales + 2 * n, bytes + 2, 2);
  } else {
    std::memcpy(scales + 4 * n, bytes, 4);
  }
}

}  // namespace

bool are_narrow(const float* scales, size_t count) {
  return std::all_of(scales, scales + count, [](float scale) {
    uint32_t bits;
    std::memcpy(&bits, &scale, sizeof bits);
    return (bits & 0xffff) == 0;
  });
}

void pack_rows(const IntShape& shape, const RowSource& source, size_t first, size_t count, uint8_t* data) {
  const size_t groups = shape.groups(), depth = shape.depth();
  const size_t group_bytes = shape.group * shape.bits / 8;
  const unsigned middle = 1u << (shape.bits - 1);
  for (size_t panel = first; panel < first + count; ++panel) {
    uint8_t* at = data + panel * shape.panel_bytes();
    uint8_t* zeros = shape.zero_points ? data + shape.zero_offset() + panel * groups * kPanel : nullptr;
    std::memset(at, 0, shape.panel_bytes());
    for (size_t g = 0; g < groups; ++g) {
      uint8_t* scales = at + shape.scales_at(g);
      uint8_t* block = at + shape.numbers_at(g);
      const size_t numbers = std::min(shape.group, shape.K - g * shape.group);
      for (size_t i = 0; i < kPanel; ++i) {
        const size_t n = panel * kPanel + i;
        const bool inside = n < shape.N;
        const uint8_t* zero_row = inside && source.zero ? source.zero + n * source.zero_stride : nullptr;
        const unsigned zero = zero_row ? number(zero_row, shape.bits, g) : middle;
        if (inside) put_scale(scales, shape.narrow_scales, i, source.scale[n * source.scale_stride + g]);
        if (zeros) zeros[g * kPanel + i] = static_cast<uint8_t>(zero);
        const uint8_t* weight = inside ? source.weight + n * source.weight_stride + g * group_bytes : nullptr;
        const size_t there = inside ? numbers : 0;
        if (shape.bits == 8) {
          put_row8(block, i, weight, there, depth, static_cast<uint8_t>(zero));
        } else {
          put_row4(block, i, weight, there, depth, zero);
        }
      }
    }
  }
}

void pack_columns(const IntShape& shape, const ColumnSource& source, size_t first, size_t count, uint8_t* data) {
  const size_t depth = shape.depth();
  for (size_t panel = first; panel < first + count; ++panel) {
    uint8_t* at = data + panel * shape.panel_bytes();
    float* scales = reinterpret_cast<float*>(at);
    uint8_t* block = at + shape.numbers_at(0);
    const size_t begin = panel * kPanel, columns = std::min(kPanel, shape.N - begin);
    std::fill_n(scales, kPanel, 0.0f);
    std::copy_n(source.scale + begin, columns, scales);
    std::memset(block, 128, kPanel * depth);
    for (size_t k = 0; k < shape.K; ++k) {
      const int8_t* row = source.weight + k * source.weight_stride + begin;
      for (size_t i = 0; i < columns; ++i) block[k / 4 * 64 + i * 4 + k % 4] = static_cast<uint8_t>(row[i] + 128);
    }
  }
}

}  // namespace dsv3
