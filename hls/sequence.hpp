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
// The bursts of a fill come by tile, up to 255 of them; the fetch takes them as it goes.
using FillStream = Stream<Fill, kVisitDepth>;

// Where the current visit stands.
struct Position {
  uint32_t tile;
  uint32_t tiles;
  uint32_t row;
  uint32_t rows;
  uint32_t pass;
  uint32_t groups;
};

inline void sequence_fill(const Command& c, const Position& at, bool final,
                          BurstStream& act_bursts, FillStream& fills) {
#pragma HLS INLINE
  const uint32_t first = at.pass * c.groups_per_pass * kLanes * c.bank_size;
  const uint32_t space = at.groups * kLanes * c.bank_size;
  const uint32_t features = c.features - first < space ? c.features - first : space;
  Fill fill;
  fill.tiles = at.tiles;
  fill.features = features;
  fill.stride = at.groups * c.bank_size;
  fill.bank_size = c.bank_size;
  fills.write(fill);
fill_tiles:
  for (uint32_t t = 0; t < at.tiles; t++) {
    Burst burst;
    burst.offset = c.input + ((at.tile + t) * c.features + first) * kColWords;
    burst.count = features * kColWords;
    burst.final = final && t + 1 == at.tiles;
    act_bursts.write(burst);
  }
}

// The rows of a block in one plane. A pass is a plane of its own, [row][group][keep]; all passes
// before the last are full.
inline Burst plane_burst(const Command& c, const Position& at, uint32_t plane, uint32_t bits,
                         bool final) {
#pragma HLS INLINE
  const uint32_t full = plane_row_words(c.groups_per_pass * c.keep, bits);
  const uint32_t row_words = plane_row_words(at.groups * c.keep, bits);
  Burst burst;
  burst.offset = plane + at.pass * c.rows * full + at.row * row_words;
  burst.count = at.rows * row_words;
  burst.final = final;
  return burst;
}

inline void sequence_block(const Command& c, const Position& at, bool final,
                           BurstStream& weight_bursts, BurstStream& index_bursts,
                           BurstStream& row_bursts) {
#pragma HLS INLINE
  weight_bursts.write(plane_burst(c, at, c.weights, weight_bits(c), final));
  index_bursts.write(plane_burst(c, at, c.indices, c.index_bits, final));  // empty where dense
  Burst burst;
  burst.final = final;
  burst.offset = c.parameters + at.row;
  burst.count = at.rows;
  row_bursts.write(burst);
}

inline void sequence_store(const Command& c, const Shape& s, const Position& at, bool final,
                           BurstStream& store_bursts) {
#pragma HLS INLINE
store_tiles:
  for (uint32_t t = 0; t < at.tiles; t++) {
    Burst burst;
    burst.offset = c.output + ((at.tile + t) * c.rows + at.row) * s.output_words;
    burst.count = at.rows * s.output_words;
    burst.final = final && t + 1 == at.tiles;
    store_bursts.write(burst);
  }
}

inline void sequence(const Command c, const Shape s, BurstStream& weight_bursts,
                     BurstStream& index_bursts, BurstStream& row_bursts,
                     BurstStream& act_bursts, BurstStream& store_bursts, FillStream& fills,
                     VisitStream& unpack_visits, VisitStream& multiply_visits,
                     VisitStream& accumulate_visits) {
#pragma HLS INLINE off
  if (c.flags & kFlagTable) {
    Burst table;
    table.offset = c.table;
    table.count = kTableWords;
    table.final = false;
    row_bursts.write(table);
  }
  Position at;
  at.tile = 0;
tile_groups:
  for (uint32_t group = 0; group < s.tile_groups; group++) {
    at.tiles = c.tiles - at.tile < c.tiles_per_block ? c.tiles - at.tile : c.tiles_per_block;
    at.row = 0;
  blocks:
    for (uint32_t block = 0; block < s.blocks; block++) {
      at.rows = c.rows - at.row < c.rows_per_block ? c.rows - at.row : c.rows_per_block;
    passes:
      for (at.pass = 0; at.pass < s.passes; at.pass++) {
        const bool last_pass = at.pass + 1 == s.passes;
        const bool last_block = block + 1 == s.blocks;
        const bool last_group = group + 1 == s.tile_groups;
        const bool final = last_pass && last_block && last_group;
        at.groups = last_pass ? s.last_groups : c.groups_per_pass;
        if (s.passes > 1 || block == 0)
          sequence_fill(c, at, s.passes > 1 ? final : last_group, act_bursts, fills);
        sequence_block(c, at, final, weight_bursts, index_bursts, row_bursts);
        Visit visit;
        visit.tiles = at.tiles;
        visit.rows = at.rows;
        visit.row_words = at.groups * c.keep;
        visit.stride = at.groups * c.bank_size;
        visit.first_pass = at.pass == 0;
        visit.last_pass = last_pass;
        visit.fill_end = s.passes > 1 || last_block;
        visit.final = final;
        unpack_visits.write(visit);
        multiply_visits.write(visit);
        accumulate_visits.write(visit);
        if (last_pass) sequence_store(c, s, at, final, store_bursts);
      }
      at.row += at.rows;
    }
    at.tile += at.tiles;
  }
}

}  // namespace bbs
