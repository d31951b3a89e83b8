// SPDX-License-Identifier: Apache-2.0
// Random commands that the engine takes, of every kind, and the numbers of their layers.
#pragma once

#include "layer.hpp"

namespace tb {

// What the command may be about; larger ones take longer.
struct Limits {
  int rows, tiles, features;
};

inline uint32_t round_up(uint32_t value, uint32_t step) {
  return quotient_up(value, step) * step;
}

inline uint32_t pass_count(const bbs::Command& c) {
  return quotient_up(c.groups, c.groups_per_pass);
}

// Words that the weights of a command of one pass take in the block buffer.
inline uint32_t block_size(const bbs::Command& c) {
  return c.groups * c.keep * (c.rows / bbs::kRows);
}

// Whether weights and row parameters stay from one group of tiles to the next.
inline bool weights_stay(const bbs::Command& c) {
  return c.tiles > c.tiles_per_block && pass_count(c) == 1 &&
         block_size(c) <= bbs::kBlockWords && c.rows / bbs::kRows <= bbs::kBlockRows;
}

// Cuts the loops of a command down to what the buffers hold; the quotients follow.
inline void fit_loops(bbs::Command& c) {
  c.groups = quotient_up(c.features, (uint64_t)bbs::kLanes * c.bank_size);
  const uint32_t fit = bbs::kVectorWords / bank_room(c);  // groups that fit the vector buffer
  c.groups_per_pass = std::min({c.groups_per_pass, c.groups, fit});
  const uint32_t step = row_step(c);
  const uint32_t least = step / bbs::kRows;  // row groups of a block
  const bool passes = c.groups_per_pass < c.groups;
  c.tiles_per_block = std::min({c.tiles_per_block, fit / c.groups_per_pass, 255u});
  if (passes) c.tiles_per_block = std::min<uint32_t>(c.tiles_per_block, bbs::kSumWords / least);
  if (c.groups_per_pass * c.keep * least > bbs::kBlockWords) c.tiles_per_block = 1;
  uint32_t most = bbs::kBlockRows;
  if (c.tiles_per_block > 1) most = std::min(most, bbs::kBlockWords / (c.groups_per_pass * c.keep));
  if (passes) most = std::min(most, bbs::kSumWords / c.tiles_per_block);
  const uint32_t rows = std::min<uint32_t>(most * bbs::kRows, 65535) / step;
  c.rows_per_block = std::min(round_up(c.rows_per_block, step), rows * step);
  set_quotients(c);
}

// Cuts them at random, in any way that fits; blocks larger than the whole are among them.
inline void cut_loops(Random& random, bbs::Command& c) {
  const uint32_t groups = quotient_up(c.features, (uint64_t)bbs::kLanes * c.bank_size);
  c.groups_per_pass = random.once_in(3) ? groups : random.between(1, groups);
  c.tiles_per_block = random.between(1, c.tiles + 1);
  const uint32_t rows = c.parts > 1 ? c.part_rows : c.rows;
  c.rows_per_block = random.once_in(2) ? rows + 1 : random.between(1, rows);
  fit_loops(c);
}

// Everything but where the input comes from, and the loops.
inline bbs::Command random_matrix(Random& random, const Limits& limits, uint32_t most_bank) {
  const uint32_t kinds[] = {0, bbs::kFlagTable, bbs::kFlagSumsOut, bbs::kFlagMaximum,
                            bbs::kFlagSumColumns, bbs::kFlagResidual,
                            bbs::kFlagResidual | bbs::kFlagProduct | bbs::kFlagTable};
  const uint32_t bits[] = {4, 6, 8};
  bbs::Command c = {};
  c.op = bbs::kOpMatrix;
  c.signature = bbs::kSignature;
  const uint32_t kind = kinds[random.between(0, 6)];
  const bool built = (kind & ~bbs::kBuiltFlags) == 0;
  c.flags = (built ? kind : 0u) | bbs::kFlagToMemory |
            (random.once_in(3) ? (uint32_t)bbs::kFlagInt4 : 0u);
  c.layer = random.between(0, 0xffff);
  const int most = std::min<int>(most_bank, 1 << bbs::kIndexBits) / bbs::kPack;
  int banks = random.between(1, most);
  if (random.once_in(2))
    while (banks & (banks - 1)) banks &= banks - 1;  // a power of two
  c.bank_size = banks * bbs::kPack;
  // Words of several features may be words of several banks.
  if (random.once_in(3))
    for (c.bank_size = bbs::kPack; c.bank_size > 1 && random.once_in(2);) c.bank_size /= 2;
  c.keep = random.between(1, random.once_in(2) ? (c.bank_size + 3) / 4 : c.bank_size);
  if (random.once_in(3)) {
    c.flags |= bbs::kFlagDense;
    c.keep = c.bank_size;
  } else {
    const int least = c.bank_size <= 16 ? 0 : c.bank_size <= 64 ? 1 : 2;
    c.index_bits = bits[random.between(least, 2)];
  }
  c.zero_point = random.byte();
  c.rows = round_up(random.between(1, limits.rows), bbs::kRowStep);
  c.output_stride = c.rows + (random.once_in(3) ? random.between(0, 9) * bbs::kPack : 0);
  c.pace = random.once_in(8) ? random.between(1, 0xffff) : random.between(1, 5);
  c.load_pace = random.once_in(8) ? random.between(1, 0xffff) : random.between(1, 5);
  c.a_zero = random.byte(), c.b_zero = random.byte(), c.out_zero = random.byte();
  c.shift = random.once_in(4) ? random.between(0, 47) : random.between(14, 20);
  c.a_scale = random.between(-(1 << 23), (1 << 23) - 1) >> random.between(0, 12);
  c.b_scale = random.between(-(1 << 23), (1 << 23) - 1) >> random.between(0, 12);
  c.low = random.once_in(2) ? -128 : random.byte();
  c.high = random.once_in(2) ? 127 : random.between(c.low, 127);
  return c;
}

// Makes a command of rows and tiles an LSTM or GRU at times, where the cell memory takes its units.
inline void make_cell(Random& random, bbs::Command& c) {
  if (bbs::kCellWords == 0 || c.parts > 1 || !random.once_in(6)) return;
  const bbs::Command plain = c;
  c.flags &= ~(bbs::kFlagSumsOut | bbs::kFlagResidual | bbs::kFlagProduct | bbs::kFlagSumColumns);
  c.flags |= random.once_in(2) ? bbs::kFlagLstm : bbs::kFlagGru;
  c.rows = row_step(c);
  const uint32_t most = bbs::kCellWords / cell_size(c) * c.rows;
  if (most == 0) {
    c = plain;
    return;
  }
  c.rows = std::min(round_up(plain.rows, c.rows), most);
  c.output_stride = c.rows / 4 + (random.once_in(3) ? random.between(0, 9) * bbs::kPack : 0);
  c.shift = random.between(0, 8);
  c.cell_base = random.once_in(2) ? 0 : random.between(0, bbs::kCellWords - cell_size(c));
  c.state_words = cell_size(c) / 2;
  const uint32_t starts[] = {0, bbs::kFlagStateZero, bbs::kFlagStateIn};
  c.flags |= starts[random.between(0, 2)];
  if (random.once_in(2)) c.flags |= bbs::kFlagStateOut;
  if (random.once_in(8)) c.last_columns = 0;
}

// A matrix times `tiles` tiles of `features` features.
inline bbs::Command random_linear(Random& random, const Limits& limits, uint32_t tiles,
                                  uint32_t features) {
  const uint32_t most = random.once_in(2) ? 256 : std::max(1u, features / bbs::kLanes);
  bbs::Command c = random_matrix(random, limits, std::max<uint32_t>(most, bbs::kPack));
  c.features = features;
  c.tiles = tiles;
  c.input_stride = features + (random.once_in(3) ? random.between(0, 9) * bbs::kPack : 0);
  c.last_columns = random.once_in(2) ? bbs::kCols : random.between(1, bbs::kCols);
  make_cell(random, c);
  cut_loops(random, c);
  return c;
}

inline bbs::Command random_linear(Random& random, const Limits& limits) {
  const int features = random.once_in(2) ? limits.features : std::min(limits.features, 40);
  return random_linear(random, limits, random.between(1, limits.tiles),
                       round_up(random.between(1, features), bbs::kPack));
}

// The fewest words of a channel with which nothing is overwritten that is still needed: from the
// first row that a group of tiles needs to the last one, in whole tiles.
inline uint32_t least_image_words(const bbs::Command& c) {
  uint32_t most = 1;
  const uint32_t pixels = c.out_height * c.out_width;
  for (uint32_t tile = 0; tile < c.tiles; tile += c.tiles_per_block) {
    const uint32_t first = tile * bbs::kCols;
    const uint32_t end = std::min(pixels, (tile + c.tiles_per_block) * bbs::kCols);
    const int64_t top = (int64_t)(first / c.out_width) * c.stride_y - c.pad_top;
    const int64_t bottom = (int64_t)((end - 1) / c.out_width) * c.stride_y - c.pad_top +
                           (c.kernel_height - 1) * c.dilation_y;
    const int64_t rows = std::min<int64_t>(bottom + 1, c.height);
    if (rows <= 0) continue;
    const uint64_t tiles = quotient_up(rows * c.width, bbs::kCols);
    const int64_t from = std::max<int64_t>(top, 0) * c.width / bbs::kBanks;
    const int64_t to = quotient_up(tiles * bbs::kCols, bbs::kBanks);
    most = (uint32_t)std::max<int64_t>(most, to - from);
  }
  return most;
}

// A channel that lies in the image memory as a whole.
inline uint32_t whole_image_words(const bbs::Command& c) {
  return quotient_up((uint64_t)image_tiles(c) * bbs::kCols, bbs::kBanks);
}

// Where the image lies: with as little room as it needs, all of it, or something between.
inline bool place_image(Random& random, bbs::Command& c) {
  const uint32_t fit = bbs::kImageWords / c.channels;
  const uint32_t least = least_image_words(c);
  const uint32_t whole = std::max(least, whole_image_words(c));
  if (least > fit) return false;
  c.image_words = random.once_in(3) ? least : std::min(fit, random.once_in(2) ? whole : whole + 1);
  if (random.once_in(3)) c.image_words = random.between(least, std::min(fit, whole));
  c.image_base = random.between(0, bbs::kImageWords - c.channels * c.image_words);
  return true;
}

struct Axis {
  uint32_t size, kernel, stride, dilation, pad, out;
};

// One direction of a window; often as many windows as pixels.
inline bool cut_axis(Random& random, Axis& axis) {
  axis.kernel = random.once_in(12) ? random.between(1, 15) : random.between(1, 4);
  axis.stride = random.once_in(2) ? 1 : random.once_in(12) ? random.between(1, 15)
                                                           : random.between(1, 4);
  axis.dilation = random.once_in(3) ? random.between(1, 4) : 1;
  const uint32_t reach = axis.dilation * (axis.kernel - 1);
  axis.pad = std::min<uint32_t>(15, random.once_in(6) ? random.between(0, 15)
                                                      : random.between(0, reach));
  const int64_t behind = random.once_in(2) ? (int64_t)reach - axis.pad : random.between(0, reach);
  const int64_t span = (int64_t)axis.size + axis.pad + behind - reach - 1;
  if (span < 0) return false;
  axis.out = (uint32_t)span / axis.stride + 1;
  return true;
}

// Cuts channels and rows into parts that do not see each other, where the channels allow.
inline void cut_parts(Random& random, bbs::Command& c) {
  const uint32_t parts = random.between(2, 6);
  const uint32_t stride = c.output_stride - c.rows;  // beyond the rows
  join_parts(c);
  if (c.channels % parts != 0 || random.once_in(2)) return;
  c.parts = parts;
  c.part_channels = c.channels / parts;
  c.part_rows = round_up(quotient_up(c.rows, parts), bbs::kRowStep);
  c.rows = parts * c.part_rows;
  c.output_stride = c.rows + stride;
}

// An image of `channels` channels; whether there is a command for what the dice said.
inline bool random_image(Random& random, const Limits& limits, uint32_t height, uint32_t width,
                         uint32_t channels, bbs::Command& c) {
  if (bbs::kImageWords == 0) return false;
  Axis y = {height, 0, 0, 0, 0, 0}, x = {width, 0, 0, 0, 0, 0};
  if (!cut_axis(random, y) || !cut_axis(random, x)) return false;
  c = random_matrix(random, limits, random.once_in(2) ? channels : channels + 5);
  c.flags |= bbs::kFlagImage;
  c.height = height, c.width = width, c.channels = channels;
  c.out_height = y.out, c.out_width = x.out;
  c.kernel_height = y.kernel, c.kernel_width = x.kernel;
  c.stride_y = y.stride, c.stride_x = x.stride;
  c.dilation_y = y.dilation, c.dilation_x = x.dilation;
  c.pad_top = y.pad, c.pad_left = x.pad;
  c.pad_value = random.byte();
  cut_parts(random, c);
  c.features = c.kernel_height * quotient_up(c.part_channels, c.bank_size) * c.kernel_width *
               c.bank_size;
  const uint32_t pixels = c.out_height * c.out_width;
  c.tiles = quotient_up(pixels, bbs::kCols);
  if (c.features > (uint32_t)limits.features || c.tiles > (uint32_t)limits.tiles) return false;
  c.last_columns = pixels - (c.tiles - 1) * bbs::kCols;
  if (random.once_in(8)) c.last_columns = random.between(1, c.last_columns);
  c.input_stride = channels + (random.once_in(3) ? random.between(0, 9) : 0);
  make_cell(random, c);
  cut_loops(random, c);
  if (place_image(random, c)) return true;
  c.tiles_per_block = 1;
  set_quotients(c);
  return place_image(random, c);
}

// Of any kind, with its input and output in memory; offsets are 0.
inline bbs::Command random_command(Random& random, const Limits& limits) {
  bbs::Command c;
  const int side = random.once_in(4) ? 40 : 12;
  for (int i = random.once_in(2) ? 20 : 0; i > 0; i--) {
    const int channels = random.between(1, random.once_in(3) ? 40 : 6);
    const int height = random.between(1, side), width = random.between(1, side);
    if (random_image(random, limits, height, width, channels, c)) return c;
  }
  return random_linear(random, limits);
}

inline std::vector<int8_t> random_bytes(Random& random, size_t count) {
  std::vector<int8_t> bytes(count);
  for (int8_t& byte : bytes) byte = random.byte();
  if (random.once_in(8)) std::fill(bytes.begin(), bytes.end(), (int8_t)-128);
  return bytes;
}

inline Tensor random_tensor(Random& random, uint32_t tiles, uint32_t features) {
  Tensor x(tiles, features);
  x.bytes = random_bytes(random, x.bytes.size());
  return x;
}

// The input of a command, where it comes from memory.
inline Tensor random_input(Random& random, const bbs::Command& c) {
  return has(c, bbs::kFlagImage) ? random_tensor(random, image_tiles(c), c.channels)
                                 : random_tensor(random, c.tiles, c.features);
}

// Biases and multipliers whose results lie in and around the range of a byte; powers of two make
// ties.
inline void random_parameters(Random& random, Layer& layer) {
  const bbs::Command& c = layer.command;
  const bool maximum = has(c, bbs::kFlagMaximum);
  const double columns = has(c, bbs::kFlagSumColumns) ? bbs::kCols : 1;
  const double width = std::sqrt((double)c.groups * bbs::kLanes * c.keep * columns);
  const double unit = has(c, bbs::kFlagInt4) ? 5.0 : 75.0;
  const double scale = maximum ? 2.0 : 2.0 / (unit * width);
  for (uint32_t row = 0; row < c.rows; row++) {
    layer.bias.push_back(!maximum           ? random.between(-5000, 5000)
                         : random.once_in(2) ? -128
                                             : random.between(-300, 100));
    const float m = (float)(scale * random.between(50, 1000) / 1000);
    layer.multipliers.push_back(random.once_in(3) ? std::ldexp(1.0f, std::ilogb(m)) : m);
  }
}

inline Layer random_layer(Random& random, const bbs::Command& c) {
  Layer layer;
  layer.command = c;
  const bool extremes = random.once_in(4);
  const bool depthwise = c.keep == 1 && random.once_in(2);
  const bool dense = has(c, bbs::kFlagDense);
  for (uint32_t row = 0; row < c.rows; row++) {
    for (uint32_t word = 0; word < c.groups * c.keep; word++) {
      for (uint32_t lane = 0; lane < bbs::kLanes; lane++) {
        const int index = dense       ? word % c.keep
                          : depthwise ? row % c.bank_size
                                      : random.between(0, c.bank_size - 1);
        const bool padding = is_padding(c, feature_of(c, word / c.keep, lane, (uint8_t)index));
        const int8_t byte = extremes ? (random.once_in(8) ? 127 : -128) : random.byte();
        const bool skip = padding || (has(c, bbs::kFlagMaximum) && random.once_in(4));
        layer.weights.push_back(skip ? 0 : has(c, bbs::kFlagInt4) ? (int8_t)(byte >> 4) : byte);
        layer.indices.push_back((uint8_t)index);
      }
    }
  }
  random_parameters(random, layer);
  for (int i = 0; i < 256; i++) layer.table.push_back(random.byte());
  if (has(c, bbs::kFlagResidual)) layer.residual = random_tensor(random, c.tiles, c.rows);
  return layer;
}

// What `sequence` tells the other stages of a command.
struct SequenceStreams {
  bbs::BurstStream weights{"weights"}, indices{"indices"}, rows{"rows"}, acts{"acts"};
  bbs::BurstStream residuals{"residuals"}, stores{"stores"};
  bbs::FillStream tile_fills{"tile_fills"}, fills{"fills"};
  bbs::VisitStream unpack{"unpack"}, multiply{"multiply"}, finish{"finish"};
  bbs::VisitStream cells{"cells"};

  void run(const bbs::Command& c, const bbs::Shape& s) {
    bbs::sequence_command(c, s, weights, indices, rows, acts, residuals, stores, tile_fills, fills,
                          unpack, multiply, finish, cells);
  }
};

}  // namespace tb
