// SPDX-License-Identifier: Apache-2.0
// Random layers, the planes they lie in, and what they must compute: written from the words of
// hls/interface.json, not from the stages under test.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "engine.hpp"
#include "sequence.hpp"
#include "testbench.hpp"

namespace tb {

using Words = std::vector<uint64_t>;

struct Layer {
  bbs::Command command;
  std::vector<int8_t> weights;     // [row][group][keep][lane]
  std::vector<uint8_t> indices;    // same order
  std::vector<int32_t> bias;       // by row
  std::vector<float> multipliers;  // by row
  std::vector<int8_t> table;
};

// The other direction of bbs::decode_command; `check_tb.cpp` holds the two together.
inline void encode_command(const bbs::Command& c, uint64_t words[bbs::kCommandWords]) {
  words[0] = c.op | c.flags << 8 | (uint64_t)c.layer << 16 | (uint64_t)c.input << 32;
  words[1] = c.output | (uint64_t)c.weights << 32;
  words[2] = c.indices | (uint64_t)c.parameters << 32;
  words[3] = c.table | (uint64_t)c.features << 32;
  words[4] = c.rows | (uint64_t)c.tiles << 32 | (uint64_t)c.tiles_per_block << 56;
  words[5] = c.bank_size | c.keep << 9 | c.index_bits << 18 |
             (uint64_t)(uint8_t)c.zero_point << 24 | (uint64_t)c.groups << 32 |
             (uint64_t)c.groups_per_pass << 48;
  words[6] = c.rows_per_block;
  words[7] = (uint64_t)c.signature << 32;
}

// Cuts the loops of a command down to what the buffers hold.
inline void fit_loops(bbs::Command& c) {
  c.groups = bbs::divide_up(c.features, bbs::kLanes * c.bank_size);
  const uint32_t fit = bbs::kVectorWords / c.bank_size;  // groups that fit the vector buffer
  c.groups_per_pass = std::min({c.groups_per_pass, c.groups, fit});
  const uint32_t most_tiles = std::min<uint32_t>(fit / c.groups_per_pass, bbs::kSumWords);
  c.tiles_per_block = std::min({c.tiles_per_block, most_tiles, 255u});
  uint32_t most_rows = bbs::kBlockRows;
  if (c.tiles_per_block > 1)
    most_rows = std::min(most_rows, bbs::kBlockWords / (c.groups_per_pass * c.keep));
  if (c.groups_per_pass < c.groups)
    most_rows = std::min(most_rows, bbs::kSumWords / c.tiles_per_block);
  c.rows_per_block = std::min(c.rows_per_block, most_rows);
}

// Cuts them at random, in any way that fits; blocks larger than the whole are among them.
inline void cut_loops(Random& random, bbs::Command& c) {
  c.groups_per_pass = random.between(1, bbs::divide_up(c.features, bbs::kLanes * c.bank_size));
  c.tiles_per_block = random.between(1, c.tiles + 1);
  c.rows_per_block = random.once_in(2) ? c.rows + 1 : random.between(1, c.rows);
  fit_loops(c);
}

// A command the engine takes; offsets are 0.
inline bbs::Command random_command(Random& random, int most_rows, int most_tiles,
                                   int most_groups) {
  const uint32_t kinds[] = {0, bbs::kFlagTable, bbs::kFlagSumsOut};
  const uint32_t bits[] = {4, 6, 8};
  bbs::Command c = {};
  c.op = bbs::kOpLinear;
  c.signature = bbs::kSignature;
  c.flags = kinds[random.between(0, 2)] | (random.once_in(3) ? (uint32_t)bbs::kFlagInt4 : 0u);
  c.layer = random.between(0, 0xffff);
  c.bank_size = random.once_in(2) ? 2 << random.between(0, 5) : random.between(2, 256);
  c.keep = random.between(1, random.once_in(2) ? (c.bank_size + 3) / 4 : c.bank_size);
  if (random.once_in(3)) {
    c.flags |= bbs::kFlagDense;
    c.keep = c.bank_size;
  } else {
    const int least = c.bank_size <= 16 ? 0 : c.bank_size <= 64 ? 1 : 2;
    c.index_bits = bits[random.between(least, 2)];
  }
  c.zero_point = random.byte();
  const int groups = random.between(1, most_groups);
  const int space = bbs::kLanes * c.bank_size;
  c.features = random.between((groups - 1) * space + 1, groups * space);
  c.rows = random.between(1, most_rows);
  c.tiles = random.between(1, most_tiles);
  cut_loops(random, c);
  return c;
}

// The feature that a kept weight meets; beyond c.features there is padding only.
inline uint32_t feature_of(const bbs::Command& c, uint32_t group, uint32_t lane, uint8_t index) {
  return (group * bbs::kLanes + lane) * c.bank_size + index;
}

inline Layer random_layer(Random& random, const bbs::Command& c) {
  Layer layer;
  layer.command = c;
  const bool extremes = random.once_in(4);
  const double scale = 2.0 / (75.0 * std::sqrt((double)c.groups * bbs::kLanes * c.keep));
  for (uint32_t row = 0; row < c.rows; row++) {
    for (uint32_t word = 0; word < c.groups * c.keep; word++) {
      for (uint32_t lane = 0; lane < bbs::kLanes; lane++) {
        const bool dense = (c.flags & bbs::kFlagDense) != 0;
        const int index = dense ? word % c.keep : random.between(0, c.bank_size - 1);
        const bool padding = feature_of(c, word / c.keep, lane, (uint8_t)index) >= c.features;
        const int8_t byte = extremes ? (random.once_in(8) ? 127 : -128) : random.byte();
        const int8_t weight = c.flags & bbs::kFlagInt4 ? (int8_t)(byte >> 4) : byte;
        layer.weights.push_back(padding ? 0 : weight);
        layer.indices.push_back((uint8_t)index);
      }
    }
    layer.bias.push_back(random.between(-5000, 5000));
    // Powers of two make ties.
    const float m = (float)(scale * random.between(50, 1000) / 1000);
    layer.multipliers.push_back(random.once_in(3) ? std::ldexp(1.0f, std::ilogb(m)) : m);
  }
  for (int i = 0; i < bbs::kTableEntries; i++) layer.table.push_back(random.byte());
  return layer;
}

inline int weight_width(const bbs::Command& c) { return c.flags & bbs::kFlagInt4 ? 4 : 8; }

// Words that a command's planes take: input, output, weights, indices, parameters, table.
inline std::vector<uint64_t> plane_sizes(const bbs::Command& c) {
  const uint64_t port = bbs::kPortBytes;
  const uint64_t cols = c.flags & bbs::kFlagSumsOut ? 4 * bbs::kCols : bbs::kCols;
  uint64_t weight_words = 0, index_words = 0;
  for (uint32_t first = 0; first < c.groups; first += c.groups_per_pass) {
    const uint64_t groups = std::min(c.groups_per_pass, c.groups - first);
    const uint64_t lanes = groups * c.keep * bbs::kLanes;
    weight_words += c.rows * ((lanes * weight_width(c) + 63) / 64);
    index_words += c.rows * ((lanes * c.index_bits + 63) / 64);
  }
  const uint64_t table = c.flags & bbs::kFlagTable ? bbs::kTableEntries / port : 0;
  return {(uint64_t)c.tiles * c.features * bbs::kCols / port,
          (uint64_t)c.tiles * c.rows * cols / port,
          weight_words,
          index_words,
          c.rows,
          table};
}

// Where they lie, in the same order.
inline std::vector<uint32_t*> plane_offsets(bbs::Command& c) {
  return {&c.input, &c.output, &c.weights, &c.indices, &c.parameters, &c.table};
}

// What `sequence` tells the other stages.
struct SequenceStreams {
  bbs::BurstStream weights{"weights"}, indices{"indices"}, rows{"rows"}, acts{"acts"};
  bbs::BurstStream stores{"stores"};
  bbs::FillStream fills{"fills"};
  bbs::VisitStream unpack{"unpack"}, multiply{"multiply"}, accumulate{"accumulate"};

