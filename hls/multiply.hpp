// SPDX-License-Identifier: Apache-2.0
// The heart: gather, multiply, accumulate. ROWS x LANES x COLS products every cycle, without a
// stall.
#pragma once

#include "gather.hpp"
#include "mul_pair.hpp"
#include "unpack.hpp"

namespace bbs {

using SumStream = Stream<SumWord, 8>;

// One lane of the vector buffer: one memory of whole words, one read a cycle. Bank b of the
// features lies in lane b % LANES, so no two lanes ever ask the same memory: this is all that
// bank balance is for. It has two halves: one is filled while the other is worked on. With
// several rows at a time every row has a copy, to read other places of the same banks.
constexpr int kLaneDepth = 2 * kVectorWords / kPack;
typedef ActWord VectorLane[kLaneDepth];

// The feature at `place` of a half, COLS columns of it. The mask only matters for indices outside
// their bank, which no packer writes.
inline const act_t* feature_at(const VectorLane& lane, uint32_t half, uint32_t place) {
#pragma HLS INLINE
  const uint32_t at = half + (place & (kVectorWords - 1));
  return &lane[at / kPack].v[at % kPack * kCols];
}

inline void write_vectors(const VectorWrite& write, uint32_t half,
                          VectorLane vectors[kRows][kLanes]) {
#pragma HLS INLINE
taps:
  for (int i = 0; i < kTaps; i++) {
#pragma HLS UNROLL
    const uint32_t lane = write.lane + i < kLanes ? write.lane + i : write.lane + i - kLanes;
    const uint32_t at = (half + (write.place[i] & (kVectorWords - 1))) / kPack;
    if (write.taps >> i & 1) {
    copies:
      for (int r = 0; r < kRows; r++) {
#pragma HLS UNROLL
        vectors[r][lane][at] = write.word[i];
      }
    }
  }
}

// sum[c] += the products of one CSB word for one row. Pairs of lanes are summed in 16 bits
// (mul_pair.hpp), and the sums of a column are touched once.
inline void multiply_row(const int8_t* __restrict weight, const index_t* __restrict index,
                         const VectorLane* __restrict vectors, uint32_t half, uint32_t base,
                         int32_t* __restrict sum) {
#pragma HLS INLINE
  int16_t pairs[kLanes / 2][kCols];
#pragma HLS ARRAY_PARTITION variable=pairs complete dim=0
  uint32_t owed = 0;  // by the sums of pairs
dsp_pairs:
  for (int l = 0; l < kLanes - kFabricLanes; l += 2) {
#pragma HLS UNROLL
    owed += pair_owed<Place::kDsp>(weight[l], weight[l + 1]);
    pair_sums<Place::kDsp>(weight[l], weight[l + 1],
                           feature_at(vectors[l], half, base + index[l]),
                           feature_at(vectors[l + 1], half, base + index[l + 1]), pairs[l / 2]);
  }
fabric_pairs:
  for (int l = kLanes - kFabricLanes; l < kLanes; l += 2) {
#pragma HLS UNROLL
    owed += pair_owed<Place::kFabric>(weight[l], weight[l + 1]);
    pair_sums<Place::kFabric>(weight[l], weight[l + 1],
                              feature_at(vectors[l], half, base + index[l]),
                              feature_at(vectors[l + 1], half, base + index[l + 1]),
                              pairs[l / 2]);
  }
columns:
  for (int c = 0; c < kCols; c++) {
#pragma HLS UNROLL
    uint32_t s = owed;
  reduce:
    for (int l = 0; l < kLanes / 2; l++) {
#pragma HLS UNROLL
      s += (uint32_t)(int32_t)pairs[l][c];
    }
    // Packing sees to it that sums fit; unsigned, because a damaged command must not matter.
    sum[c] = (int32_t)((uint32_t)sum[c] + s);
  }
}

// sum[c] = the largest feature so far among those whose weight is not zero. The largest of the
// lanes first, by halves: one after the other against the sum would all have to fit one cycle.
inline void maximise_row(const int8_t* __restrict weight, const index_t* __restrict index,
                         const VectorLane* __restrict vectors, uint32_t half, uint32_t base,
                         int32_t* __restrict sum) {
#pragma HLS INLINE
  act_t largest[kLanes][kCols];
#pragma HLS ARRAY_PARTITION variable=largest complete dim=0
lanes:
  for (int l = 0; l < kLanes; l++) {
#pragma HLS UNROLL
    const act_t* feature = feature_at(vectors[l], half, base + index[l]);
  features:
    for (int c = 0; c < kCols; c++) {
#pragma HLS UNROLL
      largest[l][c] = weight[l] != 0 ? feature[c] : (act_t)-128;
    }
  }
steps:
  for (int step = 1; step < kLanes; step *= 2) {
#pragma HLS UNROLL
  pairs:
    for (int l = 0; l < kLanes; l++) {
#pragma HLS UNROLL
      if (l % (2 * step) != 0 || l + step >= kLanes) continue;
    larger:
      for (int c = 0; c < kCols; c++) {
#pragma HLS UNROLL
        const act_t other = largest[l + step][c];
        largest[l][c] = other > largest[l][c] ? other : largest[l][c];
      }
    }
  }
columns:
  for (int c = 0; c < kCols; c++) {
#pragma HLS UNROLL
    const act_t before = (act_t)sum[c];  // from -128 on, so eight bits are enough to compare
    sum[c] = largest[0][c] > before ? largest[0][c] : before;
  }
}

inline void multiply_word(const WeightWord& word, bool maximum,
                          const VectorLane (*__restrict vectors)[kLanes], uint32_t half,
                          uint32_t base, SumWord& sum) {
#pragma HLS INLINE
rows:
  for (int r = 0; r < kRows; r++) {
#pragma HLS UNROLL
    const int8_t* weight = word.weight + r * kLanes;
    const index_t* index = word.index + r * kLanes;
    if (maximum)
      maximise_row(weight, index, vectors[r], half, base, sum.v + r * kCols);
    else
      multiply_row(weight, index, vectors[r], half, base, sum.v + r * kCols);
  }
}

inline void clear_sums(bool maximum, SumWord& sum) {
#pragma HLS INLINE
clear:
  for (int c = 0; c < kWide; c++) {
#pragma HLS UNROLL
    sum.v[c] = maximum ? -128 : 0;
  }
}

// The half of the vector buffer that is being filled while the other is worked on.
struct Filling {
  uint32_t half;   // where it begins
  uint32_t wait;   // cycles until the next word is taken
  uint32_t count;  // fillings of the command that are still to come, this one included
  uint32_t age;    // cycles since it is complete, as far as that matters
  bool done;
};

// Beside the last filling of a command the first one of the next command is taken, as it comes:
// waiting for it would be waiting for what may depend on the outputs of this one. This is the only
// place where a process asks whether a stream is empty, and no result depends on what it is told.
inline bool is_due(const MultiplyCommand& c, VectorWriteStream& writes, Filling& filling) {
#pragma HLS INLINE
  if (filling.count == 0) return !writes.empty();
  if (--filling.wait > 0) return false;
  filling.wait = c.pace;
  return true;
}

inline void take_write(VectorWriteStream& writes, Filling& filling,
                       VectorLane vectors[kRows][kLanes]) {
#pragma HLS INLINE
  const VectorWrite write = writes.read();
  write_vectors(write, filling.half, vectors);
  filling.done = write.last;
}

// Where the work on a visit stands: one weight block meets every tile of the group.
struct Work {
  Visit visit;
  uint32_t block_words;
  uint32_t period;     // cycles of a tile
  uint32_t tile;
  uint32_t tile_base;  // of the tile, in the vector buffer
  uint32_t base;       // of the group of banks
  uint32_t kept;
  uint32_t row_word;
  uint32_t slot;
};

inline void start_visit(const Visit& visit, Work& work) {
#pragma HLS INLINE
  work.visit = visit;
  work.block_words = block_words_of(visit);
  work.period = work.block_words < kReuseDistance ? kReuseDistance : work.block_words;
  work.tile = 0;
  work.tile_base = work.base = 0;
  work.kept = work.row_word = work.slot = 0;
}

// One CSB word of one tile. The first tile takes the words from the stream and leaves them in
// `block` for the tiles that follow: one fetch from memory, T uses. Where the block stays, those of
// later groups are among them.
inline void multiply_step(const MultiplyCommand& c, Work& work, uint32_t half,
                          WeightStream& words, WeightWord* __restrict block,
                          const VectorLane (*__restrict vectors)[kLanes], SumWord& sum,
                          SumStream& sums) {
#pragma HLS INLINE
  const bool maximum = has(c, kFlagMaximum);
  if (work.slot < work.block_words) {
    const bool fresh = work.tile == 0 && !work.visit.again && !has(c, kFlagResidentWeights);
    // A lone tile leaves nothing behind, so its block may be longer than the buffer.
    const bool leaves = work.visit.tiles > 1 || c.stays || has(c, kFlagKeepWeights);
    WeightWord& place = block[work.visit.block + (leaves || !fresh ? work.slot : 0)];
    const WeightWord word = fresh ? words.read() : place;
    if (fresh && leaves) place = word;
    if (work.row_word == 0) clear_sums(maximum, sum);
    multiply_word(word, maximum, vectors, half, work.base, sum);
    if (++work.kept == c.keep) {  // on to the next group of banks
      work.kept = 0;
      work.base += bank_space(c);
    }
    if (++work.row_word == work.visit.row_words) {
      work.row_word = 0;
      work.base = work.tile_base;
      sums.write(sum);
    }
  }
  if (++work.slot == work.period) {
    work.slot = 0;
    work.tile++;
    work.tile_base += work.visit.stride;
    work.base = work.tile_base;
  }
}

// Works on one half of the vector buffer while the other is filled; a process of its own would
// need a memory of its own for each half. All of a region is one loop, so that no pipeline has
// to empty between visits or commands. While it works, every `pace` cycles a word goes to the other
// half. Were it a word whenever there is one, the order of events would depend on timing, and
// nobody could replay it.
inline void multiply(MultiplyCommandStream& commands, VectorWriteStream& writes,
                     VisitStream& visits, WeightStream& words, WeightWord block[kBlockWords],
                     SumStream& sums) {
#pragma HLS INLINE off
  // Lanes without a bank in the last group are never filled; their weights are zero, so what
  // the words hold adds nothing.
  VectorLane vectors[kRows][kLanes];
#pragma HLS ARRAY_PARTITION variable=vectors complete dim=1
#pragma HLS ARRAY_PARTITION variable=vectors complete dim=2
#pragma HLS AGGREGATE variable=vectors compact=bit
  // Half a block RAM deep at least, or else LUTs: a narrow tile leaves the lanes shallow.
  if (kLaneDepth >= 256) {
#pragma HLS BIND_STORAGE variable=vectors type=ram_s2p impl=bram
  } else {
#pragma HLS BIND_STORAGE variable=vectors type=ram_s2p impl=lutram
  }
  MultiplyCommand c = {};
  Filling filling = {0, 1, 0, 0, false};
  Work work = {};
  SumWord sum = {};
  uint32_t half = 0;
  bool begins = true;  // the next cycle begins a command
  bool working = false;
  bool fresh = true;  // the next cycle of work begins a visit
csb_words:
  while (!c.end) {
#pragma HLS PIPELINE II=1
    // A slot is read a period after it was written at the earliest, by the next command later.
#pragma HLS DEPENDENCE variable=block inter RAW distance=4 true
    // Reads are of one half, writes of the other, and halves change so long after the last write.
#pragma HLS DEPENDENCE variable=vectors inter RAW distance=4 true
    if (filling.done && filling.age < kReuseDistance) filling.age++;
    if (begins) {
      c = commands.read();
      begins = false;
      filling.count = c.fills;
      filling.age = 0;
    } else if (working) {
      if (fresh) start_visit(visits.read(), work);
      fresh = false;
      if (!filling.done && is_due(c, writes, filling)) take_write(writes, filling, vectors);
      multiply_step(c, work, half, words, block, vectors, sum, sums);
      if (work.tile == work.visit.tiles) {
        fresh = true;
        working = !work.visit.fill_end;
        begins = work.visit.final;
      }
    } else if (!filling.done) {
      take_write(writes, filling, vectors);
    } else if (filling.age == kReuseDistance) {  // the halves change their parts
      half = filling.half;
      filling.half = half ^ kVectorWords;
      filling.wait = 1;
      filling.age = 0;
      filling.count--;
      filling.done = false;
      working = true;
    }
  }
}

}  // namespace bbs
