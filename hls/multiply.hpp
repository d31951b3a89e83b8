// SPDX-License-Identifier: Apache-2.0
// The heart: gather, multiply, accumulate. LANES x COLS products every cycle, without a stall.
#pragma once

#include "mul_pair.hpp"
#include "unpack.hpp"

namespace bbs {

using SumStream = Stream<SumWord, 4>;

// One lane of the vector buffer: one memory of whole words, one read a cycle. Bank b of the
// features lies in lane b % LANES, so no two lanes ever ask the same memory: this is all that
// bank balance is for.
typedef ActWord VectorLane[kVectorWords];

inline void fill_vectors(FillStream& fills, WordStream& features, VectorLane vectors[kLanes]) {
#pragma HLS INLINE off
  const Fill fill = fills.read();
fill_tiles:
  for (uint32_t t = 0; t < fill.tiles; t++) {
    const uint32_t tile_base = t * fill.stride;
    uint32_t group_base = tile_base;  // where the bank of this group starts
    uint32_t index = 0;               // feature inside its bank
    uint32_t lane = 0;
    uint32_t part = 0;
    ActWord word;
  feature_words:
    for (uint32_t i = 0; i < fill.features * kColWords; i++) {
#pragma HLS PIPELINE II=1
      const word_t bits = features.read();
    bytes:
      for (int b = 0; b < kPortBytes; b++) {
#pragma HLS UNROLL
        word.v[part * kPortBytes + b] = (int8_t)(uint8_t)(bits >> (8 * b));
      }
      if (++part == kColWords) {
        part = 0;
        vectors[lane][(group_base + index) & (kVectorWords - 1)] = word;
        if (++index == fill.bank_size) {
          index = 0;
          if (++lane == kLanes) {
            lane = 0;
            group_base += fill.bank_size;
          }
        }
      }
    }
  }
}

// sum[c] += the products of one CSB word. Pairs of lanes are summed in 16 bits (mul_pair.hpp),
// and the sums of a column are touched once.
inline void multiply_word(const WeightWord& word, const VectorLane* __restrict vectors,
                          uint32_t base, int32_t* __restrict sum) {
#pragma HLS INLINE
  int16_t pairs[kLanes / 2][kCols];
#pragma HLS ARRAY_PARTITION variable=pairs complete dim=0
lane_pairs:
  for (int l = 0; l < kLanes; l += 2) {
#pragma HLS UNROLL
    // The mask only matters for indices outside their bank, which no packer writes.
    const uint32_t a = (base + word.index[l]) & (kVectorWords - 1);
    const uint32_t b = (base + word.index[l + 1]) & (kVectorWords - 1);
    pair_sums(word.weight[l], word.weight[l + 1], vectors[l][a], vectors[l + 1][b],
              pairs[l / 2]);
  }
columns:
  for (int c = 0; c < kCols; c++) {
#pragma HLS UNROLL
    uint32_t s = kLanes / 2;  // what pair_sums took off
  reduce:
    for (int l = 0; l < kLanes / 2; l++) {
#pragma HLS UNROLL
      s += (uint32_t)(int32_t)pairs[l][c];
    }
    // Packing sees to it that sums fit; unsigned, because a damaged command must not matter.
    sum[c] = (int32_t)((uint32_t)sum[c] + s);
  }
}

// One weight block meets every tile of the group. The first tile takes the words from the stream
// and leaves them in `block` for the tiles that follow: one fetch from memory, T uses.
inline void multiply_visit(const Command& c, const Visit& visit, WeightStream& words,
                           WeightWord block[kBlockWords], const VectorLane* __restrict vectors,
                           SumStream& sums) {
#pragma HLS INLINE
  const uint32_t block_words = visit.rows * visit.row_words;
  const uint32_t period = block_words < kReuseDistance ? kReuseDistance : block_words;
  const uint32_t count = visit.tiles * period;
  uint32_t tile_base = 0;
  uint32_t base = 0;
  uint32_t kept = 0;
  uint32_t row_word = 0;
  uint32_t slot = 0;
  bool first_tile = true;
  SumWord sum;
csb_words:
  for (uint32_t i = 0; i < count; i++) {
#pragma HLS PIPELINE II=1
    // A slot comes round once a period.
#pragma HLS DEPENDENCE variable=block inter RAW distance=4 true
    if (slot < block_words) {
      const WeightWord word = first_tile ? words.read() : block[slot];
      // A lone tile leaves nothing behind, so its block may be longer than the buffer.
      if (first_tile && visit.tiles > 1) block[slot] = word;
      if (row_word == 0) {
      clear:
        for (int col = 0; col < kCols; col++) {
#pragma HLS UNROLL
          sum.v[col] = 0;
        }
      }
      multiply_word(word, vectors, base, sum.v);
      if (++kept == c.keep) {  // on to the next group of banks
        kept = 0;
        base += c.bank_size;
      }
      if (++row_word == visit.row_words) {
        row_word = 0;
        base = tile_base;
        sums.write(sum);
      }
    }
    if (++slot == period) {
      slot = 0;
      first_tile = false;
      tile_base += visit.stride;
      base = tile_base;
    }
  }
}

inline void multiply_fill(const Command c, VisitStream& visits, WeightStream& words,
                          const VectorLane vectors[kLanes], SumStream& sums) {
#pragma HLS INLINE off
  WeightWord block[kBlockWords];
#pragma HLS AGGREGATE variable=block compact=bit
#pragma HLS BIND_STORAGE variable=block type=ram_s2p impl=bram
  bool fill_end = false;
visits:
  while (!fill_end) {
    const Visit visit = visits.read();
    multiply_visit(c, visit, words, block, vectors, sums);
    fill_end = visit.fill_end;
  }
}

// The vector buffer is a ping-pong between its two processes: the next tile group is loaded
// while this one is worked on. Both belong to one command, so nothing is read that this
// command has yet to write.
inline void multiply(const Command c, const Shape s, FillStream& fills, WordStream& features,
                     VisitStream& visits, WeightStream& words, SumStream& sums) {
#pragma HLS INLINE off
fills:
  for (uint32_t f = 0; f < s.fills; f++) {
#pragma HLS DATAFLOW
    // Lanes without a bank in the last group are never filled; their weights are zero, so what
    // the words hold adds nothing.
    VectorLane vectors[kLanes];
#pragma HLS ARRAY_PARTITION variable=vectors complete dim=1
#pragma HLS AGGREGATE variable=vectors compact=bit
#pragma HLS BIND_STORAGE variable=vectors type=ram_s2p impl=bram
    fill_vectors(fills, features, vectors);
    multiply_fill(c, visits, words, vectors, sums);
  }
}

}  // namespace bbs
