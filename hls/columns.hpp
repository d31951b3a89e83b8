// SPDX-License-Identifier: Apache-2.0
// Which pixels the columns of a tile are: worked out a column a cycle, ahead of the gathering.
#pragma once

#include "memory.hpp"

namespace bbs {

// For every column of a tile, where its window begins in the image.
struct TileColumns {
  int16_t x[kCols];
  int16_t y[kCols];
  // Neighbouring columns from this one on that one read of the image memory serves.
  uint8_t run[kCols];
  uint8_t count;  // of columns that are pixels of the output
  int16_t last_y;
};

using ColumnsStream = Stream<TileColumns, 2>;

// Windows that lie side by side in memory as they do in the image: one read serves a whole tile,
// whatever rows it spans.
inline bool contiguous(const Command& c) {
#pragma HLS INLINE
  return c.stride_x == 1 && c.stride_y == 1 && c.out_width == c.width;
}

// A read of kBanks pixels is cut into columns at fixed places, so that every column has few
// pixels to choose from: 1, 2, 4 pixels apart, and else one column a read.
constexpr uint32_t kHalf = kCols >= 2 ? kCols / 2 : 1;
constexpr uint32_t kQuarter = kCols >= 4 ? kCols / 4 : 1;
static_assert(kCols - 1 + kTaps <= kBanks && 2 * (kHalf - 1) + kTaps <= kBanks &&
                  4 * (kQuarter - 1) + kTaps <= kBanks,
              "a read must hold the taps of its last column");

inline uint32_t columns_per_read(uint32_t stride) {
#pragma HLS INLINE
  return stride == 1 ? kCols : stride == 2 ? kHalf : stride == 4 ? kQuarter : 1;
}

// Which of a read's columns `col` is.
inline uint32_t column_of_read(uint32_t stride, uint32_t col) {
#pragma HLS INLINE
  return stride == 1 ? col : stride == 2 ? col % kHalf : stride == 4 ? col % kQuarter : 0;
}

inline void columns(const Command c, const Shape s, FillStream& fills, ColumnsStream& tiles) {
#pragma HLS INLINE off
  const uint32_t pixels = (uint32_t)(uint16_t)c.out_height * (uint16_t)c.out_width;  // one DSP
  const uint32_t block = columns_per_read(c.stride_x);
  const bool whole = contiguous(c);
  // Where the next tile begins, and where the current group of tiles did.
  uint32_t x = 0, y = 0, pixel = 0;
  uint32_t group_x = 0, group_y = 0, group_pixel = 0;
fills:
  for (uint32_t f = 0; f < (kImageWords > 0 && has(c, kFlagImage) ? s.fills : 0); f++) {
    const Fill fill = fills.read();
    if (fill.again) {
      x = group_x;
      y = group_y;
      pixel = group_pixel;
    } else {
      group_x = x;
      group_y = y;
      group_pixel = pixel;
    }
  tiles:
    for (uint32_t t = 0; t < fill.tiles; t++) {
      TileColumns tile;
      tile.count = 0;
      tile.last_y = -1;
    cols:
      for (uint32_t col = 0; col < kCols; col++) {
#pragma HLS PIPELINE II=1
        const bool inside = pixel < pixels;
        const uint32_t rest = c.out_width - x;
        const uint32_t aligned = block - column_of_read(c.stride_x, col);
        const uint32_t near = rest < aligned ? rest : aligned;
        const uint32_t most = kCols - col;
        tile.run[col] = (uint8_t)(whole || !inside || near > most ? most : near);
        tile.x[col] = (int16_t)(scaled(x, c.stride_x) - c.pad_left);
        const int16_t top = (int16_t)(scaled(y, c.stride_y) - c.pad_top);
        // Beyond the last pixel no row is inside the image.
        tile.y[col] = inside ? top : (int16_t)-32768;
        if (inside) {
          tile.last_y = top;
          tile.count = (uint8_t)(col + 1);
        }
        pixel++;
        if (++x == c.out_width) {
          x = 0;
          y++;
        }
      }
      tiles.write(tile);
    }
  }
}

}  // namespace bbs
