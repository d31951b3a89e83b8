// SPDX-License-Identifier: Apache-2.0
// The order of work: the only loop nest over tile groups, parts, weight blocks and passes.
//
// Every other stage does what it is told by the streams filled here, until `final`, so the order
// can change without touching them, and no two stages can disagree about a count.
#pragma once

#include "stages.hpp"

namespace bbs {

// Visits that a fetching stage may be ahead of the multipliers.
constexpr int kVisitDepth = 8;
using BurstStream = Stream<Burst, kVisitDepth>;
using VisitStream = Stream<Visit, kVisitDepth>;
using FillStream = Stream<Fill, kVisitDepth>;

// Where the current visit stands. Rows are counted in row groups.
struct Position {
  uint32_t tile_group;
  uint32_t part;
  uint32_t block;
  uint32_t pass;
  uint32_t tile;
  uint32_t tiles;
  uint32_t row;
  uint32_t rows;
  uint32_t part_end;  // row at which the part ends
  uint32_t groups;
};

// All tiles and rows in one pass: what lies in one piece comes in one.
inline Position everything(const Command& c, const Shape& s) {
#pragma HLS INLINE
  return {0, 0, 0, 0, 0, c.tiles, 0, s.row_groups, 0, s.last_groups};
}

inline bool is_first(const Position& at) {
#pragma HLS INLINE
  return at.tile_group == 0 && at.part == 0 && at.block == 0 && at.pass == 0;
}

inline Burst no_burst() {
#pragma HLS INLINE
  Burst burst = {};
  return burst;
}

// Runs that lie side by side are one: each has a latency of its own.
inline Burst joined(const Burst& burst) {
#pragma HLS INLINE
  if (burst.count != burst.step) return burst;
  Burst whole = burst;
  whole.count = (uint32_t)times(burst.times, burst.count);
  whole.times = 1;
  return whole;
}

// Which filling of the vector buffer comes next.
struct FillPosition {
  uint32_t index;  // of all fillings
  uint32_t tile;
  uint32_t part;
  uint32_t channel_base;  // of the part
  uint32_t block;
  uint32_t pass;
};

// A fill tells the gathering what to bring, and of an image also which pixels the tiles hold.
inline void sequence_fill(const Command& c, const Shape& s, FillPosition& at,
                          BurstStream& act_bursts, FillStream& tile_fills, FillStream& fills) {
#pragma HLS INLINE
  const bool last_pass = at.pass + 1 == c.passes;
  const uint32_t groups = last_pass ? s.last_groups : c.groups_per_pass;
  const uint32_t first_group = (uint32_t)times(at.pass, c.groups_per_pass);
  const uint32_t first = kLanes * (uint32_t)times(first_group, c.bank_size);
  const uint32_t space = kLanes * (uint32_t)times(groups, c.bank_size);
  const uint32_t features = c.features - first < space ? c.features - first : space;
  const uint32_t rest = c.tiles - at.tile;
  Fill fill;
  fill.tiles = rest < c.tiles_per_block ? rest : c.tiles_per_block;
  fill.features = features;
  fill.stride = (uint32_t)times(groups, bank_space(c));
  fill.first_group = first_group;
  fill.groups = groups;
  fill.channel_base = at.channel_base;
  fill.again = at.part > 0 || at.block > 0 || at.pass > 0;
  if (has(c, kFlagImage)) tile_fills.write(fill);
  fills.write(fill);
  at.index++;
  if (!has(c, kFlagImage) && !has(c, kFlagFromChain)) {
    Burst burst = no_burst();
    burst.offset = c.input + tensor_words((uint32_t)times(at.tile, c.input_stride) + first);
    burst.count = tensor_words(features);
    burst.times = fill.tiles;
    burst.step = tensor_words(c.input_stride);
    act_bursts.write(joined(burst));
  }
  at.pass = last_pass ? 0 : at.pass + 1;
  // With one pass the features stay while all blocks of the part go by.
  if (last_pass && (c.passes == 1 || ++at.block == c.blocks)) {
    at.block = 0;
    at.channel_base += (uint32_t)times(c.part_channels, c.image_words);
    if (++at.part == parts_of(c)) {
      at.part = 0;
      at.channel_base = 0;
      at.tile += fill.tiles;
    }
  }
}

inline void sequence_table(const Command& c, BurstStream& row_bursts) {
#pragma HLS INLINE
  if (!has(c, kFlagTable)) return;
  Burst burst = no_burst();
  burst.offset = c.table;
  burst.count = kTableWords;
  burst.times = 1;
  row_bursts.write(burst);
}

// An image comes in one piece.
inline void sequence_image(const Command& c, const Shape& s, BurstStream& act_bursts) {
#pragma HLS INLINE
  const bool loads = has(c, kFlagImage) && !has(c, kFlagFromChain) && !has(c, kFlagResidentInput);
  if (!loads) return;
  Burst burst = no_burst();
  burst.offset = c.input;
  burst.count = tensor_words(c.channels);
  burst.times = s.image_tiles;
  burst.step = tensor_words(c.input_stride);
  act_bursts.write(joined(burst));
}

// The rows at `at` in one plane. A pass is a plane of its own, [row group][group][keep]; all
// passes before the last are full.
inline Burst plane_burst(const Command& c, const Shape& s, const Position& at, uint32_t plane,
                         uint32_t bits) {
#pragma HLS INLINE
  const uint32_t full = plane_row_words((uint32_t)times(c.groups_per_pass, c.keep), bits);
  const uint32_t row_words = plane_row_words((uint32_t)times(at.groups, c.keep), bits);
  const uint32_t before = (uint32_t)times(at.pass, s.row_groups);  // row groups of earlier passes
  Burst burst = no_burst();
  burst.offset = plane + (uint32_t)times(before, full) + (uint32_t)times(at.row, row_words);
  burst.count = (uint32_t)times(at.rows, row_words);
  return burst;
}

// What the rows of a visit take from memory. With one pass the rows of all visits lie in one
// piece, which every tile group takes once, or the first one alone.
inline void sequence_rows(const Command& c, const Shape& s, const Position& at,
                          BurstStream& weight_bursts, BurstStream& index_bursts,
                          BurstStream& row_bursts) {
#pragma HLS INLINE
  const bool at_once = c.passes == 1;
  if (at_once && !is_first(at)) return;
  const Position rows = at_once ? everything(c, s) : at;
  const uint32_t repeats = at_once && !s.stays ? c.tile_groups : 1;
  Burst weights = plane_burst(c, s, rows, c.weights, weight_bits(c));
  Burst indices = plane_burst(c, s, rows, c.indices, c.index_bits);  // dense: empty
  Burst parameters = no_burst();
  parameters.offset = c.parameters + rows.row * kRows;
  parameters.count = rows.rows * kRows;
  weights.times = indices.times = parameters.times = repeats;
  if (!has(c, kFlagResidentWeights)) {
    weight_bursts.write(weights);
    index_bursts.write(indices);
  }
  row_bursts.write(parameters);
}

// Where the outputs of a visit go, and what they are combined with: in order all at once.
inline void sequence_store(const Command& c, const Shape& s, const Position& at, bool final,
                           BurstStream& residual_bursts, BurstStream& store_bursts) {
#pragma HLS INLINE
  const bool at_once = in_order(c);
  if (at_once ? !is_first(at) : at.pass + 1 < c.passes) return;
  const Position out = at_once ? everything(c, s) : at;
  const uint32_t row = output_features(c, out.row * kRows);
  const uint32_t place = (uint32_t)times(out.tile, c.output_stride) + row;
  Burst burst = no_burst();
  burst.offset = c.output + output_words(c, place);
  burst.count = output_words(c, output_features(c, out.rows * kRows));
  burst.times = out.tiles;
  burst.step = output_words(c, c.output_stride);
  burst.final = (at_once || final) && !has(c, kFlagStateOut);
  if (has(c, kFlagToMemory)) store_bursts.write(joined(burst));
  burst.final = false;
  if (has(c, kFlagResidual)) {
    burst.offset = c.residual + tensor_words(place);
    residual_bursts.write(joined(burst));
  }
}

// All states in one piece: loaded before anything else, or stored after it.
inline Burst state_burst(const Command& c, uint32_t offset, bool final) {
#pragma HLS INLINE
  Burst burst = no_burst();
  burst.offset = offset;
  burst.count = c.state_words;
  burst.times = 1;
  burst.final = final;
  return burst;
}

inline Visit visit_at(const Command& c, const Shape& s, const Position& at) {
#pragma HLS INLINE
  const bool last_block = at.block + 1 == c.blocks;
  const bool last_part = at.part + 1 == parts_of(c);
  Visit visit;
  visit.tiles = at.tiles;
  visit.rows = at.rows;
  visit.row_words = (uint32_t)times(at.groups, c.keep);
  visit.stride = (uint32_t)times(at.groups, bank_space(c));
  const uint32_t place = (uint32_t)times(at.row, visit.row_words);
  visit.block = keeps_block(c) ? c.block_base + place : s.stays ? place : 0;
  visit.parameters = s.stays ? at.row : 0;
  visit.again = s.stays && at.tile_group > 0;
  visit.first_pass = at.pass == 0;
  visit.last_pass = at.pass + 1 == c.passes;
  visit.last_group = at.tile_group + 1 == c.tile_groups;
  visit.fill_end = c.passes > 1 || last_block;
  visit.final = visit.last_pass && last_block && last_part && visit.last_group;
  return visit;
}

inline void sequence_command(const Command& c, const Shape& s, BurstStream& weight_bursts,
                             BurstStream& index_bursts, BurstStream& row_bursts,
                             BurstStream& act_bursts, BurstStream& residual_bursts,
                             BurstStream& store_bursts, FillStream& tile_fills, FillStream& fills,
                             VisitStream& unpack_visits, VisitStream& multiply_visits,
                             VisitStream& finish_visits, VisitStream& cell_visits) {
#pragma HLS INLINE
  sequence_table(c, row_bursts);
  sequence_image(c, s, act_bursts);
  if (has(c, kFlagStateIn)) residual_bursts.write(state_burst(c, c.residual, false));
  FillPosition next = {0, 0, 0, 0, 0, 0};
  sequence_fill(c, s, next, act_bursts, tile_fills, fills);
  Position at;
  at.tile = 0;
tile_groups:
  for (at.tile_group = 0; at.tile_group < c.tile_groups; at.tile_group++) {
    at.tiles = c.tiles - at.tile < c.tiles_per_block ? c.tiles - at.tile : c.tiles_per_block;
    at.row = at.part_end = 0;
  parts:
    for (at.part = 0; at.part < parts_of(c); at.part++) {
      at.part_end += s.part_rows;
    blocks:
      for (at.block = 0; at.block < c.blocks; at.block++) {
        const uint32_t rest = at.part_end - at.row;
        at.rows = rest < s.block_rows ? rest : s.block_rows;
      passes:
        for (at.pass = 0; at.pass < c.passes; at.pass++) {
          at.groups = at.pass + 1 == c.passes ? s.last_groups : c.groups_per_pass;
          // The filling behind the one that this visit works on: the multipliers ask for its words
          // already during the visit, so it may not wait for the visits to come.
          if ((c.passes > 1 || at.block == 0) && next.index < s.fills)
            sequence_fill(c, s, next, act_bursts, tile_fills, fills);
          const Visit visit = visit_at(c, s, at);
          sequence_rows(c, s, at, weight_bursts, index_bursts, row_bursts);
          unpack_visits.write(visit);
          multiply_visits.write(visit);
          finish_visits.write(visit);
          if (is_cell(c) && visit.last_pass) cell_visits.write(visit);
          sequence_store(c, s, at, visit.final, residual_bursts, store_bursts);
        }
        at.row += at.rows;
      }
    }
    at.tile += at.tiles;
  }
  if (has(c, kFlagStateOut)) store_bursts.write(state_burst(c, c.state, true));
}

}  // namespace bbs
