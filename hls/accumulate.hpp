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
    const uint32_t period = visit.rows < kReuseDistance ? kReuseDistance : visit.rows;
    const uint32_t count = visit.tiles * period;
    uint32_t row = 0;
    uint32_t place = 0;      // of this row and tile in `partial`
    bool first_tile = true;  // takes the row parameters from the stream and keeps them
  rows:
    for (uint32_t i = 0; i < count; i++) {
#pragma HLS PIPELINE II=1
      // A row comes round once a period.
#pragma HLS DEPENDENCE variable=rows inter RAW distance=4 true
      // A place of `partial` that counts is read and written in one iteration of this loop only,
      // and the loop drains before the next visit.
#pragma HLS DEPENDENCE variable=partial inter false
      if (row < visit.rows) {
        const word_t parameters = first_tile ? row_words.read() : rows[row];
        if (first_tile) rows[row] = parameters;
        const SumWord sum = sums.read();
        // With one pass there may be more places than the buffer has, and none is needed.
        const SumWord before = partial[visit.first_pass ? 0 : place];
        const uint32_t bias = (uint32_t)parameters;
        SumWord after;
        TotalWord total;
      columns:
        for (int col = 0; col < kCols; col++) {
#pragma HLS UNROLL
          const uint32_t start = visit.first_pass ? bias : (uint32_t)before.v[col];
          after.v[col] = (int32_t)(start + (uint32_t)sum.v[col]);
          total.v[col] = after.v[col];
        }
        total.multiplier = (uint32_t)(parameters >> 32);
        if (visit.last_pass)
          totals.write(total);
        else
          partial[place] = after;
        place++;
      }
      if (++row == period) {
        row = 0;
        first_tile = false;
      }
    }
    final = visit.final;
  }
}

}  // namespace bbs
