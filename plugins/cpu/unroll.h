// Loops whose index is a constant in each round, so that arrays of registers are registers: the compiler unrolls
// `#pragma GCC unroll` only after it has decided what lives in memory.
#pragma once

#include <cstddef>
#include <type_traits>
#include <utility>

#include "int_matmul.h"

// Of a lambda that is such a loop's body.
#define DSV3_UNROLLED __attribute__((always_inline))

namespace dsv3 {
namespace {

template <typename Body, size_t... Index>
DSV3_ALWAYS_INLINE void unrolled(const Body& body, std::index_sequence<Index...>) {
  (body(std::integral_constant<size_t, Index>{}), ...);
}

// Calls body(0), ..., body(Count - 1) with numbers known at compile time.
template <size_t Count, typename Body>
DSV3_ALWAYS_INLINE void unroll(const Body& body) {
  unrolled(body, std::make_index_sequence<Count>{});
}

}  // namespace
}  // namespace dsv3
