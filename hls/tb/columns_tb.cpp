// SPDX-License-Identifier: Apache-2.0
// Where the window of every column begins, and how many columns one read serves.
#include "columns.hpp"

#include "commands.hpp"

namespace {

// Pixels of the image from the start of a read to the window of column `col`.
uint32_t place_in_read(uint32_t stride, uint32_t col) {
  const uint32_t most = bbs::kCols / stride;  // columns of one read
  return stride == 1 || stride == 2 || stride == 4 ? col % std::max(most, 1u) * stride : 0;
}

void expect_tile(const bbs::Command& c, uint32_t number, const bbs::TileColumns& tile) {
  const uint32_t pixels = c.out_height * c.out_width, first = number * bbs::kCols;
  const uint32_t count = first < pixels ? std::min<uint32_t>(pixels - first, bbs::kCols) : 0;
  TB_EXPECT(tile.count, count, "tile %u: columns that are pixels", number);
  for (uint32_t col = 0; col < bbs::kCols; col++) {
    const int64_t pixel = first + col;
    if (col >= count) {
      TB_EXPECT(tile.y[col] + 15 * 15 < 0, true, "tile %u: column %u lies beside the image",
                number, col);
      continue;
    }
    TB_EXPECT(tile.x[col], pixel % c.out_width * c.stride_x - c.pad_left, "tile %u, column %u: x",
              number, col);
    TB_EXPECT(tile.y[col], pixel / c.out_width * c.stride_y - c.pad_top, "tile %u, column %u: y",
              number, col);
  }
  if (count > 0) TB_EXPECT(tile.last_y, tile.y[count - 1], "tile %u: last y", number);
  // Where a column lies in the image, and where the read that serves it begins.
  const auto flat = [&](uint32_t col) { return tile.y[col] * (int64_t)c.width + tile.x[col]; };
  const auto start = [&](uint32_t col) {
    return flat(col) - place_in_read(c.stride_x, col);
  };
  for (uint32_t col = 0; col < count; col++) {
    const uint32_t end = col + tile.run[col];
    TB_EXPECT(tile.run[col] >= 1 && end <= bbs::kCols, true, "tile %u, column %u: run of %u",
              number, col, tile.run[col]);
    for (uint32_t other = col; other < std::min(end, count); other++)
      TB_EXPECT(start(other), start(col), "tile %u: columns %u and %u of a read", number, col,
                other);
    if (end < count && place_in_read(c.stride_x, end) > 0)
      TB_EXPECT((first + end) % c.out_width, 0, "tile %u: column %u is left to another read",
                number, end);
  }
}

int64_t run(tb::Random& random) {
  bbs::Command c;
  if (!tb::random_image(random, {8, 60, 200}, random.between(1, 40), random.between(1, 40),
                        random.between(1, 4), c))
    return 0;
  const bbs::Shape s = bbs::derive_shape(c);
  bbs::FillStream fills("fills");
  bbs::ColumnsStream tiles("tiles");
  std::vector<bbs::Fill> told;
  tb::SequenceStreams streams;
  streams.run(c, s);
  for (uint32_t f = 0; f < s.fills; f++) {
    told.push_back(streams.tile_fills.read());
    fills.write(told.back());
  }
  bbs::columns(c, s, fills, tiles);
  uint32_t first = 0, next = 0;
  int64_t count = 0;
  for (const bbs::Fill& fill : told) {
    if (!fill.again) first = next;
    next = first;
    for (uint32_t t = 0; t < fill.tiles; t++, next++, count++) expect_tile(c, next, tiles.read());
  }
  TB_EXPECT(next, c.tiles, "tiles in all");
  TB_EXPECT(tb::drained(fills), true, "fills left over");
  TB_EXPECT(tb::drained(tiles), true, "tiles too many");
  return count;
}

}  // namespace

int main() {
  tb::Random random(18);
  int64_t count = 0;
  for (int i = 0; i < tb::cases(3000); i++) count += run(random);
  if (bbs::kImageWords > 0) TB_EXPECT(count > 50, true, "%" PRId64 " tiles", count);
  return tb::finish("columns_tb", count, "tiles");
}
