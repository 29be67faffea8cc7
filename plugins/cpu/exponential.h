// e^x in float32, the same bits by every instruction set; include it from files that keep to isa.h's rules.
#pragma once

#include "lanes.h"

namespace dsv3 {
namespace {

// e^x with an error of at most 1.1 ulp (seen for every float32 of the range). Below -86.9, where a result would be less
// than 2^-125, it is 0; above 88.72 infinity; of a NaN a NaN.
//
// x = n ln 2 + r, |r| <= ln 2 / 2, and e^r = 1 + r + r^2 q(r), where q is of degree 4 and fitted for the least relative
// error, 3e-9, on that interval. 2^n is taken in two factors, 2 and 2^(n - 1), so that n = 128 overflows as it should.
inline Lanes exponential(Lanes x) {
  constexpr float kShift = 0x1.8p23f;  // leaves an integer in the low bits, rounded half to even
  x = larger(Lanes::all(-87.0f), smaller(Lanes::all(89.0f), x));
  const Lanes shifted = fma(x, Lanes::all(0x1.715476p+0f), Lanes::all(kShift));
  const Lanes n = shifted - Lanes::all(kShift);
  Lanes r = fma(n, Lanes::all(-0x1.62e430p-1f), x);
  r = fma(n, Lanes::all(0x1.05c610p-29f), r);
  Lanes q = fma(r, Lanes::all(0x1.6a2434p-10f), Lanes::all(0x1.1239e2p-7f));
  q = fma(q, r, Lanes::all(0x1.5558f2p-5f));
  q = fma(q, r, Lanes::all(0x1.555492p-3f));
  q = fma(q, r, Lanes::all(0x1.fffffcp-2f));
  const Lanes power = fma(r * r, q, r) + Lanes::all(1.0f);
  return (power + power) * power_of_two(shifted, 126);
}

// x / (1 + e^-x).
inline Lanes silu(Lanes x) { return x / (Lanes::all(1.0f) + exponential(Lanes::all(0.0f) - x)); }

}  // namespace
}  // namespace dsv3
