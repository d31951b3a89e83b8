// SPDX-License-Identifier: Apache-2.0
// Adds the bias and, where the features take several passes, what the earlier passes left.
#pragma once

#include "multiply.hpp"

namespace bbs {

// The table goes through to the drain in one piece before the first row.
using TableStream = Stream<word_t, kTableWords>;
using TotalStream = Stream<TotalWord, 4>;

inline void accumulate(const Command c, VisitStream& visits, WordStream& row_words,
                       SumStream& sums, TableStream& table_words, TotalStream& totals) {
#pragma HLS INLINE off
  // INT32 sums between passes, one word a row and tile.
  SumWord partial[kSumWords];
#pragma HLS AGGREGATE variable=partial compact=bit
#pragma HLS BIND_STORAGE variable=partial type=ram_s2p impl=bram
  word_t rows[kBlockRows];
#pragma HLS BIND_STORAGE variable=rows type=ram_s2p impl=bram
table:
  for (uint32_t i = 0; i < ((c.flags & kFlagTable) ? kTableWords : 0); i++) {
#pragma HLS PIPELINE II=1
    table_words.write(row_words.read());
  }
  bool final = false;
visits:
  while (!final) {
    const Visit visit = visits.read();
    const uint32_t count = visit.rows * visit.tiles;
    uint32_t row = 0;
    bool first_tile = true;  // takes the row parameters from the stream and keeps them
  rows:
    for (uint32_t i = 0; i < count; i++) {
#pragma HLS PIPELINE II=1
      // Every place of `partial` is read and written once in this loop, and the loop drains
      // before the next visit starts: no iteration depends on another.
#pragma HLS DEPENDENCE variable=partial inter false
      const word_t parameters = first_tile ? row_words.read() : rows[row];
      if (first_tile) rows[row] = parameters;
      const SumWord sum = sums.read();
      const SumWord before = partial[visit.first_pass ? 0 : i];
      const int32_t bias = (int32_t)(uint32_t)parameters;
      SumWord after;
      TotalWord total;
    columns:
      for (int col = 0; col < kCols; col++) {
#pragma HLS UNROLL
        after.v[col] = (visit.first_pass ? bias : before.v[col]) + sum.v[col];
        total.v[col] = after.v[col];
      }
      total.multiplier = (uint32_t)(parameters >> 32);
      if (visit.last_pass)
        totals.write(total);
      else
        partial[i] = after;
      if (++row == visit.rows) {
        row = 0;
        first_tile = false;
      }
    }
    final = visit.final;
  }
}

}  // namespace bbs
