// SPDX-License-Identifier: Apache-2.0
// The words that travel between the stages, and every relation between the build parameters.
#pragma once

#include <cstdint>

#include "build.hpp"

#ifdef __SYNTHESIS__
#include <ap_int.h>
#endif

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

// An operand of so many bits, because HLS cannot see through the fields of a command how wide they
// are, and takes 32 bits and three DSPs for granted. No value leaves them in g++ either.
#ifdef __SYNTHESIS__
template <int kBits>
using narrow_t = ap_int<kBits>;
#else
template <int kBits>
using narrow_t = int64_t;
#endif

// Bits of an index are bits of the block buffer and of the queue before it, LANES x ROWS of each.
#ifdef __SYNTHESIS__
using index_t = ap_uint<kIndexBits>;
#else
using index_t = uint8_t;
#endif

// With few columns several features share a word, so that no word is narrower than a port's.
constexpr int kPack = kCols < kPortBytes ? kPortBytes / kCols : 1;
constexpr int kWordActs = kPack * kCols;
constexpr int kPortWords = kWordActs / kPortBytes;  // port words of an activation word
constexpr int kWide = kRows * kCols;                // sums of a row group

// One feature of a column tile (kPack features, where a column tile is narrow): the word that one
// read of a vector buffer lane delivers.
struct ActWord {
  act_t v[kWordActs];
};

// One step of compressed sparse banks: a nonzero of each of LANES banks of each of ROWS rows,
// with its place in its bank.
struct WeightWord {
  int8_t weight[kRows * kLanes];
  index_t index[kRows * kLanes];
};

// The sums of a row group over the columns of a tile.
struct SumWord {
  int32_t v[kWide];
};

// The states of two columns of a unit, or with one column of two units.
struct CellWord {
  int16_t v[2];
};

// Runs of `count` neighbouring port words, `step` words from one start to the next; `final` ends
// the loop of the stage that reads it. With `command` they are the words of the next command.
struct Burst {
  uint32_t offset;
  uint32_t count;
  uint32_t times;
  uint32_t step;
  bool final;
  bool command;
};

// One filling of a half of the vector buffer: the features of one pass, for each tile of a group.
struct Fill {
  uint32_t tiles;
  uint32_t features;      // of one tile
  uint32_t stride;        // buffer words between tiles
  uint32_t first_group;   // of this pass
  uint32_t groups;
  uint32_t channel_base;  // where the part's channels lie in the image memory, from image_base on
  bool again;             // the same tiles as the fill before
};

// Writes to the vector buffer: up to kTaps lanes, one after the other from `lane` on, get a word
// each.
struct VectorWrite {
  ActWord word[kTaps];
  uint16_t place[kTaps];
  uint8_t lane;
  uint8_t taps;  // bit set of those that count
  bool last;     // of this filling
};

// One weight block meeting one tile group: what the compute stages do next. Rows are counted in
// row groups.
struct Visit {
  uint32_t tiles;
  uint32_t rows;
  uint32_t row_words;   // CSB words of a row group in this pass
  uint32_t stride;      // buffer words between tiles
  uint32_t block;       // where its words lie in the block buffer
  uint32_t parameters;  // where those of its rows are kept
  bool first_pass;      // sums start from the bias
  bool last_pass;       // sums are complete
  bool last_group;      // the last tile is among the tiles
  bool fill_end;        // the filling is done with
  bool again;           // both are there since the tile group before
  bool final;
};

constexpr int kLaneWords = kRows * kLanes / kPortBytes;  // port words of a CSB word's weights
// Features are counted in steps that fill whole words, rows in steps that fill row groups too.
constexpr int kRowStep = kRows > kPack ? kRows : kPack;
// What one tile leaves in a memory, the next one reads at least this many cycles later. Shorter
// blocks idle up to there, so that the latency of a block RAM never shows.
constexpr int kReuseDistance = 4;
constexpr int kTableEntries = 256;
constexpr int kTableWords = kTableEntries / kPortBytes;
// Rows that an LSTM or GRU has for each unit.
constexpr int kGates = 4;
constexpr int kCellDepth = kCellWords > 0 ? kCellWords : 1;
// Pixels of a word of the image memory. The eight beyond COLS let one read give a window's row of
// taps for all columns.
constexpr int kBanks = kCols + 8;

static_assert(kRows * kLanes % kPortBytes == 0, "a CSB word must fill whole port words");
static_assert(kLanes % 2 == 0, "products are summed by pairs of lanes");
static_assert(kPack * kCols % kPortBytes == 0, "an activation word must fill whole port words");
static_assert(kCols == 1 || kCols % 2 == 0, "two columns share a multiplier");
static_assert(kRequantUnits >= 1 && kPortBytes % kRequantUnits == 0 && kWide % kRequantUnits == 0,
              "port words and row groups are packed from as many bytes");
static_assert(kWide >= 2, "two sums share a port word");
static_assert(kRowStep % kRows == 0 && kRowStep % kPack == 0, "row groups and words must nest");
static_assert((kVectorWords & (kVectorWords - 1)) == 0, "buffer addresses wrap by masking");
static_assert(kVectorWords >= 256, "the largest bank must fit a lane of the vector buffer");
static_assert(kBlockWords >= kVectorWords, "one row of one pass must fit a weight block");
static_assert(kSumWords >= 1 && kBlockRows >= 1, "at least one row at a time");
static_assert(kTaps >= kPack && kLanes % kPack == 0,
              "a word of narrow banks goes to as many lanes");
static_assert(kTaps >= 1 && kTaps <= kLanes && kTaps <= 8, "taps of a read go to different lanes");
static_assert(kImageWords == 0 || kPack == 1, "an image needs a whole word of columns");
static_assert((kImageWords & (kImageWords - 1)) == 0, "image addresses wrap by masking");
static_assert(kFabricLanes >= 0 && kFabricLanes <= kLanes && kFabricLanes % 2 == 0,
              "products are placed by pairs of lanes");
static_assert(kIndexBits == 4 || kIndexBits == 6 || kIndexBits == 8, "as indices come");

// CSB words of the block of a visit. Commands hold rows of a block in 16 bits and groups in 16,
// and keep is at most 2^8: one DSP multiplies them.
inline uint32_t block_words_of(const Visit& visit) {
#pragma HLS INLINE
  return (uint32_t)(uint16_t)visit.rows * (visit.row_words & 0xffffff);
}

static_assert(kBlockWords < 1 << 16 && kBlockRows * kRows < 1 << 16, "periods have 16 bits");

}  // namespace bbs
