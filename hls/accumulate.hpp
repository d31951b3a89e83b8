// SPDX-License-Identifier: Apache-2.0
// Adds the bias and, where the features take several passes, what the earlier passes left.
#pragma once

#include "multiply.hpp"

namespace bbs {

// The parameters of a row group.
struct RowWord {
  word_t v[kRows];
};

// The sum of a row's columns takes the place of the first one. They start from one bias.
inline void sum_columns(SumWord& total) {
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
inline SumWord add_pass(const FinishCommand& c, const Visit& visit, const RowWord& parameters,
                        const SumWord& sum, const SumWord& before) {
#pragma HLS INLINE
  const bool maximum = has(c, kFlagMaximum);
  const bool one_bias = has(c, kFlagSumColumns);
  SumWord total;
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
  return total;
}

// Where the rows of a visit stand.
struct Rows {
  Visit visit;
  uint32_t cycle;  // of the tile
  uint32_t row;
  uint32_t part;   // rows of the row group whose parameters have come
  uint32_t place;  // of this row group and tile among the partial sums
  uint32_t tile;   // counted from 1
  RowWord parameters;
  SumWord total;   // of the row group, once it is complete
};

// Cycles of a tile at least. Parameters come a row a cycle; those of a row group are left in the
// last of them and read again in the first one of the next tile.
constexpr uint32_t kTileCycles = kReuseDistance + kRows - 1;

inline void start_rows(const Visit& visit, Rows& at) {
#pragma HLS INLINE
  at.visit = visit;
  at.cycle = at.row = at.part = at.place = 0;
  at.tile = 1;
}

inline bool is_last_tile(const Rows& at) {
#pragma HLS INLINE
  return at.visit.last_group && at.tile == at.visit.tiles;
}

// The parameters of one more row, and with the last one of a row group its sums.
inline void add_row(const FinishCommand& c, Rows& at, WordStream& row_words, SumStream& sums,
                    RowWord* rows, SumWord* partial) {
#pragma HLS INLINE
  // The first tile takes the row parameters from the stream and keeps them.
  const bool fresh = at.tile == 1 && !at.visit.again;
  if (fresh)
    at.parameters.v[at.part] = row_words.read();
  else if (at.part == 0)
    at.parameters = rows[at.visit.parameters + at.row];
  if (++at.part < kRows) return;
  if (fresh) rows[at.visit.parameters + at.row] = at.parameters;
  const SumWord sum = sums.read();
  // With one pass there may be more places than the buffer has, and none is needed.
  const SumWord& before = partial[at.visit.first_pass ? 0 : at.place];
  at.total = add_pass(c, at.visit, at.parameters, sum, before);
  if (!at.visit.last_pass) {
  keep_sums:
    for (int k = 0; k < kWide; k++) {
#pragma HLS UNROLL
      partial[at.place].v[k] = at.total.v[k];
    }
  } else if (has(c, kFlagSumColumns)) {
    sum_columns(at.total);
  }
}

inline void next_row(Rows& at) {
#pragma HLS INLINE
  at.part = 0;
  at.place++;
  at.row++;
}

}  // namespace bbs
