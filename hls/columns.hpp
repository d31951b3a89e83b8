// SPDX-License-Identifier: Apache-2.0
// Which pixels the columns of a tile are: worked out two columns a cycle, ahead of the gathering.
#pragma once

#include "image.hpp"
#include "memory.hpp"

namespace bbs {

constexpr int kMostKernel = 15;  // rows of a window, four bits in a command

// For every column of a tile, where its window begins in the image.
struct TileColumns {
  int16_t x[kCols];
  int16_t y[kCols];
  // Neighbouring columns from this one on that one read of the image memory serves.
  uint8_t run[kCols];
  uint8_t count;  // of columns that are pixels of the output
  // Column tiles of the image that must be there, by kernel row.
  uint32_t needed[kMostKernel];
  uint32_t ring_start;  // word of the image at the start of the ring, from kFirstWord on
  uint32_t limit;       // tiles that may be there without overwriting what is still needed
};

using ColumnsStream = Stream<TileColumns, 2>;

// Windows that lie side by side in memory as they do in the image: one read serves a whole tile,
// whatever rows it spans.
inline bool contiguous(const ColumnsCommand& c) {
#pragma HLS INLINE
  return c.stride_x == 1 && c.stride_y == 1 && c.out_width == c.width;
}

// As many columns as a read of kBanks pixels holds all taps of, 1, 2 or 4 pixels apart; else one.
constexpr uint32_t kHalf = (kBanks - kTaps) / 2 + 1;
constexpr uint32_t kQuarter = (kBanks - kTaps) / 4 + 1;
static_assert(kCols - 1 + kTaps <= kBanks, "a read must hold the taps of its last column");

inline uint32_t columns_per_read(uint32_t stride) {
#pragma HLS INLINE
  return stride == 1 ? kCols : stride == 2 ? kHalf : stride == 4 ? kQuarter : 1;
}

// Columns that are placed in a cycle: with one, layers of few channels would wait for this stage.
constexpr uint32_t kPlaced = kCols >= 2 ? 2 : 1;

// Column tiles of the image that are there once all that a window row `y` needs is.
inline uint32_t tiles_needed(const ColumnsCommand& c, int32_t y) {
#pragma HLS INLINE
  const int32_t row = y < (int32_t)c.height - 1 ? y : (int32_t)c.height - 1;
  if (row < 0) return 0;
  // Both fit 16 bits, as all that is multiplied here: a DSP each, where 32 bits take three.
  const uint32_t tiles = ((uint32_t)(uint16_t)(row + 1) * (uint16_t)c.width - 1) / kCols + 1;
  return tiles < c.image_tiles ? tiles : c.image_tiles;
}

// First word that the windows of a tile may read whose first one begins in row `y`.
inline uint32_t first_word(const ColumnsCommand& c, int32_t y) {
#pragma HLS INLINE
  const uint32_t row = y > 0 ? (uint32_t)y : 0;
  return image_word((uint32_t)(uint16_t)row * (uint16_t)c.width);
}

// A column of the output, and where its window begins in the image: counted along with it, so that
// nothing is multiplied.
struct Pixel {
  uint32_t x;
  uint32_t number;
  int16_t left;
  int16_t top;
};

inline void place_column(const ColumnsCommand& c, uint32_t pixels, uint32_t col, Pixel& at,
                         TileColumns& tile, int32_t& last_y) {
#pragma HLS INLINE
  const bool inside = at.number < pixels;
  const uint32_t rest = c.out_width - at.x;
  const uint32_t read = columns_per_read(c.stride_x);
  const uint32_t near = rest < read ? rest : read;
  const uint32_t most = kCols - col;
  tile.run[col] = (uint8_t)(contiguous(c) || !inside || near > most ? most : near);
  tile.x[col] = at.left;
  // Beyond the last pixel no row is inside the image.
  tile.y[col] = inside ? at.top : (int16_t)-32768;
  if (inside) {
    last_y = at.top;
    tile.count = (uint8_t)(col + 1);
  }
  at.number++;
  at.left = (int16_t)(at.left + c.stride_x);
  if (++at.x == c.out_width) {
    at.x = 0;
    at.left = (int16_t)-c.pad_left;
    at.top = (int16_t)(at.top + c.stride_y);
  }
}

// A step a cycle, for all tiles in one loop: the columns, then what the rows of the kernel need.
inline void place_tiles(const ColumnsCommand& c, FillStream& fills, ColumnsStream& tiles) {
#pragma HLS INLINE
  const uint32_t pixels = (uint32_t)(uint16_t)c.out_height * (uint16_t)c.out_width;  // one DSP
  const uint32_t steps = kCols / kPlaced + c.kernel_height + 1;
  Pixel at = {0, 0, (int16_t)-c.pad_left, (int16_t)-c.pad_top};
  Pixel group = at;  // where the current group of tiles begins
  Fill fill = {0, 0, 0, 0, 0, 0, false};
  TileColumns tile = {};
  tile.ring_start = kFirstWord;
  int32_t last_y = 0;
  uint32_t fill_count = c.fills;
  uint32_t rest = 0;  // tiles of the fill
  uint32_t step = 0;
steps:
  while (fill_count > 0 || rest > 0) {
#pragma HLS PIPELINE II=1
    if (step == 0) {
      if (rest == 0) {
        fill = fills.read();
        fill_count--;
        rest = fill.tiles;
        if (fill.again)
          at = group;
        else
          group = at;
      }
      tile.count = 0;
      last_y = -32768;
    }
    if (step < kCols / kPlaced) {
    placed:
      for (uint32_t i = 0; i < kPlaced; i++) {
#pragma HLS UNROLL
        place_column(c, pixels, step * kPlaced + i, at, tile, last_y);
      }
    } else {
      const uint32_t row = step - kCols / kPlaced;
      if (row < c.kernel_height)
        tile.needed[row] = tiles_needed(c, last_y + (int32_t)scaled(row, c.dilation_y));
    }
    // What the first tile of a group needs first is kept until the group's last fill. Where many
    // rows are passed over, the ring turns often from one group to the next: once a step.
    if (rest == fill.tiles && !fill.again) {
      const uint32_t first = first_word(c, tile.y[0]);
      if (kFirstWord + first >= tile.ring_start + c.image_words) tile.ring_start += c.image_words;
      tile.limit = (first + c.image_words) * kBanks / kCols;
    }
    if (++step == steps) {
      step = 0;
      rest--;
      tiles.write(tile);
    }
  }
}

// Is told of images alone.
inline void columns(ColumnsCommandStream& commands, FillStream& fills, ColumnsStream& tiles) {
#pragma HLS INLINE off
  ColumnsCommand c = end_mark<ColumnsCommand>();
  if (kImageWords > 0) c = commands.read();
commands:
  while (!c.end) {
    place_tiles(c, fills, tiles);
    c = commands.read();
  }
}

}  // namespace bbs
