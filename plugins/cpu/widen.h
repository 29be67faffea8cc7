// One number of a 16-bit format as float32.
#pragma once

#include <cstdint>
#include <cstring>

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

}  // namespace dsv3
