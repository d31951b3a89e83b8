// SPDX-License-Identifier: Apache-2.0
// The cells of an LSTM or GRU: the gates of a unit and its state give its hidden value and its
// new state. The definition is docs/recurrent.md. What is no cell does not come this way.
#pragma once

#include "accumulate.hpp"
#include "rounding.hpp"
#include "tanh_table.hpp"

namespace bbs {

// Port words that hold one gate of all columns of a unit.
constexpr int kGateWords = kCols < kPortBytes ? 1 : kCols / kPortBytes;
// Port words of a unit's gates; with one column, of two units. A word of gates is two columns of
// a unit, so one unit is worked on, two columns a cycle, while the gates of the next one come.
constexpr int kUnitWords = kCols < 2 ? 1 : kCols / 2;

// The gates of two units, one that comes and one that is worked on. A gate's words hold parts of
// others where columns are few.
typedef word_t UnitGates[2][kGates][kGateWords];

// First word of a unit's gates in which gate `gate` lies.
inline uint32_t first_word_of(uint32_t gate) {
#pragma HLS INLINE
  return gate * kCols / kPortBytes;
}

inline void take_gates(word_t word, uint32_t slot, uint32_t half, UnitGates gates) {
#pragma HLS INLINE
gates:
  for (uint32_t g = 0; g < kGates; g++) {
#pragma HLS UNROLL
    const uint32_t at = slot - first_word_of(g);  // words of gates before this one are beyond it
    if (at < kGateWords) gates[half][g][at] = word;
  }
}

// Byte `result` of a gate, counted over the columns and then the units of a half.
inline int32_t gate_byte(const UnitGates gates, uint32_t half, uint32_t gate, uint32_t result) {
#pragma HLS INLINE
  const uint32_t unit = result / kCols;
  const uint32_t byte = (unit * kGates + gate) * kCols + result % kCols;
  const uint32_t at = byte - first_word_of(gate) * kPortBytes;
  return (int8_t)(uint8_t)(gates[half][gate][at / kPortBytes] >> (8 * (at % kPortBytes)));
}

// What a byte of the sigmoid table stands for, in steps of 1 / 256. The largest is 1: a forget
// gate of 255 / 256 would lose a third of a state in a hundred steps.
inline int32_t gate_level(int32_t q) {
#pragma HLS INLINE
  return q == 127 ? 256 : q + 128;
}

// tanh of INT16 in steps of 2^-11, in steps of 2^-15.
inline int32_t fixed_tanh(int32_t x) {
#pragma HLS INLINE
  // Constants become memories of two ports, one for each of the two columns of a cycle.
  const int32_t size = x < 0 ? -x : x;
  const int32_t capped = size > 16383 ? 16383 : size;
  const int32_t line =
      kTanhKnots[capped >> 6] + ((kTanhSlopes[capped >> 6] * (capped & 63) + 32) >> 6);
  return x < 0 ? -line : line;
}

// One column of one unit: its hidden value; `state` becomes the new one.
inline int32_t cell_one(const CellCommand& c, const UnitGates gates, uint32_t half,
                        uint32_t result, int16_t& state) {
#pragma HLS INLINE
  const bool lstm = has(c, kFlagLstm);
  const int32_t a = gate_byte(gates, half, 0, result);
  const int32_t b = gate_byte(gates, half, 1, result);
  const int32_t third = gate_byte(gates, half, 2, result);
  const int32_t fourth = gate_byte(gates, half, 3, result);
  // i c of an LSTM, r times the gated part of a GRU.
  const int32_t gated = gate_level(lstm ? a : b) * (lstm ? gate_level(fourth) - 128 : fourth);
  const int32_t kept = gate_level(third) * state;
  const int32_t acc = lstm ? kept + gated * 16 : third * 256 + gated;
  const int32_t inner = saturated(round_bits(acc, lstm ? 8 : c.shift), 32767);
  const int32_t bent = fixed_tanh(inner);
  // o tanh of an LSTM, z (state - n) of a GRU.
  const int32_t product = gate_level(lstm ? b : a) * (lstm ? bent : state - bent);
  // Between state and n, both of which fit.
  const int32_t blend = bent + round_bits(product, 8);
  state = (int16_t)(lstm ? inner : blend);
  return saturated(lstm ? round_bits(product, 16) : round_bits(blend, 8), 127);
}

// Two columns, or two units of one column: hidden values as bytes, and their states. Columns that
// do not count keep their state and give 0.
inline word_t cell_pair(const CellCommand& c, const UnitGates gates, uint32_t half, uint32_t slot,
                        bool last_tile, CellWord& states) {
#pragma HLS INLINE
  word_t bytes = 0;
pair:
  for (uint32_t p = 0; p < 2; p++) {
#pragma HLS UNROLL
    const uint32_t result = 2 * slot + p;
    int16_t state = states.v[p];
    const int32_t hidden = cell_one(c, gates, half, result, state);
    if (!last_tile || result % kCols < c.last_columns) {
      states.v[p] = state;
      bytes |= (word_t)(uint8_t)hidden << (8 * p);
    }
  }
  return bytes;
}

// The units of one visit, tile after tile. `base` is where those of the first tile have their
// states, `step` how far it is to the next tile's.
inline void cell_visit(const CellCommand& c, const Visit& visit, uint32_t base, uint32_t step,
                       WordStream& words, CellWord* cells, WordStream& hidden) {
#pragma HLS INLINE
  UnitGates gates;
#pragma HLS ARRAY_PARTITION variable=gates complete dim=0
  const uint32_t tile_words = tensor_words(visit.rows * kRows);
  const uint32_t count = (uint32_t)times(visit.tiles, tile_words);
  uint32_t slot = 0;    // word of the unit
  uint32_t half = 0;    // that is being filled
  uint32_t word = 0;    // of the tile
  uint32_t tile = 1;    // counted from 1
  uint32_t filled = 0;  // bytes of the port word
  word_t bytes = 0;
gate_words:
  for (uint32_t i = 0; i < count + kUnitWords; i++) {
#pragma HLS PIPELINE II=1
    // Every place is read and written in one iteration of this loop only.
#pragma HLS DEPENDENCE variable=cells inter false
    if (i >= kUnitWords) {
      CellWord states = cells[base + word];
      if (has(c, kFlagStateZero)) states.v[0] = states.v[1] = 0;
      const bool last_tile = visit.last_group && tile == visit.tiles;
      bytes |= cell_pair(c, gates, half ^ 1, slot, last_tile, states) << (8 * filled);
      cells[base + word] = states;
      filled += 2;
      if (filled == kPortBytes) {  // a tile of a block fills whole words: checked
        hidden.write(bytes);
        bytes = 0;
        filled = 0;
      }
      if (++word == tile_words) {
        word = 0;
        base += step;
        tile++;
      }
    }
    if (i < count) take_gates(words.read(), slot, half, gates);
    if (++slot == kUnitWords) {
      slot = 0;
      half ^= 1;
    }
  }
}

inline void load_states(const CellCommand& c, WordStream& words, CellWord* cells) {
#pragma HLS INLINE
  word_t word = 0;
loaded:
  for (uint32_t i = 0; i < 2 * c.state_words; i++) {
#pragma HLS PIPELINE II=1
    word = i % 2 == 0 ? words.read() : word >> 32;
    CellWord states;
    states.v[0] = (int16_t)(uint16_t)word;
    states.v[1] = (int16_t)(uint16_t)(word >> 16);
    cells[c.cell_base + i] = states;
  }
}

inline void store_states(const CellCommand& c, const CellWord* cells, WordStream& words) {
#pragma HLS INLINE
  word_t word = 0;
stored:
  for (uint32_t i = 0; i < 2 * c.state_words; i++) {
#pragma HLS PIPELINE II=1
    const CellWord states = cells[c.cell_base + i];
    const word_t both = (uint16_t)states.v[0] | (word_t)(uint16_t)states.v[1] << 16;
    word = i % 2 == 0 ? both : word | both << 32;
    if (i % 2 == 1) words.write(word);
  }
}

// Hidden values go on, and behind the last ones the states.
inline void cell_visits(const CellCommand& c, VisitStream& visits, WordStream& states,
                        WordStream& gates, CellWord* cells, WordStream& hidden) {
#pragma HLS INLINE
  if (has(c, kFlagStateIn)) load_states(c, states, cells);
  const uint32_t tile_words = tensor_words(c.rows);
  uint32_t base = c.cell_base;  // of the first tile of the group
  uint32_t row = 0;             // words of the blocks before
visits:
  for (uint32_t v = 0; v < c.visits; v++) {
    const Visit visit = visits.read();
    cell_visit(c, visit, base + row, tile_words, gates, cells, hidden);
    row += tensor_words(visit.rows * kRows);
    if (row == tile_words) {
      row = 0;
      base += (uint32_t)times(visit.tiles, tile_words);
    }
  }
  if (has(c, kFlagStateOut)) store_states(c, cells, hidden);
}

// Is told of cells alone.
inline void cell(CellCommandStream& commands, VisitStream& visits, WordStream& states,
                 WordStream& gates, CellWord cells[kCellDepth], WordStream& hidden) {
#pragma HLS INLINE off
#pragma HLS ALLOCATION function instances=times limit=1
  CellCommand c = end_mark<CellCommand>();
  if (kCellWords > 0) c = commands.read();
commands:
  while (!c.end) {
    cell_visits(c, visits, states, gates, cells, hidden);
    c = commands.read();
  }
}

}  // namespace bbs
