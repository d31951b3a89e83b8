// SPDX-License-Identifier: Apache-2.0
// From the sums of row groups to outputs: accumulated and requantised in one pipeline.
#pragma once

#include "requantise.hpp"

namespace bbs {

// The states of cells come by the port of the residuals, before anything else.
inline void pass_states(const FinishCommand& c, WordStream& residuals, WordStream& states) {
#pragma HLS INLINE
state_words:
  for (uint32_t i = 0; i < (has(c, kFlagStateIn) ? c.state_words : 0); i++) {
#pragma HLS PIPELINE II=1
    states.write(residuals.read());
  }
}

// The table comes by the port of the row parameters, before them.
inline void load_table(const FinishCommand& c, WordStream& row_words, TableCopies table) {
#pragma HLS INLINE
table_words:
  for (uint32_t i = 0; i < (has(c, kFlagTable) ? kTableWords : 0); i++) {
#pragma HLS PIPELINE II=1
    const word_t entries = row_words.read();
  copies:
    for (int u = 0; u < kRequantUnits; u++) {
#pragma HLS UNROLL
      table[u][i] = entries;
    }
  }
}

// Where the outputs of a row group stand.
struct Outputs {
  uint32_t first;   // sum that comes next
  uint32_t column;  // of its run
  uint32_t gate;
  uint32_t filled;  // bytes of the port word
  word_t residual;
  word_t word;
};

// As many outputs as there are units, or two sums; whether the row group is done with. The gates of
// cells go to `gates`, everything else is an output.
inline bool put_outputs(const FinishCommand& c, const Rows& at, const TableCopies table,
                        Outputs& out, WordStream& residuals, WordStream& gates,
                        WordStream& outputs) {
#pragma HLS INLINE
  const bool sums_out = has(c, kFlagSumsOut);
  if (sums_out) {
    outputs.write(sum_pair(c, at, out.first));
  } else {
    if (out.filled == 0) {
      out.word = 0;
      if (has(c, kFlagResidual)) out.residual = residuals.read();
    }
    const word_t bytes = out.residual >> (8 * out.filled);
    out.word |= requantise_bytes(c, at, out.first, out.gate, table, bytes) << (8 * out.filled);
    out.filled += kRequantUnits;
    if (out.filled == kPortBytes) {
      out.filled = 0;
      if (is_cell(c))
        gates.write(out.word);
      else
        outputs.write(out.word);
    }
  }
  const uint32_t step = sums_out ? 2 : kRequantUnits;
  out.first += step;
  out.column += step;
  const bool shorter = kPortWords > 1 && is_last_tile(at);
  if (out.column == (shorter ? c.last_words * kPortBytes : kRun)) {  // on to the next run
    out.first += kRun - out.column;
    out.column = 0;
  }
  if (out.first < kWide) return false;
  out.first = 0;
  out.gate = (out.gate + kRows) % kGates;
  return true;
}

// A row group at a time: its parameters, with the last of them its sums, and from that cycle on,
// if this is the last pass, its outputs. So nothing waits for the next sums with outputs in hand.
inline void finish_rows(const FinishCommand& c, VisitStream& visits, WordStream& row_words,
                        SumStream& sums, WordStream& residuals, RowWord* rows, SumWord* partial,
                        const TableCopies table, WordStream& gates, WordStream& outputs) {
#pragma HLS INLINE
  Rows at = {};
  Outputs out = {};
  bool fresh = true;  // the next cycle begins a visit
  bool over = false;
rows:
  while (!over) {
#pragma HLS PIPELINE II=1
    // A row is read again a tile later, less the cycles of its parameters.
#pragma HLS DEPENDENCE variable=rows inter RAW distance=4 true
    // A place is read a visit after it was written, which is a tile at least.
#pragma HLS DEPENDENCE variable=partial inter RAW distance=4 true
    if (fresh) start_rows(visits.read(), at);
    fresh = false;
    if (at.row < at.visit.rows) {
      if (at.part < kRows) add_row(c, at, row_words, sums, rows, partial);
      const bool whole = at.part == kRows;
      if (whole && (!at.visit.last_pass ||
                    put_outputs(c, at, table, out, residuals, gates, outputs)))
        next_row(at);
    }
    if (++at.cycle >= kTileCycles && at.row == at.visit.rows) {
      at.cycle = at.row = 0;
      fresh = at.tile == at.visit.tiles;
      over = fresh && at.visit.final;
      at.tile++;
    }
  }
}

inline void finish(FinishCommandStream& commands, VisitStream& visits, WordStream& row_words,
                   SumStream& sums, WordStream& residuals, WordStream& states, WordStream& gates,
                   WordStream& outputs) {
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
  TableCopies table;
#pragma HLS ARRAY_PARTITION variable=table complete dim=1
#pragma HLS BIND_STORAGE variable=table type=ram_1p impl=lutram
  FinishCommand c = commands.read();
commands:
  while (!c.end) {
    load_table(c, row_words, table);
    pass_states(c, residuals, states);
    finish_rows(c, visits, row_words, sums, residuals, rows, partial, table, gates, outputs);
    c = commands.read();
  }
}

}  // namespace bbs
