// SPDX-License-Identifier: Apache-2.0
// The image memory: what is written as pixels one after the other is read as pixels one after the
// other, from any bank on, anywhere in a ring; and both ways to read it agree.
#include "image.hpp"

#include "commands.hpp"

namespace {

bbs::ImageWord memory[bbs::kImageDepth];

void fill(tb::Random& random) {
  for (bbs::ImageWord& word : memory)
    for (int8_t& pixel : word) pixel = random.byte();
}

// Every bank, at random places: the two forms, and plain addresses.
int64_t read(tb::Random& random) {
  for (uint32_t bank = 0; bank < bbs::kBanks; bank++) {
    const uint32_t length = random.between(1, bbs::kImageDepth);
    const uint32_t base = random.between(0, bbs::kImageDepth - length);
    const uint32_t word = random.once_in(4) ? length - 1 : random.between(0, length - 1);
    const uint32_t place = bbs::image_place(base, word, length);
    const uint32_t next = bbs::image_place(base, word + 1, length);
    TB_EXPECT(place, base + word, "place of word %u of %u", word, length);
    TB_EXPECT(next, base + (word + 1) % length, "place behind word %u of %u", word, length);
    const uint32_t first = random.once_in(4) ? bank : random.between(0, bbs::kBanks - 1);
    bbs::Window plain, banked;
    bbs::read_window(memory, place, next, bank, first, plain);
    bbs::read_window_banked(memory, place, next, bank, first, banked);
    for (uint32_t i = 0; i < bbs::kBanks; i++) {
      // The neighbour of pixel `bank` that bank `first + i` holds.
      const uint32_t pixel =
          word * bbs::kBanks + bank + (first + i + bbs::kBanks - bank) % bbs::kBanks;
      const int8_t want = memory[base + pixel / bbs::kBanks % length][pixel % bbs::kBanks];
      TB_EXPECT(plain.v[i], want, "read_window: pixel %u from bank %u, bank %u first", i, bank, first);
      TB_EXPECT(banked.v[i], want, "read_window_banked: pixel %u from bank %u, bank %u first", i,
                bank, first);
    }
  }
  return bbs::kBanks;
}

// A run of tiles round a ring: each pixel in its place, nothing beside them.
int64_t write(tb::Random& random) {
  if (bbs::kImageWords == 0) return 0;
  const uint32_t length = random.between(1, std::min(bbs::kImageDepth, 40));
  const uint32_t base = random.between(0, bbs::kImageDepth - length);
  const uint32_t tiles = random.between(1, 3 * length);
  std::vector<std::vector<int8_t>> expected;
  for (const bbs::ImageWord& word : memory) expected.emplace_back(word, word + bbs::kBanks);
  for (uint32_t tile = 0; tile < tiles; tile++) {
    const uint32_t first = tile * bbs::kCols;
    const uint32_t word = first / bbs::kBanks % length;
    bbs::ActWord pixels;
    for (uint32_t i = 0; i < bbs::kCols; i++) {
      pixels.v[i] = random.byte();
      const uint32_t pixel = first + i;
      expected[base + pixel / bbs::kBanks % length][pixel % bbs::kBanks] = (int8_t)pixels.v[i];
    }
    bbs::write_pixels(memory, bbs::image_place(base, word, length),
                      bbs::image_place(base, word + 1, length), first % bbs::kBanks, pixels);
  }
  for (size_t i = 0; i < expected.size(); i++)
    for (uint32_t b = 0; b < bbs::kBanks; b++)
      TB_EXPECT(memory[i][b], expected[i][b], "%u tiles in a ring of %u: word %zu, bank %u", tiles,
                length, i, b);
  return tiles;
}

}  // namespace

int main() {
  tb::Random random(17);
  fill(random);
  int64_t count = 0;
  for (int i = 0; i < tb::cases(300); i++) count += read(random) + write(random);
  return tb::finish("image_tb", count, "words");
}
