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

namespace bbs {

struct PairSums {
  int16_t low;   // a0*w0 + b0*w1 - 1
  int16_t high;  // a1*w0 + b1*w1 - 1
};

inline PairSums pair_sums_packed(int w0, int w1, int a0, int a1, int b0, int b1) {
#pragma HLS INLINE
  const int32_t a = (a1 * (1 << 16)) + a0;  // 25 bits
  const int32_t b = (b1 * (1 << 16)) + b0;
  const int64_t product_a = (int64_t)a * w0 - 1;
#pragma HLS BIND_OP variable=product_a op=mul impl=dsp
  const int64_t p = (int64_t)b * w1 + product_a;
#pragma HLS BIND_OP variable=p op=mul impl=dsp
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
