// SPDX-License-Identifier: Apache-2.0
// The order of work: the only loop nest over tile groups, weight blocks and passes.
//
// Every other stage does what it is told by the streams filled here and ends at `final`, so the
// order can change without touching them, and no two stages can disagree about a count.
#pragma once

#include "check.hpp"
#include "dataflow.hpp"
#include "types.hpp"

namespace bbs {

// Visits that a fetching stage may be ahead of the multipliers.
constexpr int kVisitDepth = 8;
using BurstStream = Stream<Burst, kVisitDepth>;
using VisitStream = Stream<Visit, kVisitDepth>;
using FillStream = Stream<Fill, kVisitDepth>;

// Where the current visit stands. Rows are counted in row groups.
struct Position {
  uint32_t tile;
  uint32_t tiles;
  uint32_t row;
  uint32_t rows;
  uint32_t pass;
  uint32_t groups;
  bool again;  // weights and row parameters are there
};

// Ends a stage that has nothing to do.
inline Burst no_burst(bool final) {
#pragma HLS INLINE
  Burst burst;
  burst.offset = 0;
  burst.count = 0;
  burst.times = 0;
  burst.step = 0;
  burst.final = final;
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
  fill.again = at.block > 0 || at.pass > 0;
  if (has(c, kFlagImage)) tile_fills.write(fill);
  fills.write(fill);
  at.index++;
  if (!has(c, kFlagImage) && !has(c, kFlagFromChain)) {
    Burst burst;
    burst.offset = c.input + tensor_words((uint32_t)times(at.tile, c.input_stride) + first);
    burst.count = tensor_words(features);
    burst.times = fill.tiles;
    burst.step = tensor_words(c.input_stride);
    burst.final = at.index == s.fills;
    act_bursts.write(joined(burst));
  }
  at.pass = last_pass ? 0 : at.pass + 1;
  // With one pass the features stay while all blocks go by.
  if (last_pass && (c.passes == 1 || ++at.block == c.blocks)) {
    at.block = 0;
    at.tile += fill.tiles;
  }
}

inline void sequence_table(const Command& c, BurstStream& row_bursts) {
#pragma HLS INLINE
  if (!has(c, kFlagTable)) return;
  Burst burst = no_burst(false);
  burst.offset = c.table;
  burst.count = kTableWords;
  burst.times = 1;
  row_bursts.write(burst);
}

// An image comes in one piece; where nothing comes, the fetch is ended at once.
inline void sequence_image(const Command& c, const Shape& s, BurstStream& act_bursts) {
#pragma HLS INLINE
  const bool by_fill = !has(c, kFlagImage) && !has(c, kFlagFromChain);
  const bool loads = has(c, kFlagImage) && !has(c, kFlagFromChain) && !has(c, kFlagResidentInput);
  if (by_fill) return;
  Burst burst = no_burst(true);
  if (loads) {
    burst.offset = c.input;
    burst.count = tensor_words(c.channels);
    burst.times = s.image_tiles;
    burst.step = tensor_words(c.input_stride);
  }
  act_bursts.write(joined(burst));
}

// The rows of a block in one plane. A pass is a plane of its own, [row group][group][keep]; all
// passes before the last are full.
inline Burst plane_burst(const Command& c, const Shape& s, const Position& at, uint32_t plane,
                         uint32_t bits, bool final) {
#pragma HLS INLINE
  const uint32_t full = plane_row_words((uint32_t)times(c.groups_per_pass, c.keep), bits);
  const uint32_t row_words = plane_row_words((uint32_t)times(at.groups, c.keep), bits);
  const uint32_t before = (uint32_t)times(at.pass, s.row_groups);  // row groups of earlier passes
  Burst burst = no_burst(final);
  burst.offset = plane + (uint32_t)times(before, full) + (uint32_t)times(at.row, row_words);
  burst.count = (uint32_t)times(at.rows, row_words);
  burst.times = has(c, kFlagResidentWeights) || at.again ? 0 : 1;
  return burst;
}

inline void sequence_block(const Command& c, const Shape& s, const Position& at, bool final,
                           BurstStream& weight_bursts, BurstStream& index_bursts,
                           BurstStream& row_bursts) {
#pragma HLS INLINE
  weight_bursts.write(plane_burst(c, s, at, c.weights, weight_bits(c), final));
  index_bursts.write(plane_burst(c, s, at, c.indices, c.index_bits, final));  // dense: empty
  Burst burst = no_burst(final);
  burst.offset = c.parameters + at.row * kRows;
  burst.count = at.rows * kRows;
  burst.times = at.again ? 0 : 1;
  row_bursts.write(burst);
}

inline void sequence_store(const Command& c, const Position& at, bool final,
                           BurstStream& residual_bursts, BurstStream& store_bursts) {
#pragma HLS INLINE
  const uint32_t row = output_features(c, at.row * kRows);
  const uint32_t place = (uint32_t)times(at.tile, c.output_stride) + row;
  Burst burst;
  burst.offset = c.output + output_words(c, place);
  burst.count = output_words(c, output_features(c, at.rows * kRows));
  burst.times = at.tiles;
  burst.step = output_words(c, c.output_stride);
  burst.final = final && !has(c, kFlagStateOut);
  store_bursts.write(joined(burst));
  burst.final = final;
  if (has(c, kFlagResidual)) {
    burst.offset = c.residual + tensor_words(place);
    residual_bursts.write(joined(burst));
  }
}

// All states in one piece: loaded before anything else, or stored after it.
inline Burst state_burst(const Command& c, uint32_t offset) {
#pragma HLS INLINE
  Burst burst = no_burst(true);
  burst.offset = offset;
  burst.count = c.state_words;
  burst.times = 1;
  return burst;
}

// Ends every stage that touches memory.
inline void end_ports(BurstStream& weights, BurstStream& indices, BurstStream& rows,
                      BurstStream& activations, BurstStream& residuals, BurstStream& stores) {
#pragma HLS INLINE
  weights.write(no_burst(true));
  indices.write(no_burst(true));
  rows.write(no_burst(true));
  activations.write(no_burst(true));
  residuals.write(no_burst(true));
  stores.write(no_burst(true));
}

// The sizes of a visit.
inline Visit visit_at(const Command& c, const Position& at) {
#pragma HLS INLINE
  Visit visit;
  visit.tiles = at.tiles;
  visit.first_pass = at.pass == 0;
  visit.rows = at.rows;
  visit.row_words = (uint32_t)times(at.groups, c.keep);
  visit.stride = (uint32_t)times(at.groups, bank_space(c));
  const uint32_t place = c.block_base + (uint32_t)times(at.row, visit.row_words);
  visit.block = keeps_block(c) ? place : 0;
  visit.again = at.again;
  return visit;
}

inline void sequence(const Command c, const Shape s, BurstStream& weight_bursts,
                     BurstStream& index_bursts, BurstStream& row_bursts,
                     BurstStream& act_bursts, BurstStream& residual_bursts,
                     BurstStream& store_bursts, FillStream& tile_fills, FillStream& fills,
                     VisitStream& unpack_visits, VisitStream& multiply_visits,
                     VisitStream& accumulate_visits, VisitStream& cell_visits) {
#pragma HLS INLINE off
#pragma HLS ALLOCATION function instances=times limit=1
#pragma HLS ALLOCATION function instances=plane_row_words limit=1
  if (is_nothing(c)) {
    end_ports(weight_bursts, index_bursts, row_bursts, act_bursts, residual_bursts, store_bursts);
    return;
  }
  sequence_table(c, row_bursts);
  sequence_image(c, s, act_bursts);
  if (!has(c, kFlagResidual))
    residual_bursts.write(has(c, kFlagStateIn) ? state_burst(c, c.residual) : no_burst(true));
  FillPosition next = {0, 0, 0, 0};
  sequence_fill(c, s, next, act_bursts, tile_fills, fills);
  Position at;
  at.tile = 0;
tile_groups:
  for (uint32_t group = 0; group < c.tile_groups; group++) {
    at.tiles = c.tiles - at.tile < c.tiles_per_block ? c.tiles - at.tile : c.tiles_per_block;
    at.row = 0;
    at.again = s.stays && group > 0;
  blocks:
    for (uint32_t block = 0; block < c.blocks; block++) {
      at.rows = s.row_groups - at.row < s.block_rows ? s.row_groups - at.row : s.block_rows;
    passes:
      for (at.pass = 0; at.pass < c.passes; at.pass++) {
        const bool last_pass = at.pass + 1 == c.passes;
        const bool last_block = block + 1 == c.blocks;
        const bool last_group = group + 1 == c.tile_groups;
        const bool final = last_pass && last_block && last_group;
        at.groups = last_pass ? s.last_groups : c.groups_per_pass;
        // The filling behind the one that this visit works on: the multipliers ask for its words
        // already during the visit, so it may not wait for the visits to come.
        if ((c.passes > 1 || block == 0) && next.index < s.fills)
          sequence_fill(c, s, next, act_bursts, tile_fills, fills);
        sequence_block(c, s, at, final, weight_bursts, index_bursts, row_bursts);
        Visit visit = visit_at(c, at);
        visit.last_pass = last_pass;
        visit.last_group = last_group;
        visit.fill_end = c.passes > 1 || last_block;
        visit.final = final;
        unpack_visits.write(visit);
        multiply_visits.write(visit);
        accumulate_visits.write(visit);
        if (is_cell(c) && last_pass) cell_visits.write(visit);
        if (last_pass) sequence_store(c, at, final, residual_bursts, store_bursts);
      }
      at.row += at.rows;
    }
    at.tile += at.tiles;
  }
  if (has(c, kFlagStateOut)) store_bursts.write(state_burst(c, c.state));
}

}  // namespace bbs
