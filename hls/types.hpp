// SPDX-License-Identifier: Apache-2.0
// The words that travel between the stages, and every relation between the build parameters.
#pragma once

#include <cstdint>

#include "build.hpp"

namespace bbs {

// A word of a memory port. Wider ports would need another fetch and store, nothing else.
using word_t = uint64_t;
constexpr int kPortBytes = 8;

// An activation takes a byte in every memory of the hardware. g++ holds it in 16 bits, because
// its products then need no widening: the same values, about twice the emulated speed.
#ifdef __SYNTHESIS__
using act_t = int8_t;
#else
using act_t = int16_t;
#endif

// One feature of a column tile: the word that one read of a vector buffer lane delivers.
struct ActWord {
  act_t v[kCols];
};

// One step of compressed sparse banks: a nonzero of each of LANES banks, with its place in it.
struct WeightWord {
  int8_t weight[kLanes];
  uint8_t index[kLanes];
};

// The sums of one row over the columns of a tile.
struct SumWord {
  int32_t v[kCols];
};

// A finished row on its way to requantisation, with the multiplier of that row.
struct TotalWord {
  int32_t v[kCols];
  uint32_t multiplier;  // bits of a float32
};

// `count` neighbouring port words; `final` ends the loop of the stage that reads it.
struct Burst {
  uint32_t offset;
  uint32_t count;
  bool final;
};

// One filling of the vector buffer: the features of one pass, for each tile of a tile group.
struct Fill {
  uint32_t tiles;
  uint32_t features;   // of one tile
  uint32_t stride;     // buffer words between tiles
  uint32_t bank_size;
};

// One weight block meeting one tile group: what the compute stages do next.
struct Visit {
  uint32_t tiles;
  uint32_t rows;
  uint32_t row_words;   // CSB words of a row in this pass
  uint32_t stride;      // buffer words between tiles
  bool first_pass;      // sums start from the bias
  bool last_pass;       // sums are complete
  bool fill_end;        // the vector buffer is done with
  bool final;
};

constexpr int kColWords = kCols / kPortBytes;    // port words of a byte-wide activation word
constexpr int kLaneWords = kLanes / kPortBytes;  // port words of the weights of a CSB word
// What one tile leaves in a memory, the next one reads at least this many cycles later. Shorter
// blocks idle up to there, so that the latency of a block RAM never shows.
constexpr int kReuseDistance = 4;
constexpr int kTableEntries = 256;
constexpr int kTableWords = kTableEntries / kPortBytes;

static_assert(kLanes % kPortBytes == 0, "a CSB word must fill whole port words");
static_assert(kLanes % 2 == 0, "products are summed by pairs of lanes");
static_assert(kCols % kPortBytes == 0, "an activation word must fill whole port words");
static_assert(kCols % 2 == 0, "two columns share a multiplier");
static_assert(kRequantUnits == kPortBytes, "the drain packs one port word a cycle");
static_assert((kVectorWords & (kVectorWords - 1)) == 0, "buffer addresses wrap by masking");
static_assert(kVectorWords >= 256, "the largest bank must fit a lane of the vector buffer");
static_assert(kBlockWords >= kVectorWords, "one row of one pass must fit a weight block");
static_assert(kSumWords >= 1 && kBlockRows >= 1, "at least one row at a time");

}  // namespace bbs
