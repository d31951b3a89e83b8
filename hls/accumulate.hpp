// SPDX-License-Identifier: Apache-2.0
// Adds the bias and, where the features take several passes, what the earlier passes left.
#pragma once

#include "multiply.hpp"

namespace bbs {

// The table goes through to the drain in one piece before the first row.
using TableStream = Stream<word_t, kTableWords>;
using TotalStream = Stream<TotalWord, 4>;

// The parameters of a row group.
struct RowWord {
  word_t v[kRows];
};

// The sum of a row's columns takes the place of the first one. They start from one bias.
inline void sum_columns(TotalWord& total) {
#pragma HLS INLINE
rows:
  for (int r = 0; r < kRows; r++) {
#pragma HLS UNROLL
    uint32_t sum = 0;
  columns:
    for (int col = 0; col < kCols; col++) {
#pragma HLS UNROLL
      sum += (uint32_t)total.v[r * kCols + col];
    }
    total.v[r * kCols] = (int32_t)sum;
  }
}

// What a row group's sums become in this pass.
inline TotalWord add_pass(const Command& c, const Visit& visit, const RowWord& parameters,
                          const SumWord& sum, const SumWord& before) {
#pragma HLS INLINE
  const bool maximum = has(c, kFlagMaximum);
  const bool one_bias = has(c, kFlagSumColumns);
  TotalWord total;
sums:
  for (int i = 0; i < kWide; i++) {
#pragma HLS UNROLL
    const int32_t bias = (int32_t)(uint32_t)parameters.v[i / kCols];
    const int32_t begin = one_bias && i % kCols != 0 ? 0 : bias;
    total.v[i] = visit.first_pass ? begin : before.v[i];
  }
  if (maximum) {
  larger:
    for (int i = 0; i < kWide; i++) {
#pragma HLS UNROLL
      if (sum.v[i] > total.v[i]) total.v[i] = sum.v[i];
    }
  } else {
  additions:
    for (int i = 0; i < kWide; i++) {
#pragma HLS UNROLL
      total.v[i] = (int32_t)((uint32_t)total.v[i] + (uint32_t)sum.v[i]);
    }
  }
multipliers:
  for (int r = 0; r < kRows; r++) {
#pragma HLS UNROLL
    total.multiplier[r] = (uint32_t)(parameters.v[r] >> 32);
  }
  return total;
}

// Where the rows of a visit stand.
struct Rows {
  Visit visit;
  uint32_t period;  // cycles of a tile
  uint32_t cycle;   // of the tile
  uint32_t row;
  uint32_t part;    // row of the row group
  uint32_t place;   // of this row group and tile among the partial sums
  uint32_t tile;    // counted from 1
  RowWord parameters;
};

inline void start_rows(const Visit& visit, Rows& at) {
#pragma HLS INLINE
  at.visit = visit;
  // Parameters come a row a cycle, so a row group takes ROWS cycles. It is left in the last of them
  // and read again in the first one of the next tile.
  const uint32_t row_cycles = visit.rows * kRows;
  const uint32_t least = kReuseDistance + kRows - 1;
  at.period = row_cycles < least ? least : row_cycles;
  at.cycle = at.row = at.place = 0;
  at.tile = 1;
}

// The parameters of one more row, and with the last one of a row group its sums.
inline void add_row(const Command& c, Rows& at, WordStream& row_words, SumStream& sums,
                    RowWord* rows, SumWord* partial, TotalStream& totals) {
#pragma HLS INLINE
  // The first tile takes the row parameters from the stream and keeps them.
  const bool fresh = at.tile == 1 && !at.visit.again;
  if (fresh)
    at.parameters.v[at.part] = row_words.read();
  else if (at.part == 0)
    at.parameters = rows[at.visit.parameters + at.row];
  if (++at.part < kRows) return;
  at.part = 0;
  if (fresh) rows[at.visit.parameters + at.row] = at.parameters;
  const SumWord sum = sums.read();
  // With one pass there may be more places than the buffer has, and none is needed.
  const SumWord& before = partial[at.visit.first_pass ? 0 : at.place];
  TotalWord total = add_pass(c, at.visit, at.parameters, sum, before);
  if (at.visit.last_pass) {
    if (has(c, kFlagSumColumns)) sum_columns(total);
    total.last_tile = at.visit.last_group && at.tile == at.visit.tiles;
    totals.write(total);
  } else {
  keep_sums:
    for (int k = 0; k < kWide; k++) {
#pragma HLS UNROLL
      partial[at.place].v[k] = total.v[k];
    }
  }
  at.place++;
  at.row++;
}

inline void accumulate(const Command c, VisitStream& visits, WordStream& row_words,
                       SumStream& sums, TableStream& table_words, TotalStream& totals) {
#pragma HLS INLINE off
  // INT32 sums between passes, one word a row group and tile.
  SumWord partial[kSumWords];
#pragma HLS AGGREGATE variable=partial compact=bit
  if (kSumInUram) {
#pragma HLS BIND_STORAGE variable=partial type=ram_s2p impl=uram
  } else {
#pragma HLS BIND_STORAGE variable=partial type=ram_s2p impl=bram
  }
  RowWord rows[kBlockRows];
#pragma HLS AGGREGATE variable=rows compact=bit
#pragma HLS BIND_STORAGE variable=rows type=ram_s2p impl=bram
table:
  for (uint32_t i = 0; i < (has(c, kFlagTable) ? kTableWords : 0); i++) {
#pragma HLS PIPELINE II=1
    table_words.write(row_words.read());
  }
  Rows at = {};
  bool fresh = true;    // the next cycle begins a visit
  bool over = is_nothing(c);
rows:
  while (!over) {
#pragma HLS PIPELINE II=1
    // A row is read again a period later, less the cycles of a row group.
#pragma HLS DEPENDENCE variable=rows inter RAW distance=4 true
    // A place is read a visit after it was written, which is a period at least.
#pragma HLS DEPENDENCE variable=partial inter RAW distance=4 true
    if (fresh) start_rows(visits.read(), at);
    fresh = false;
    if (at.row < at.visit.rows) add_row(c, at, row_words, sums, rows, partial, totals);
    if (++at.cycle == at.period) {
      at.cycle = 0;
      at.row = 0;
      fresh = at.tile == at.visit.tiles;
      over = fresh && at.visit.final;
      at.tile++;
    }
  }
}

}  // namespace bbs
