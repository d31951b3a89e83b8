// SPDX-License-Identifier: Apache-2.0
// A command is checked before anything moves: a refused one leaves memory as it was.
#pragma once

#include "command.hpp"
#include "types.hpp"

namespace bbs {

// Counts that several stages need; worked out once a command, so that what one stage writes and
// the next one reads cannot differ.
struct Shape {
  uint32_t passes;        // fillings of the vector buffer that cover the features
  uint32_t last_groups;   // groups of the last pass
  uint32_t tile_groups;   // groups of tiles_per_block column tiles
  uint32_t blocks;        // weight blocks of a pass
  uint32_t fills;         // fillings of the vector buffer in all
  uint32_t output_words;  // port words of one output row of one tile
};

inline uint32_t divide_up(uint32_t a, uint32_t b) {
#pragma HLS INLINE
  return a / b + (a % b != 0);
}

inline uint32_t weight_bits(const Command& c) {
#pragma HLS INLINE
  return (c.flags & kFlagInt4) ? 4 : 8;
}

// Port words that a plane of `bits` bits a lane takes for one row of `words` CSB words; a row
// starts on a whole word.
inline uint32_t plane_row_words(uint32_t words, uint32_t bits) {
#pragma HLS INLINE
  return (uint32_t)(((uint64_t)words * kLanes * bits + 63) / 64);
}

// Port words of a whole plane: all passes of all rows.
inline uint64_t plane_words(const Command& c, const Shape& s, uint32_t bits) {
#pragma HLS INLINE
  const uint64_t full = plane_row_words(c.groups_per_pass * c.keep, bits);
  const uint64_t last = plane_row_words(s.last_groups * c.keep, bits);
  return c.rows * ((s.passes - 1) * full + last);
}

inline Shape derive_shape(const Command& c) {
#pragma HLS INLINE off
  Shape s;
  s.passes = divide_up(c.groups, c.groups_per_pass);
  s.last_groups = c.groups - (s.passes - 1) * c.groups_per_pass;
  s.tile_groups = divide_up(c.tiles, c.tiles_per_block);
  s.blocks = divide_up(c.rows, c.rows_per_block);
  // With one pass the features stay while all rows go by; with more, every visit loads its own.
  s.fills = s.passes == 1 ? s.tile_groups : s.tile_groups * s.blocks * s.passes;
  s.output_words = (c.flags & kFlagSumsOut) ? kCols * 4 / kPortBytes : kColWords;
  return s;
}

inline Status check_bank(const Command& c) {
#pragma HLS INLINE
  if (c.bank_size < 2 || c.bank_size > 256 || c.keep < 1 || c.keep > c.bank_size)
    return kStatusBadBank;
  if (c.flags & kFlagDense)
    return c.keep == c.bank_size && c.index_bits == 0 ? kStatusOk : kStatusBadBank;
  if (c.index_bits != 4 && c.index_bits != 6 && c.index_bits != 8) return kStatusBadBank;
  return c.bank_size <= (1u << c.index_bits) ? kStatusOk : kStatusBadBank;
}

inline Status check_shape(const Command& c) {
#pragma HLS INLINE
  if (c.features == 0 || c.rows == 0 || c.tiles == 0) return kStatusBadShape;
  if (c.tiles_per_block == 0 || c.rows_per_block == 0) return kStatusBadShape;
  if (c.groups_per_pass == 0 || c.groups_per_pass > c.groups) return kStatusBadShape;
  if (c.groups != divide_up(c.features, c.bank_size * kLanes)) return kStatusBadShape;
  return kStatusOk;
}

inline Status check_buffers(const Command& c, const Shape& s) {
#pragma HLS INLINE
  const uint64_t words = (uint64_t)c.groups_per_pass * c.bank_size * c.tiles_per_block;
  if (words > kVectorWords) return kStatusVectorOverflow;
  const uint64_t block = (uint64_t)c.groups_per_pass * c.keep * c.rows_per_block;
  if (c.rows_per_block > kBlockRows) return kStatusBlockOverflow;
  // A single tile streams its weights past the block buffer.
  if (c.tiles_per_block > 1 && block > kBlockWords) return kStatusBlockOverflow;
  if (s.passes > 1 && c.rows_per_block * c.tiles_per_block > kSumWords)
    return kStatusSumOverflow;
  return kStatusOk;
}

inline bool reaches(uint32_t offset, uint64_t words, uint32_t memory_words) {
#pragma HLS INLINE
  return offset + words > memory_words;
}

inline Status check_memory(const Command& c, const Shape& s, uint32_t memory_words) {
#pragma HLS INLINE
  const uint64_t outputs = (uint64_t)c.tiles * c.rows;  // below 2^48
  const bool outside =
      reaches(c.input, (uint64_t)c.tiles * c.features * kColWords, memory_words) ||
      reaches(c.output, outputs * s.output_words, memory_words) ||
      reaches(c.weights, plane_words(c, s, weight_bits(c)), memory_words) ||
      reaches(c.indices, plane_words(c, s, c.index_bits), memory_words) ||
      reaches(c.parameters, c.rows, memory_words) ||
      ((c.flags & kFlagTable) && reaches(c.table, kTableWords, memory_words));
  return outside ? kStatusOutOfMemoryRange : kStatusOk;
}

// Returns the first thing that is wrong; `s` is valid only where that is kStatusOk.
inline Status check_command(const Command& c, uint32_t memory_words, Shape& s) {
#pragma HLS INLINE off
  if (c.signature != kSignature) return kStatusBadSignature;
  const uint32_t known = kFlagDense | kFlagTable | kFlagSumsOut | kFlagInt4;
  if (c.op != kOpLinear || (c.flags & ~known)) return kStatusBadOp;
  if ((c.flags & kFlagTable) && (c.flags & kFlagSumsOut)) return kStatusBadOp;
  Status status = check_bank(c);
  if (status != kStatusOk) return status;
  status = check_shape(c);
  if (status != kStatusOk) return status;
  s = derive_shape(c);
  status = check_buffers(c, s);
  if (status != kStatusOk) return status;
  status = check_memory(c, s, memory_words);
  if (status != kStatusOk) return status;
  // Fillings of the vector buffer are counted in 32 bits.
  const uint64_t visits = (uint64_t)s.tile_groups * s.blocks;
  return s.passes > 1 && visits > 0xffffffffu / s.passes ? kStatusBadShape : kStatusOk;
}

}  // namespace bbs