  void run(const bbs::Command& c, const bbs::Shape& s) {
    bbs::sequence(c, s, weights, indices, rows, acts, stores, fills, unpack, multiply, accumulate);
  }
};

inline std::vector<int8_t> random_bytes(Random& random, size_t count) {
  std::vector<int8_t> bytes(count);
  for (int8_t& byte : bytes) byte = random.byte();
  if (random.once_in(8)) std::fill(bytes.begin(), bytes.end(), (int8_t)-128);
  return bytes;
}

inline void append_bytes(Words& words, const std::vector<int8_t>& bytes) {
  for (size_t i = 0; i < bytes.size(); i++) {
    if (i % 8 == 0) words.push_back(0);
    words.back() |= (uint64_t)(uint8_t)bytes[i] << (8 * (i % 8));
  }
}

// The lowest `bits` bits of `count` bytes, one after the other, from a whole word on.
template <typename Byte>
void append_bits(Words& words, const Byte* values, size_t count, int bits) {
  for (size_t at = 0; at < count * bits; at++) {
    if (at % 64 == 0) words.push_back(0);
    words.back() |= (uint64_t)(((uint8_t)values[at / bits] >> (at % bits)) & 1) << (at % 64);
  }
}

// Appends the planes of `layer` to `memory` and notes in its command where they lie.
inline void place(Layer& layer, Words& memory) {
  bbs::Command& c = layer.command;
  const size_t row_size = (size_t)c.groups * c.keep * bbs::kLanes;
  Words plane, index_plane;
  for (uint32_t first = 0; first < c.groups; first += c.groups_per_pass) {
    const uint32_t groups = std::min(c.groups_per_pass, c.groups - first);
    const size_t count = (size_t)groups * c.keep * bbs::kLanes;
    for (uint32_t row = 0; row < c.rows; row++) {
      const size_t at = row * row_size + (size_t)first * c.keep * bbs::kLanes;
      append_bits(plane, &layer.weights[at], count, weight_width(c));
      append_bits(index_plane, &layer.indices[at], count, c.index_bits);
    }
  }
  c.weights = (uint32_t)memory.size();
  memory.insert(memory.end(), plane.begin(), plane.end());
  c.indices = (uint32_t)memory.size();
  memory.insert(memory.end(), index_plane.begin(), index_plane.end());
  c.parameters = (uint32_t)memory.size();
  for (uint32_t row = 0; row < c.rows; row++) {
    uint32_t bits;
    std::memcpy(&bits, &layer.multipliers[row], sizeof(bits));
    memory.push_back((uint64_t)bits << 32 | (uint32_t)layer.bias[row]);
  }
  c.table = (uint32_t)memory.size();
  append_bytes(memory, layer.table);
}

// The definition: y = saturate(round_half_even(float32(sum) * m) + zero_point).
inline int8_t requantised(int64_t sum, float multiplier, int zero_point) {
  const float product = (float)(int32_t)sum * multiplier;
  const double y = (double)std::rint(product) + zero_point;
  return (int8_t)(y > 127 ? 127 : y < -128 ? -128 : y);
}

// The output tensor of `layer` for the input tensor `x`, [tile][feature][COLS], as words.
inline Words expected_output(const Layer& layer, const std::vector<int8_t>& x) {
  const bbs::Command& c = layer.command;
  std::vector<int8_t> bytes;
  const size_t words = (size_t)c.groups * c.keep;
  for (uint32_t tile = 0; tile < c.tiles; tile++) {
    for (uint32_t row = 0; row < c.rows; row++) {
      std::vector<int64_t> sums(bbs::kCols, layer.bias[row]);
      for (size_t i = 0; i < words * bbs::kLanes; i++) {
        const size_t at = row * words * bbs::kLanes + i;
        const uint32_t group = (uint32_t)(i / bbs::kLanes / c.keep);
        const uint32_t f = feature_of(c, group, i % bbs::kLanes, layer.indices[at]);
        if (f >= c.features) continue;
        const int8_t* column = &x[((size_t)tile * c.features + f) * bbs::kCols];
        for (int col = 0; col < bbs::kCols; col++) sums[col] += layer.weights[at] * column[col];
      }
      for (const int64_t sum : sums) {
        if (c.flags & bbs::kFlagSumsOut) {
          for (int b = 0; b < 4; b++) bytes.push_back((int8_t)(uint8_t)((uint64_t)sum >> (8 * b)));
          continue;
        }
        const int8_t y = requantised(sum, layer.multipliers[row], c.zero_point);
        bytes.push_back(c.flags & bbs::kFlagTable ? layer.table[y + 128] : y);
      }
    }
  }
  Words output;
  append_bytes(output, bytes);
  return output;
}

}  // namespace tb
