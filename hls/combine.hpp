// SPDX-License-Identifier: Apache-2.0
// Two INT8 tensors to one: their weighted sum, or their product, in fixed point.
//
//   y = clamp(round_half_even(acc / 2^shift) + out_zero), with
//   acc = a_scale (a - a_zero) + b_scale (b - b_zero), or a_scale (a - a_zero) (b - b_zero)
//
// Exact in 48 bits; two multipliers a byte serve both forms, a DSP each (25 x 18 bits).
#pragma once

#include "stages.hpp"
#include "rounding.hpp"

namespace bbs {

using acc_t = narrow_t<48>;

inline int32_t round_shifted(acc_t value, uint32_t shift) {
#pragma HLS INLINE
  // Beyond 2^16 every zero point is clamped away. The sum fits: 2^43 and 2^46.
  const int64_t rounded = (int64_t)round_bits<acc_t>(value, shift);
  return (int32_t)(rounded > 65535 ? 65535 : rounded < -65536 ? -65536 : rounded);
}

inline int32_t combine_one(const FinishCommand& c, int32_t a, int32_t b) {
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
  const acc_t acc = second + (product ? (narrow_t<33>)0 : first);
  const int32_t y = round_shifted(acc, c.shift) + c.out_zero;
  const int32_t capped = y > c.high ? c.high : y;
  return capped < c.low ? c.low : capped;
}

}  // namespace bbs
