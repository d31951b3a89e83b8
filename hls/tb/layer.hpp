// SPDX-License-Identifier: Apache-2.0
// Layers, the planes they lie in, and what they must compute: written from the words of
// hls/interface.json, not from the stages under test.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "engine.hpp"
#include "sequence.hpp"
#include "testbench.hpp"
#include "units.hpp"

namespace tb {

// All that a stage is told: one command.
template <typename C, int kDepth>
void tell(bbs::Stream<C, kDepth>& stream, const C& command) {
  stream.write(command);
  stream.write(bbs::end_mark<C>());
}

using Words = std::vector<uint64_t>;

// An activation tensor, [tile][feature][COLS].
struct Tensor {
  uint32_t tiles = 0, features = 0;
  std::vector<int8_t> bytes;

  Tensor() = default;
  Tensor(uint32_t t, uint32_t f) : tiles(t), features(f), bytes((size_t)t * f * bbs::kCols) {}
  int8_t& at(size_t tile, size_t feature, size_t col) {
    return bytes[(tile * features + feature) * bbs::kCols + col];
  }
  const int8_t* column(size_t tile, size_t feature) const {
    return &bytes[(tile * features + feature) * bbs::kCols];
  }
};

struct Layer {
  bbs::Command command;
  std::vector<int8_t> weights;     // [row][group][keep][lane]
  std::vector<uint8_t> indices;    // same order
  std::vector<int32_t> bias;       // by row
  std::vector<float> multipliers;  // by row
  std::vector<int8_t> table;
  Tensor residual;
};

inline bool has(const bbs::Command& c, uint32_t flag) { return (c.flags & flag) != 0; }

// The other direction of bbs::decode_command; `check_tb.cpp` holds the two together.
inline void encode_command(const bbs::Command& c, uint64_t words[bbs::kCommandWords]) {
  const auto low = [](int32_t value, int bits) { return (uint32_t)value & ((1u << bits) - 1); };
  const uint32_t halves[2 * bbs::kCommandWords] = {
      c.op | c.layer << 8,
      c.flags,
      c.input,
      c.output,
      c.weights,
      c.indices,
      c.parameters,
      c.table,
      c.residual,
      c.features,
      c.rows,
      c.tiles | c.tiles_per_block << 24,
      c.bank_size | c.keep << 9 | c.index_bits << 18 | low(c.zero_point, 8) << 24,
      c.groups | c.groups_per_pass << 16,
      c.rows_per_block | c.pace << 16,
      c.input_stride | c.last_columns << 24,
      c.output_stride | low(c.pad_value, 8) << 24,
      c.height | c.width << 16,
      c.out_height | c.out_width << 16,
      c.kernel_height | c.kernel_width << 4 | c.stride_y << 8 | c.stride_x << 12 |
          c.dilation_y << 16 | c.dilation_x << 20 | c.pad_top << 24 | c.pad_left << 28,
      c.channels | c.load_pace << 16,
      c.image_base | c.image_words << 16,
      low(c.a_zero, 8) | low(c.b_zero, 8) << 8 | low(c.out_zero, 8) << 16 | c.shift << 24,
      low(c.a_scale, 24) | low(c.low, 8) << 24,
      low(c.b_scale, 24) | low(c.high, 8) << 24,
      c.block_base | c.cell_base << 16,
      c.state,
      c.state_words,
      c.tile_groups,
      c.blocks,
      c.passes | c.channel_blocks << 16,
      c.parts | c.part_channels << 16,
      c.part_rows,
      c.signature};
  for (int i = 0; i < bbs::kCommandWords; i++)
    words[i] = halves[2 * i] | (uint64_t)halves[2 * i + 1] << 32;
}

inline uint32_t quotient_up(uint64_t a, uint64_t b) { return (uint32_t)((a + b - 1) / b); }

// All rows see all channels.
inline void join_parts(bbs::Command& c) {
  c.parts = 1;
  c.part_rows = c.rows;
  c.part_channels = c.channels;
}

// The quotients that a command holds; those of 0 are 0. One that says nothing of parts has one.
inline void set_quotients(bbs::Command& c) {
  const auto up = [](uint32_t a, uint32_t b) { return b == 0 ? 0 : quotient_up(a, b); };
  if (c.parts == 1 || c.part_rows == 0) join_parts(c);
  c.tile_groups = up(c.tiles, c.tiles_per_block);
  c.blocks = up(c.part_rows, c.rows_per_block);
  c.passes = up(c.groups, c.groups_per_pass);
  c.channel_blocks = up(c.part_channels, c.bank_size);
}

inline bool of_cell(const bbs::Command& c) { return has(c, bbs::kFlagLstm | bbs::kFlagGru); }

// Features of the output: a unit of a cell has four rows.
inline uint32_t output_rows(const bbs::Command& c) { return of_cell(c) ? c.rows / 4 : c.rows; }

// Rows come in multiples of this.
inline uint32_t row_step(const bbs::Command& c) {
  static_assert(4 * bbs::kPack % bbs::kRowStep == 0 || bbs::kRowStep % (4 * bbs::kPack) == 0,
                "the larger step serves both");
  return of_cell(c) ? std::max(4 * bbs::kPack, bbs::kRowStep) : bbs::kRowStep;
}

// Words of two states that the units of a cell take in the cell memory.
inline uint32_t cell_size(const bbs::Command& c) {
  return (uint32_t)((uint64_t)c.tiles * c.rows * bbs::kCols / 8);
}

// Features that a bank takes in the vector buffer: banks narrower than a word take a word.
inline uint32_t bank_room(const bbs::Command& c) {
  return std::max<uint32_t>(c.bank_size, bbs::kPack);
}

// Column tiles of the input image.
inline uint32_t image_tiles(const bbs::Command& c) {
  return quotient_up((uint64_t)c.height * c.width, bbs::kCols);
}

// The feature that a kept weight meets; beyond c.features there is padding only.
inline uint32_t feature_of(const bbs::Command& c, uint32_t group, uint32_t lane, uint8_t index) {
  return (group * bbs::kLanes + lane) * c.bank_size + index;
}

// What a feature of an image is: [kernel row][channel block][kernel column][channel of the block],
// the channels counted within the part.
struct Tap {
  uint32_t y, x, channel;
};

inline Tap tap_of(const bbs::Command& c, uint32_t feature) {
  const uint32_t blocks = quotient_up(c.part_channels, c.bank_size);
  const uint32_t bank = feature / c.bank_size;
  const uint32_t block = bank / c.kernel_width % blocks;
  return {bank / c.kernel_width / blocks, bank % c.kernel_width,
          block * c.bank_size + feature % c.bank_size};
}

inline bool is_padding(const bbs::Command& c, uint32_t feature) {
  if (feature >= c.features) return true;
  return has(c, bbs::kFlagImage) && tap_of(c, feature).channel >= c.part_channels;
}

inline int weight_width(const bbs::Command& c) { return has(c, bbs::kFlagInt4) ? 4 : 8; }

// A plane of `bits` bits a lane, in words: every row group of every pass starts on one.
inline uint64_t plane_size(const bbs::Command& c, int bits) {
  uint64_t words = 0;
  for (uint32_t first = 0; first < c.groups; first += c.groups_per_pass) {
    const uint64_t groups = std::min(c.groups_per_pass, c.groups - first);
    words += c.rows / bbs::kRows *
             ((groups * c.keep * bbs::kLanes * bbs::kRows * bits + 63) / 64);
  }
  return words;
}

// Words that a command's planes span: input, output, weights, indices, parameters, table, residual
// or states that are loaded, states that are stored; 0 for those that it does not touch.
inline std::vector<uint64_t> plane_sizes(const bbs::Command& c) {
  const bool image = has(c, bbs::kFlagImage);
  const auto span = [](uint64_t tiles, uint64_t stride, uint64_t last) {
    return ((tiles - 1) * stride + last) * bbs::kCols / bbs::kPortBytes;
  };
  const uint64_t input = image ? span(image_tiles(c), c.input_stride, c.channels)
                               : span(c.tiles, c.input_stride, c.features);
  const uint64_t output = span(c.tiles, c.output_stride, output_rows(c));
  const bool loads = !has(c, bbs::kFlagFromChain) && !has(c, bbs::kFlagResidentInput);
  const bool weights = !has(c, bbs::kFlagResidentWeights);
  return {loads ? input : 0,
          has(c, bbs::kFlagToMemory) ? output * (has(c, bbs::kFlagSumsOut) ? 4 : 1) : 0,
          weights ? plane_size(c, weight_width(c)) : 0,
          weights ? plane_size(c, c.index_bits) : 0,
          c.rows,
          has(c, bbs::kFlagTable) ? 256u / bbs::kPortBytes : 0,
          has(c, bbs::kFlagResidual) ? output : has(c, bbs::kFlagStateIn) ? c.state_words : 0,
          has(c, bbs::kFlagStateOut) ? c.state_words : 0};
}

// Where they lie, in the same order.
inline std::vector<uint32_t*> plane_offsets(bbs::Command& c) {
  return {&c.input,      &c.output, &c.weights,  &c.indices,
          &c.parameters, &c.table,  &c.residual, &c.state};
}

inline void append_bytes(Words& words, const std::vector<int8_t>& bytes) {
  for (size_t i = 0; i < bytes.size(); i++) {
    if (i % 8 == 0) words.push_back(0);
    words.back() |= (uint64_t)(uint8_t)bytes[i] << (8 * (i % 8));
  }
}

// The lowest `bits` bits of every byte, one after the other, from a whole word on.
template <typename Byte>
void append_bits(Words& words, const std::vector<Byte>& values, int bits) {
  for (size_t at = 0; at < values.size() * bits; at++) {
    if (at % 64 == 0) words.push_back(0);
    words.back() |= (uint64_t)(((uint8_t)values[at / bits] >> (at % bits)) & 1) << (at % 64);
  }
}

// The planes of the weights or the indices: [pass][row group][group][keep][ROWS][LANES].
template <typename Byte>
void append_plane(Words& words, const bbs::Command& c, const std::vector<Byte>& values, int bits) {
  const size_t row_size = (size_t)c.groups * c.keep * bbs::kLanes;
  for (uint32_t first = 0; first < c.groups; first += c.groups_per_pass) {
    const uint32_t last = std::min(first + c.groups_per_pass, c.groups);
    for (uint32_t row = 0; row < c.rows; row += bbs::kRows) {
      std::vector<Byte> slices;
      for (uint32_t i = first * c.keep; i < last * c.keep; i++)
        for (uint32_t r = row; r < row + bbs::kRows; r++)
          for (uint32_t lane = 0; lane < bbs::kLanes; lane++)
            slices.push_back(values[r * row_size + (size_t)i * bbs::kLanes + lane]);
      append_bits(words, slices, bits);
    }
  }
}

inline uint64_t parameter_word(const Layer& layer, uint32_t row) {
  uint32_t bits;
  std::memcpy(&bits, &layer.multipliers[row], sizeof(bits));
  return (uint64_t)bits << 32 | (uint32_t)layer.bias[row];
}

// The definition: y = saturate(round_half_even(float32(sum) * m) + zero_point).
inline int8_t requantised(int64_t sum, float multiplier, int zero_point) {
  const float product = (float)(int32_t)sum * multiplier;
  const double y = (double)std::rint(product) + zero_point;
  return (int8_t)(y > 127 ? 127 : y < -128 ? -128 : y);
}

// The definition, exact in a double: the sums stay below 2^40.
inline int8_t combined(const bbs::Command& c, int8_t a, int8_t b) {
  const double from_a = a - c.a_zero, from_b = b - c.b_zero;
  const double acc = has(c, bbs::kFlagProduct) ? c.a_scale * from_a * from_b
                                               : c.a_scale * from_a + c.b_scale * from_b;
  const double y = std::rint(std::ldexp(acc, -(int)c.shift)) + c.out_zero;
  return (int8_t)(y > c.high ? c.high : y < c.low ? c.low : y);
}

// The features that the weights of a part meet. Columns beyond the last pixel lie beside the image.
inline Tensor matrix_input(const bbs::Command& c, const Tensor& x, uint32_t part) {
  if (!has(c, bbs::kFlagImage)) return x;
  Tensor taps(c.tiles, c.features);
  for (uint32_t tile = 0; tile < c.tiles; tile++) {
    for (uint32_t f = 0; f < c.features; f++) {
      const Tap tap = tap_of(c, f);
      if (tap.channel >= c.part_channels) continue;
      const uint32_t channel = part * c.part_channels + tap.channel;
      for (uint32_t col = 0; col < bbs::kCols; col++) {
        const uint32_t pixel = tile * bbs::kCols + col;
        const int64_t y = (int64_t)(pixel / c.out_width) * c.stride_y + tap.y * c.dilation_y -
                          (int64_t)c.pad_top;
        const int64_t px = (int64_t)(pixel % c.out_width) * c.stride_x + tap.x * c.dilation_x -
                           (int64_t)c.pad_left;
        const bool inside = pixel < c.out_height * c.out_width && y >= 0 && y < c.height &&
                            px >= 0 && px < c.width;
        const size_t at = inside ? (size_t)(y * c.width + px) : 0;
        taps.at(tile, f, col) =
            inside ? x.column(at / bbs::kCols, channel)[at % bbs::kCols] : c.pad_value;
      }
    }
  }
  return taps;
}

// The sums of one row over the columns of one tile. With `maximum` the bias is a floor.
inline std::vector<int64_t> row_sums(const Layer& layer, const Tensor& x, uint32_t tile,
                                     uint32_t row) {
  const bbs::Command& c = layer.command;
  const size_t size = (size_t)c.groups * c.keep * bbs::kLanes;
  const bool maximum = has(c, bbs::kFlagMaximum);
  const bool one = has(c, bbs::kFlagSumColumns);
  std::vector<int64_t> sums(bbs::kCols, one ? 0 : layer.bias[row]);
  sums[0] = layer.bias[row];
  if (maximum)
    for (int64_t& sum : sums) sum = std::max<int64_t>(sum, -128);
  for (size_t i = 0; i < size; i++) {
    const int8_t weight = layer.weights[row * size + i];
    if (weight == 0) continue;
    const uint32_t group = (uint32_t)(i / bbs::kLanes / c.keep);
    const uint32_t f = feature_of(c, group, i % bbs::kLanes, layer.indices[row * size + i]);
    if (f >= c.features) continue;
    const int8_t* column = x.column(tile, f);
    for (int col = 0; col < bbs::kCols; col++)
      sums[col] = maximum ? std::max<int64_t>(sums[col], column[col])
                          : sums[col] + weight * column[col];
  }
  if (one)
    for (int col = 1; col < bbs::kCols; col++) sums[0] += sums[col];
  return sums;
}

// What the rows of `layer` give for the input tensor `input`; of sums, four bytes each.
inline Tensor expected_rows(const Layer& layer, const Tensor& input) {
  const bbs::Command& c = layer.command;
  std::vector<Tensor> features;  // by part
  for (uint32_t part = 0; part < c.parts; part++) features.push_back(matrix_input(c, input, part));
  const bool sums_out = has(c, bbs::kFlagSumsOut);
  Tensor y(c.tiles, sums_out ? 4 * c.rows : c.rows);
  for (uint32_t tile = 0; tile < c.tiles; tile++) {
    const uint32_t count = tile + 1 == c.tiles ? c.last_columns : bbs::kCols;
    for (uint32_t row = 0; row < c.rows; row++) {
      const std::vector<int64_t> sums = row_sums(layer, features[row / c.part_rows], tile, row);
      for (uint32_t col = 0; col < count; col++) {
        if (sums_out) {
          for (int b = 0; b < 4; b++) {
            const uint32_t place = 4 * col + b;
            y.at(tile, 4 * row + place / bbs::kCols, place % bbs::kCols) =
                (int8_t)(uint8_t)((uint64_t)sums[col] >> (8 * b));
          }
          continue;
        }
        int8_t value = requantised(sums[col], layer.multipliers[row], c.zero_point);
        // Both parts of a GRU's candidate skip the table.
        const bool skips = has(c, bbs::kFlagGru) && row % 4 >= 2;
        if (has(c, bbs::kFlagTable) && !skips) value = layer.table[value + 128];
        if (has(c, bbs::kFlagResidual))
          value = combined(c, value, layer.residual.column(tile, row)[col]);
        y.at(tile, row, col) = value;
      }
    }
  }
  return y;
}

// The cell memory, two states to a word.
using Cells = std::vector<int16_t>;

// The hidden values of the units whose gates are `gates`; their states move on. Columns that do
// not count keep theirs.
inline Tensor expected_hidden(const bbs::Command& c, const Tensor& gates, Cells& cells) {
  Tensor y(c.tiles, c.rows / 4);
  int16_t* state = cells.data() + 2 * c.cell_base;
  if (has(c, bbs::kFlagStateZero)) std::fill_n(state, 2 * cell_size(c), (int16_t)0);
  for (uint32_t tile = 0; tile < c.tiles; tile++) {
    const uint32_t count = tile + 1 == c.tiles ? c.last_columns : bbs::kCols;
    for (uint32_t u = 0; u < y.features; u++) {
      for (uint32_t col = 0; col < bbs::kCols; col++, state++) {
        if (col >= count) continue;
        int8_t of_unit[4];
        for (uint32_t g = 0; g < 4; g++) of_unit[g] = gates.column(tile, 4 * u + g)[col];
        const Result result = unit(c, of_unit, *state);
        y.at(tile, u, col) = (int8_t)result.hidden;
        *state = (int16_t)result.state;
      }
    }
  }
  return y;
}

// The output tensor of `layer` for the input tensor `input`; `cells` is the cell memory.
inline Tensor expected_output(const Layer& layer, const Tensor& input, Cells& cells) {
  const Tensor rows = expected_rows(layer, input);
  return of_cell(layer.command) ? expected_hidden(layer.command, rows, cells) : rows;
}

}  // namespace tb
