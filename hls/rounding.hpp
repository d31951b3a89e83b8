// SPDX-License-Identifier: Apache-2.0
// Rounding and saturation of integers in fixed point.
#pragma once

#include <cstdint>

namespace bbs {

// round_half_even(value / 2^shift); value + 2^(shift - 1) must fit a T.
template <typename T>
inline T round_bits(T value, uint32_t shift) {
#pragma HLS INLINE
  const T odd = (value >> shift) & 1;
  const T half = ((T)1 << shift) >> 1;
  const T down = shift > 0 ? (T)(1 - odd) : (T)0;
  const T sum = value + half - down;
  return sum >> shift;
}

inline int32_t saturated(int32_t value, int32_t largest) {
#pragma HLS INLINE
  const int32_t capped = value > largest ? largest : value;
  return capped < -largest - 1 ? -largest - 1 : capped;
}

}  // namespace bbs
