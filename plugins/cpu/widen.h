// Numbers of 16- and 8-bit formats as float32.
#pragma once

#include <cstdint>
#include <cstring>

#include "tensor.h"

namespace dsv3 {

static inline float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

static inline float widen_bf16(uint16_t bits) { return float_of_bits(static_cast<uint32_t>(bits) << 16); }

// Moves exponent and mantissa to float32's places and multiplies by 2^112, the difference of the exponents' biases: exact
// for subnormal numbers too. All-ones exponents are infinity and NaN.
static inline float widen_f16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(bits & 0x7FFF) << 13;
  if ((bits & 0x7C00) == 0x7C00) return float_of_bits(sign | 0x7F800000 | magnitude);
  const float scaled = float_of_bits(magnitude) * float_of_bits((127 + 112) << 23);
  uint32_t found;
  std::memcpy(&found, &scaled, sizeof found);
  return float_of_bits(found | sign);
}

// Sign, exponent and mantissa at float16's places are the number times 2^-8; all ones are NaN.
static inline float widen_f8e4m3(uint8_t bits) {
  if ((bits & 0x7F) == 0x7F) return float_of_bits(0x7FC00000u | static_cast<uint32_t>(bits & 0x80) << 24);
  return 256.0f * widen_f16(static_cast<uint16_t>((bits & 0x80) << 8 | (bits & 0x7F) << 7));
}

// Numbers [first, first + count) of a tensor as float32; int8 stands for the bits of float8 e4m3, as in caches.
static inline void widen_row(const Tensor& tensor, size_t first, size_t count, float* to) {
  switch (tensor.element) {
    case Element::f32: std::memcpy(to, tensor.f32() + first, count * sizeof(float)); return;
    case Element::bf16:
      for (size_t k = 0; k < count; ++k) to[k] = widen_bf16(static_cast<const uint16_t*>(tensor.data)[first + k]);
      return;
    case Element::f16:
      for (size_t k = 0; k < count; ++k) to[k] = widen_f16(static_cast<const uint16_t*>(tensor.data)[first + k]);
      return;
    case Element::i8:
    case Element::f8e4m3:
      for (size_t k = 0; k < count; ++k) to[k] = widen_f8e4m3(static_cast<const uint8_t*>(tensor.data)[first + k]);
      return;
    default: fail("expected float32, bfloat16, float16 or float8e4m3fn, got ", element_name(tensor.element));
  }
}

}  // namespace dsv3
