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

// Where a product is made: in a DSP, or in LUTs where a part has more lanes than DSPs.
enum class Place { kDsp, kFabric };

inline PairSums split(product_t p) {
#pragma HLS INLINE
  PairSums sums;
  sums.low = (int16_t)(p & 0xffff);
  sums.high = (int16_t)((p >> 16) + ((p >> 15) & 1) - 1);
  return sums;
}

inline PairSums pair_sums_packed(int8_t w0, int8_t w1, int8_t a0, int8_t a1, int8_t b0,
                                 int8_t b1) {
#pragma HLS INLINE
  const packed_t a = a1 * (1 << 16) + a0;
  const packed_t b = b1 * (1 << 16) + b0;
  const product_t product_a = a * w0;  // 25 x 8 bits, below 2^31
#pragma HLS BIND_OP variable=product_a op=mul impl=dsp
  const product_t product_b = b * w1;
#pragma HLS BIND_OP variable=product_b op=mul impl=dsp
  return split(product_a + product_b - 1);
}

// The weight in four digits from -2 to 2 (Booth): a product is four rows, of which each is 0, a or
// 2a, turned over bit by bit where its digit is negative. Turning over is one less than negating.
// Digits are those of a weight, so all columns share them; a row and the sum it goes to take a LUT
// a bit.
constexpr int kDigits = 4;

inline int32_t booth_row(int8_t weight, int digit, int8_t a) {
#pragma HLS INLINE
  const int bits = weight * 2 >> (2 * digit);  // the digit's two bits and the one below
  const bool one = (bits ^ bits >> 1) & 1;
  const bool two = !one && ((bits >> 1 ^ bits >> 2) & 1);
  const int16_t size = one ? a : two ? (int16_t)(2 * a) : (int16_t)0;
  return bits >> 2 & 1 ? ~size : size;
}

// What the rows of a product leave out: a 1 for each negative digit.
inline uint32_t booth_owed(int8_t weight) {
#pragma HLS INLINE
  return ((uint32_t)(uint8_t)weight >> 1) & 0x55;
}

// a*w0 + b*w1 less what both owe. It fits 16 bits: 2^15 comes of two weights of -128, which owe.
inline int16_t pair_sum_fabric(int8_t w0, int8_t w1, int8_t a, int8_t b) {
#pragma HLS INLINE
  int32_t product_a = 0, product_b = 0;
digits:
  for (int d = 0; d < kDigits; d++) {
#pragma HLS UNROLL
    product_a += booth_row(w0, d, a) * (1 << 2 * d);
    product_b += booth_row(w1, d, b) * (1 << 2 * d);
  }
  return (int16_t)(product_a + product_b);
}

// What the sums of a pair of lanes owe: the same for all columns.
template <Place kPlace>
inline uint32_t pair_owed(int8_t w0, int8_t w1) {
#pragma HLS INLINE
  return kPlace == Place::kDsp ? 1 : booth_owed(w0) + booth_owed(w1);
}

// For every column: a*w0 + b*w1 less what they owe, which always fits 16 bits. The caller adds it.
// A single column has no partner to share a DSP with.
template <Place kPlace>
inline void pair_sums(int8_t w0, int8_t w1, const act_t* __restrict a, const act_t* __restrict b,
                      int16_t* __restrict sums) {
#pragma HLS INLINE
#ifdef __SYNTHESIS__
columns:
  for (int c = 0; c + 1 < kCols; c += 2) {
#pragma HLS UNROLL
    if (kPlace == Place::kDsp) {
      const PairSums s = pair_sums_packed(w0, w1, a[c], a[c + 1], b[c], b[c + 1]);
      sums[c] = s.low;
      sums[c + 1] = s.high;
    } else {
      sums[c] = pair_sum_fabric(w0, w1, a[c], b[c]);
      sums[c + 1] = pair_sum_fabric(w0, w1, a[c + 1], b[c + 1]);
    }
  }
  if (kCols == 1)
    sums[0] = kPlace == Place::kDsp ? (int16_t)(w0 * a[0] + w1 * b[0] - 1)
                                    : pair_sum_fabric(w0, w1, a[0], b[0]);
#else
  const int owed = (int)pair_owed<kPlace>(w0, w1);
  for (int c = 0; c < kCols; c++) sums[c] = (int16_t)(w0 * a[c] + w1 * b[c] - owed);
#endif
}

}  // namespace bbs
