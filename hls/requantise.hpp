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

// Bytes `first` and on of a row group: one for each unit. `gate` is that of the group's first row,
// where rows are gates. One loop for each thing that is done: g++ then takes all units at once.
inline word_t requantise_bytes(const Command& c, const TotalWord& total, uint32_t first,
                               uint32_t gate,
                               const int8_t table[kRequantUnits][kTableEntries],
                               word_t residual) {
#pragma HLS INLINE
  int32_t y[kRequantUnits];
#pragma HLS ARRAY_PARTITION variable=y complete
units:
  for (int u = 0; u < kRequantUnits; u++) {
#pragma HLS UNROLL
    const float multiplier = float_of_bits(total.multiplier[kRows == 1 ? 0 : (first + u) / kCols]);
    y[u] = requantise_one(total.v[first + u], multiplier, c.zero_point);
  }
  if (has(c, kFlagTable)) {
  lookups:
    for (int u = 0; u < kRequantUnits; u++) {
#pragma HLS UNROLL
      // Both parts of a GRU's candidate are no gates yet.
      const bool plain = has(c, kFlagGru) && ((gate + (first + u) / kCols) & 2);
      if (!plain) y[u] = table[u][y[u] + 128];
    }
  }
  if (has(c, kFlagResidual)) {
  combinations:
    for (int u = 0; u < kRequantUnits; u++) {
#pragma HLS UNROLL
      y[u] = combine_one(c, y[u], (int8_t)(uint8_t)(residual >> (8 * u)));
    }
  }
  if (total.last_tile) {
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
inline word_t sum_pair(const Command& c, const TotalWord& total, uint32_t low) {
#pragma HLS INLINE
  const uint32_t high = low + 1;
  const bool low_counts = !total.last_tile || low % kCols < c.last_columns;
  const bool high_counts = !total.last_tile || high % kCols < c.last_columns;
  return (word_t)(low_counts ? (uint32_t)total.v[low] : 0) |
         (word_t)(high_counts ? (uint32_t)total.v[high] : 0) << 32;
}

// The states of cells come by the port of the residuals, before anything else.
inline void pass_states(const Command& c, WordStream& residuals, WordStream& states) {
#pragma HLS INLINE
state_words:
  for (uint32_t i = 0; i < (has(c, kFlagStateIn) ? c.state_words : 0); i++) {
#pragma HLS PIPELINE II=1
    states.write(residuals.read());
  }
}

// A copy for each unit: a lookup a cycle each.
inline void load_table(const Command& c, TableStream& words,
                       int8_t table[kRequantUnits][kTableEntries]) {
#pragma HLS INLINE
  word_t entries = 0;
table_bytes:
  for (uint32_t i = 0; i < (has(c, kFlagTable) ? kTableEntries : 0); i++) {
#pragma HLS PIPELINE II=1
    if (i % kPortBytes == 0) entries = words.read();
  copies:
    for (int u = 0; u < kRequantUnits; u++) {
#pragma HLS UNROLL
      table[u][i] = (int8_t)(uint8_t)(entries >> (8 * (i % kPortBytes)));
    }
  }
}

// The gates of cells go to `gates`, everything else is an output.
inline void requantise(const Command c, const Shape s, TableStream& table_words,
                       TotalStream& totals, WordStream& residuals, WordStream& states,
                       WordStream& gates, WordStream& outputs) {
#pragma HLS INLINE off
  int8_t table[kRequantUnits][kTableEntries];
#pragma HLS ARRAY_PARTITION variable=table complete dim=1
#pragma HLS BIND_STORAGE variable=table type=ram_1p impl=lutram
  load_table(c, table_words, table);
  pass_states(c, residuals, states);
  const bool sums_out = has(c, kFlagSumsOut);
  const uint32_t step = sums_out ? 2 : kRequantUnits;
  uint32_t rest = s.totals;
  uint32_t first = 0;   // sum of the row group that comes next
  uint32_t column = 0;  // of its run
  uint32_t gate = 0;
  uint32_t filled = 0;  // bytes of the port word
  word_t residual = 0;
  word_t word = 0;
  TotalWord total;
output_words:
  while (rest > 0) {
#pragma HLS PIPELINE II=1
    if (first == 0) total = totals.read();
    if (sums_out) {
      outputs.write(sum_pair(c, total, first));
    } else {
      if (filled == 0) {
        word = 0;
        if (has(c, kFlagResidual)) residual = residuals.read();
      }
      const word_t bytes = residual >> (8 * filled);
      word |= requantise_bytes(c, total, first, gate, table, bytes) << (8 * filled);
      filled += kRequantUnits;
      if (filled == kPortBytes) {
        filled = 0;
        if (is_cell(c))
          gates.write(word);
        else
          outputs.write(word);
      }
    }
    first += step;
    column += step;
    const bool shorter = kPortWords > 1 && total.last_tile;
    if (column == (shorter ? s.last_words * kPortBytes : kRun)) {  // on to the next run
      first += kRun - column;
      column = 0;
    }
    if (first == kWide) {
      first = 0;
      rest--;
      gate = (gate + kRows) % kGates;
    }
  }
}

}  // namespace bbs
