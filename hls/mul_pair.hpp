// SPDX-License-Identifier: Apache-2.0
// Two INT8 products in one DSP48: the weight is the operand that both columns share.
//
// Packed, the sum of two lanes for two columns is
//   P = ((a1 << 16) + a0) * w0 + ((b1 << 16) + b0) * w1 - 1,
// two DSP48E1 in cascade (25 x 18 bits each). The low half of P is a0*w0 + b0*w1 - 1, which lies
// in [-32513, 32767] for all INT8 operands, -128 included: the -1 is what makes it fit. The high
// half is a1*w0 + b1*w1 less the borrow that a negative low half takes, which bit 15 tells.
// `tb/mul_pair_tb.cpp` compares both forms over every operand.
#pragma once

#include "types.hpp"

#ifdef __SYNTHESIS__
#include <ap_int.h>
#endif

namespace bbs {

// The widths of a DSP48E1: HLS must see them to use one multiplier and not four. g++ takes the
// next native type; no value leaves the narrow one.
#ifdef __SYNTHESIS__
using packed_t = ap_int<25>;
using product_t = ap_int<48>;
#else
using packed_t = int32_t;
using product_t = int64_t;
#endif

struct PairSums {
  int16_t low;   // a0*w0 + b0*w1 - 1
  int16_t high;  // a1*w0 + b1*w1 - 1
};

inline PairSums pair_sums_packed(int8_t w0, int8_t w1, int8_t a0, int8_t a1, int8_t b0,
                                 int8_t b1) {
#pragma HLS INLINE
  const packed_t a = a1 * (1 << 16) + a0;
  const packed_t b = b1 * (1 << 16) + b0;
  const product_t product_a = a * w0;  // 25 x 8 bits, below 2^31
#pragma HLS BIND_OP variable=product_a op=mul impl=dsp
  const product_t product_b = b * w1;
#pragma HLS BIND_OP variable=product_b op=mul impl=dsp
  const product_t p = product_a + product_b - 1;
  PairSums sums;
  sums.low = (int16_t)(p & 0xffff);
  sums.high = (int16_t)((p >> 16) + ((p >> 15) & 1) - 1);
  return sums;
}

// For every column: a*w0 + b*w1 - 1, which always fits 16 bits. The caller owes the 1 back.
inline void pair_sums(int8_t w0, int8_t w1, const ActWord& a, const ActWord& b,
                      int16_t sums[kCols]) {
#pragma HLS INLINE
#ifdef __SYNTHESIS__
columns:
  for (int c = 0; c < kCols; c += 2) {
#pragma HLS UNROLL
    const PairSums s = pair_sums_packed(w0, w1, a.v[c], a.v[c + 1], b.v[c], b.v[c + 1]);
    sums[c] = s.low;
    sums[c + 1] = s.high;
  }
#else
  for (int c = 0; c < kCols; c++) sums[c] = (int16_t)(w0 * a.v[c] + w1 * b.v[c] - 1);
#endif
}

}  // namespace bbs
