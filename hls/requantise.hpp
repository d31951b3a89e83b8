// SPDX-License-Identifier: Apache-2.0
// y = table[saturate(round_half_even(float32(sum) * multiplier) + zero_point)], on the bits.
#pragma once

#include "accumulate.hpp"

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
  const int32_t y = round_half_even((float)sum * multiplier) + zero_point;
  const int32_t capped = y > 127 ? 127 : y;
  return capped < -128 ? -128 : capped;
}

// A port word of requantised bytes: one for each requantisation unit.
inline word_t requantise_word(const TotalWord& total, uint32_t part, int32_t zero_point,
                              bool use_table, const int8_t table[kRequantUnits][kTableEntries]) {
#pragma HLS INLINE
  const float multiplier = float_of_bits(total.multiplier);
  int32_t y[kRequantUnits];
units:
  for (int u = 0; u < kRequantUnits; u++) {
#pragma HLS UNROLL
    y[u] = requantise_one(total.v[part * kRequantUnits + u], multiplier, zero_point);
  }
  word_t word = 0;
bytes:
  for (int u = 0; u < kRequantUnits; u++) {
#pragma HLS UNROLL
    const int32_t mapped = use_table ? table[u][y[u] + 128] : y[u];
    word |= (word_t)(uint8_t)mapped << (8 * u);
  }
  return word;
}

inline void requantise(const Command c, const Shape s, TableStream& table_words,
                       TotalStream& totals, WordStream& outputs) {
#pragma HLS INLINE off
  // A copy for each unit: a lookup a cycle each.
  int8_t table[kRequantUnits][kTableEntries];
#pragma HLS ARRAY_PARTITION variable=table complete dim=1
#pragma HLS BIND_STORAGE variable=table type=ram_1p impl=lutram
  const bool use_table = (c.flags & kFlagTable) != 0;
  const bool sums_out = (c.flags & kFlagSumsOut) != 0;
  word_t entries = 0;
table_bytes:
  for (uint32_t i = 0; i < (use_table ? kTableEntries : 0); i++) {
#pragma HLS PIPELINE II=1
    if (i % kPortBytes == 0) entries = table_words.read();
  copies:
    for (int u = 0; u < kRequantUnits; u++) {
#pragma HLS UNROLL
      table[u][i] = (int8_t)(uint8_t)(entries >> (8 * (i % kPortBytes)));
    }
  }
  const uint32_t count = c.rows * c.tiles * s.output_words;  // checked: fits the memory
  uint32_t part = 0;
  TotalWord total;
output_words:
  for (uint32_t i = 0; i < count; i++) {
#pragma HLS PIPELINE II=1
    if (part == 0) total = totals.read();
    if (sums_out)
      outputs.write((word_t)(uint32_t)total.v[2 * part] |
                    (word_t)(uint32_t)total.v[2 * part + 1] << 32);
    else
      outputs.write(requantise_word(total, part, c.zero_point, use_table, table));
    if (++part == s.output_words) part = 0;
  }
}

}  // namespace bbs
