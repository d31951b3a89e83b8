// SPDX-License-Identifier: Apache-2.0
// From the two planes in memory to CSB words: eight lanes a cycle, weights of 4 or 8 bits, indices
// of 0, 4, 6 or 8.
#pragma once

#include "memory.hpp"

namespace bbs {

// Deep enough for a weight block, so that the next one is fetched while this one meets its tiles;
// less deep where weights are resident.
using WeightStream = Stream<WeightWord, kQueueWords>;

// Takes slices of `bits` out of port words, lowest bits first.
struct Gearbox {
  word_t rest;
  uint32_t held;  // bits in `rest`, below 64
};

inline word_t next_slice(Gearbox& gear, uint32_t bits, WordStream& words) {
#pragma HLS INLINE
  const word_t mask = bits >= 64 ? ~(word_t)0 : ((word_t)1 << bits) - 1;
  word_t slice = gear.rest;
  if (gear.held >= bits) {
    gear.rest = gear.rest >> bits;  // bits < 64 here, because held < 64
    gear.held -= bits;
  } else {
    const word_t word = words.read();
    slice |= word << gear.held;
    const uint32_t used = bits - gear.held;
    gear.rest = used >= 64 ? 0 : word >> used;
    gear.held = 64 - used;
  }
  return slice & mask;
}

// The lowest `bits` bits as a signed number.
inline int8_t sign_extended(word_t value, uint32_t bits) {
#pragma HLS INLINE
  const uint32_t shift = 8 - bits;
  return (int8_t)((int8_t)(uint8_t)(value << shift) >> shift);
}

// All visits of a command in one loop, so that the pipeline does not empty between them.
inline void unpack_planes(const UnpackCommand& c, VisitStream& visits, WordStream& weights,
                          WordStream& indices, WeightStream& words) {
#pragma HLS INLINE
  const uint32_t index_mask = (1u << c.index_bits) - 1;
  const uint32_t bits = weight_bits(c);
  const bool dense = has(c, kFlagDense);
  const bool resident = has(c, kFlagResidentWeights);
  Visit visit = {};
  uint32_t rest = 0;  // CSB words of the visit
  uint32_t row_word = 0;
  uint32_t keep = 0;
  uint32_t part = 0;
  Gearbox weight_gear = {0, 0};
  Gearbox index_gear = {0, 0};
  WeightWord word = {};
  bool final = false;
slices:
  while (!final || rest > 0) {
#pragma HLS PIPELINE II=1
    if (rest == 0) {
      visit = visits.read();
      final = visit.final;
      rest = resident || visit.again ? 0 : block_words_of(visit);
    }
    if (rest > 0) {
      const word_t eight_weights = next_slice(weight_gear, kPortBytes * bits, weights);
      const word_t eight_indices =
          dense ? 0 : next_slice(index_gear, kPortBytes * c.index_bits, indices);
    lanes:
      for (int l = 0; l < kPortBytes; l++) {
#pragma HLS UNROLL
        word.weight[part * kPortBytes + l] = sign_extended(eight_weights >> (bits * l), bits);
        // A dense bank keeps every weight: the index is the count itself.
        word.index[part * kPortBytes + l] =
            (index_t)(dense ? keep : (eight_indices >> (c.index_bits * l)) & index_mask);
      }
      if (++part == kLaneWords) {
        part = 0;
        rest--;
        words.write(word);
        if (++keep == c.keep) keep = 0;
        if (++row_word == visit.row_words) {  // the next row group starts on a whole port word
          row_word = 0;
          weight_gear.rest = index_gear.rest = 0;
          weight_gear.held = index_gear.held = 0;
        }
      }
    }
  }
}

inline void unpack(UnpackCommandStream& commands, VisitStream& visits, WordStream& weights,
                   WordStream& indices, WeightStream& words) {
#pragma HLS INLINE off
  UnpackCommand c = commands.read();
commands:
  while (!c.end) {
    unpack_planes(c, visits, weights, indices, words);
    c = commands.read();
  }
}

}  // namespace bbs
