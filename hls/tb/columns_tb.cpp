// SPDX-License-Identifier: Apache-2.0
// Where the window of every column begins, how many columns one read serves, what of the image must
// be there, and what may be overwritten.
#include "columns.hpp"

#include "commands.hpp"

namespace {

// Pixels from the window of a column to that of the next one, where one read may serve both.
uint32_t distance(uint32_t stride) { return stride == 1 || stride == 2 || stride == 4 ? stride : 0; }

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
  for (uint32_t row = 0; row < c.kernel_height; row++) {
    const int64_t y = count > 0 ? tile.y[count - 1] + (int64_t)row * c.dilation_y : -1;
    const int64_t pixels_needed = (std::min<int64_t>(y, c.height - 1) + 1) * c.width;
    TB_EXPECT(tile.needed[row], y < 0 ? 0 : tb::quotient_up(pixels_needed, bbs::kCols),
              "tile %u: tiles of the image for row %u of the kernel", number, row);
  }
  // Where a column lies in the image, and how far the taps of a run reach.
  const auto flat = [&](uint32_t col) { return tile.y[col] * (int64_t)c.width + tile.x[col]; };
  const uint32_t apart = distance(c.stride_x);
  const auto reach = [&](uint32_t run) { return (run - 1) * apart + bbs::kTaps; };
  for (uint32_t col = 0; col < count; col++) {
    const uint32_t end = col + tile.run[col];
    TB_EXPECT(tile.run[col] >= 1 && end <= bbs::kCols, true, "tile %u, column %u: run of %u",
              number, col, tile.run[col]);
    for (uint32_t other = col; other < std::min(end, count); other++)
      TB_EXPECT(flat(other), flat(col) + (other - col) * apart,
                "tile %u: columns %u and %u of a read", number, col, other);
    TB_EXPECT(reach(std::min(end, count) - col) <= bbs::kBanks, true,
              "tile %u, column %u: a run of %u is more than a read", number, col, tile.run[col]);
    if (end < count && apart > 0 && reach(end + 1 - col) <= bbs::kBanks)
      TB_EXPECT((first + end) % c.out_width, 0, "tile %u: column %u is left to another read",
                number, end);
  }
}

// What the first row of a group needs is not overwritten during the group, and the ring stands
// where it must.
void expect_ring(const bbs::Command& c, uint32_t first, const bbs::TileColumns& tile) {
  const int64_t row = (int64_t)(first * bbs::kCols / c.out_width) * c.stride_y - c.pad_top;
  const uint32_t word = (uint32_t)std::max<int64_t>(row, 0) * c.width / bbs::kBanks;
  const uint32_t room = word + c.image_words;  // words from there on are not free yet
  TB_EXPECT(tile.limit, room * bbs::kBanks / bbs::kCols, "group of tile %u: limit", first);
  const uint32_t start = tile.ring_start - bbs::kFirstWord;
  TB_EXPECT(start, word / c.image_words * c.image_words, "group of tile %u: ring of %u words",
            first, c.image_words);
}

int64_t run(tb::Random& random) {
  bbs::Command c;
  if (!tb::random_image(random, {8, 60, 200}, random.between(1, 40), random.between(1, 40),
                        random.between(1, 4), c))
    return 0;
  const bbs::Shape s = bbs::derive_shape(c, bbs::amounts_of(c));
  bbs::FillStream fills("fills");
  bbs::ColumnsStream tiles("tiles");
  std::vector<bbs::Fill> told;
  tb::SequenceStreams streams;
  streams.run(c, s);
  for (uint32_t f = 0; f < s.fills; f++) {
    told.push_back(streams.tile_fills.read());
    fills.write(told.back());
  }
  bbs::ColumnsCommandStream commands("commands");
  tb::tell(commands, bbs::columns_command(c, s));
  bbs::columns(commands, fills, tiles);
  uint32_t first = 0, next = 0;
  int64_t count = 0;
  for (const bbs::Fill& fill : told) {
    if (!fill.again) first = next;
    next = first;
    for (uint32_t t = 0; t < fill.tiles; t++, next++, count++) {
      const bbs::TileColumns tile = tiles.read();
      expect_tile(c, next, tile);
      expect_ring(c, first, tile);
    }
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
