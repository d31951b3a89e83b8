// SPDX-License-Identifier: Apache-2.0
// Two INT8 tensors to one: their weighted sum, or their product, in fixed point.
//
//   y = clamp(round_half_even(acc / 2^shift) + out_zero), with
//   acc = a_scale (a - a_zero) + b_scale (b - b_zero), or a_scale (a - a_zero) (b - b_zero)
//
// Exact in 48 bits; two multipliers a byte serve both forms, a DSP each (25 x 18 bits).
#pragma once

#include "check.hpp"

namespace bbs {

inline int32_t round_shifted(int64_t value, uint32_t shift) {
#pragma HLS INLINE
  const int64_t odd = (value >> shift) & 1;
  const int64_t half = ((int64_t)1 << shift) >> 1;
  // Beyond 2^16 every zero point is clamped away.
  const int64_t rounded = (value + half - (shift > 0 ? 1 - odd : 0)) >> shift;
  return (int32_t)(rounded > 65535 ? 65535 : rounded < -65536 ? -65536 : rounded);
}

inline int32_t combine_one(const Command& c, int32_t a, int32_t b) {
#pragma HLS INLINE
  const bool product = has(c, kFlagProduct);
  const narrow_t<9> from_a = a - c.a_zero;
  const narrow_t<9> from_b = b - c.b_zero;
  const narrow_t<24> a_scale = c.a_scale;
  const narrow_t<24> b_scale = c.b_scale;
  const narrow_t<24> left = product ? (narrow_t<24>)from_b : a_scale;
  const narrow_t<33> first = from_a * left;
#pragma HLS BIND_OP variable=first op=mul impl=dsp
  // A product of two zeroed bytes has 18 bits.
  const narrow_t<18> right = product ? (narrow_t<18>)first : (narrow_t<18>)from_b;
  const narrow_t<24> scale = product ? a_scale : b_scale;
  const narrow_t<42> second = right * scale;
#pragma HLS BIND_OP variable=second op=mul impl=dsp
  const int64_t acc = (int64_t)second + (product ? (int64_t)0 : (int64_t)first);
  const int32_t y = round_shifted(acc, c.shift) + c.out_zero;
  const int32_t capped = y > c.high ? c.high : y;
  return capped < c.low ? c.low : capped;
}

}  // namespace bbs
