// SPDX-License-Identifier: Apache-2.0
// y = table[saturate(round_half_even(float32(sum) * multiplier) + zero_point)], on the bits, and
// where there is a residual, what combine.hpp makes of y and that.
#pragma once

#include "accumulate.hpp"
#include "combine.hpp"

namespace bbs {

inline float float_of_bits(uint32_t bits) {
#pragma HLS INLINE
  union {
    uint32_t i;
    float f;
  } u;
  u.i = bits;
  return u.f;
}

inline uint32_t bits_of_float(float value) {
#pragma HLS INLINE
  union {
    float f;
    uint32_t i;
  } u;
  u.f = value;
  return u.i;
}

// The nearest integer, ties to even, clamped to [-512, 512]: beyond that every zero point
// saturates. Equal to rintf below 512; written on the bits because libraries differ on ties.
inline int32_t round_half_even(float value) {
#pragma HLS INLINE
  const uint32_t bits = bits_of_float(value);
  const int32_t exponent = (int32_t)((bits >> 23) & 0xff);  // biased by 127
  const uint32_t mantissa = (bits & 0x7fffff) | 0x800000;   // value = mantissa * 2^(exponent-150)
  // Below 2^-2 a shift of 25 leaves nothing to round; from 2^9 on the result is the clamp.
  const int32_t wanted = 150 - exponent;
  const uint32_t shift = (uint32_t)(wanted > 25 ? 25 : wanted < 15 ? 15 : wanted);
  const uint32_t odd = (mantissa >> shift) & 1;
  const uint32_t half = 1u << (shift - 1);
  const int32_t rounded = (int32_t)((mantissa + half - 1 + odd) >> shift);
  const int32_t magnitude = exponent >= 136 ? 512 : rounded;
  const int32_t sign = (int32_t)bits >> 31;  // 0 or -1
  return (magnitude ^ sign) - sign;
}

inline int32_t requantise_one(int32_t sum, float multiplier, int32_t zero_point) {
#pragma HLS INLINE
  return saturated(round_half_even((float)sum * multiplier) + zero_point, 127);
}

// Sums of a row group that follow each other: the columns of a row, or all where those are few.
constexpr uint32_t kRun = kCols < kPortBytes ? kWide : kCols;

// A copy for each unit, a lookup a cycle each, in words as they come.
typedef word_t TableCopies[kRequantUnits][kTableWords];

inline int32_t table_entry(const word_t* table, int32_t value) {
#pragma HLS INLINE
  const uint32_t at = (uint32_t)(value + kTableEntries / 2);
  return (int8_t)(uint8_t)(table[at / kPortBytes] >> (8 * (at % kPortBytes)));
}

// Bytes `first` and on of a row group: one for each unit. `gate` is that of the group's first row,
// where rows are gates. One loop for each thing that is done: g++ then takes all units at once.
inline word_t requantise_bytes(const FinishCommand& c, const Rows& at, uint32_t first,
                               uint32_t gate, const TableCopies table, word_t residual) {
#pragma HLS INLINE
  int32_t y[kRequantUnits];
#pragma HLS ARRAY_PARTITION variable=y complete
units:
  for (int u = 0; u < kRequantUnits; u++) {
#pragma HLS UNROLL
    const word_t parameters = at.parameters.v[kRows == 1 ? 0 : (first + u) / kCols];
    const float multiplier = float_of_bits((uint32_t)(parameters >> 32));
    y[u] = requantise_one(at.total.v[first + u], multiplier, c.zero_point);
  }
  if (has(c, kFlagTable)) {
  lookups:
    for (int u = 0; u < kRequantUnits; u++) {
#pragma HLS UNROLL
      // Both parts of a GRU's candidate are no gates yet.
      const bool plain = has(c, kFlagGru) && ((gate + (first + u) / kCols) & 2);
      if (!plain) y[u] = table_entry(table[u], y[u]);
    }
  }
  if (has(c, kFlagResidual)) {
  combinations:
    for (int u = 0; u < kRequantUnits; u++) {
#pragma HLS UNROLL
      y[u] = combine_one(c, y[u], (int8_t)(uint8_t)(residual >> (8 * u)));
    }
  }
  if (is_last_tile(at)) {
  columns:
    for (int u = 0; u < kRequantUnits; u++) {
#pragma HLS UNROLL
      // Columns that are not there come out as 0, whatever lay in theirs before.
      if ((first + u) % kCols >= c.last_columns) y[u] = 0;
    }
  }
  word_t word = 0;
bytes:
  for (int u = 0; u < kRequantUnits; u++) {
#pragma HLS UNROLL
    word |= (word_t)(uint8_t)y[u] << (8 * u);
  }
  return word;
}

// Two INT32 sums of a row group.
inline word_t sum_pair(const FinishCommand& c, const Rows& at, uint32_t low) {
#pragma HLS INLINE
  const uint32_t high = low + 1;
  const bool all = !is_last_tile(at);
  const bool low_counts = all || low % kCols < c.last_columns;
  const bool high_counts = all || high % kCols < c.last_columns;
  return (word_t)(low_counts ? (uint32_t)at.total.v[low] : 0) |
         (word_t)(high_counts ? (uint32_t)at.total.v[high] : 0) << 32;
}

}  // namespace bbs
