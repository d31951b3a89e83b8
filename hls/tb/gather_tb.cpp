// SPDX-License-Identifier: Apache-2.0
// From features or pixels to the vector buffer, against plain im2col: every feature of every tile
// once, in the lane and place of its bank; images in rings of just the room they need.
#include "gather.hpp"

#include <deque>

#include "commands.hpp"

namespace {

struct Streams {
  bbs::FillStream fills{"fills"}, tile_fills{"tile_fills"};
  bbs::ColumnsStream tiles{"tiles"};
  bbs::WordStream port{"port"};
  bbs::ChainStream chain{"chain"};
  bbs::VectorWriteStream writes{"writes"};
};

bbs::ImageWord image[bbs::kImageDepth];

// One half of the vector buffer, and how often each word of it was written.
struct Buffer {
  std::vector<bbs::ActWord> words;
  std::vector<uint32_t> written;

  Buffer() : words(size()), written(size()) {}
  static size_t size() { return (size_t)bbs::kLanes * bbs::kVectorWords / bbs::kPack; }
  static size_t at(uint32_t lane, uint32_t place) {
    return ((size_t)lane * bbs::kVectorWords + place) / bbs::kPack;
  }
};

// The writes of one filling; what they write outside of it counts as a difference.
Buffer take_filling(const bbs::Fill& fill, bbs::VectorWriteStream& writes) {
  Buffer buffer;
  for (bool last = false; !last;) {
    const bbs::VectorWrite write = writes.read();
    for (uint32_t i = 0; i < bbs::kTaps; i++) {
      if (!(write.taps >> i & 1)) continue;
      TB_EXPECT(write.place[i] < fill.tiles * fill.stride, true, "place %u of %u",
                write.place[i], fill.tiles * fill.stride);
      const size_t at = Buffer::at((write.lane + i) % bbs::kLanes,
                                   write.place[i] & (bbs::kVectorWords - 1));
      buffer.words[at] = write.word[i];
      buffer.written[at]++;
    }
    last = write.last;
  }
  return buffer;
}

int64_t expect_filling(const bbs::Command& c, const bbs::Fill& fill, uint32_t first_tile,
                       const tb::Tensor& x, const Buffer& buffer) {
  const uint32_t end = std::min(c.features, (fill.first_group + fill.groups) * bbs::kLanes *
                                                c.bank_size);
  int64_t words = 0;
  for (uint32_t t = 0; t < fill.tiles; t++) {
    const uint32_t tile = first_tile + t;
    const uint32_t count = tile + 1 == c.tiles ? c.last_columns : bbs::kCols;
    for (uint32_t f = fill.first_group * bbs::kLanes * c.bank_size; f < end; f++) {
      if (tb::is_padding(c, f)) continue;
      const uint32_t bank = f / c.bank_size, group = bank / bbs::kLanes - fill.first_group;
      const uint32_t place = t * fill.stride + group * tb::bank_room(c) + f % c.bank_size;
      const size_t at = Buffer::at(bank % bbs::kLanes, place);
      TB_EXPECT(buffer.written[at], 1, "tile %u, feature %u: times written", tile, f);
      if (place % bbs::kPack == 0) words++;
      for (uint32_t col = 0; col < count; col++)
        TB_EXPECT(buffer.words[at].v[place % bbs::kPack * bbs::kCols + col], x.column(tile, f)[col],
                  "image %ux%u, %u of %u channels, kernel %ux%u, stride %u %u: tile %u, feature %u, "
                  "column %u",
                  c.height, c.width, c.part_channels, c.channels, c.kernel_height, c.kernel_width, c.stride_y,
                  c.stride_x, tile, f, col);
    }
  }
  int64_t written = 0;
  for (const uint32_t times : buffer.written) written += times;
  TB_EXPECT(written, words, "words of a filling");
  return words;
}

// What comes from memory in one burst or word by word from the chain.
void feed(tb::Words words, bool from_chain, Streams& streams) {
  for (size_t i = 0; i < words.size(); i++) {
    if (!from_chain) {
      streams.port.write(words[i]);
      continue;
    }
    if (i % bbs::kPortWords) continue;
    bbs::ActWord word;
    for (int b = 0; b < bbs::kWordActs; b++)
      word.v[b] = (int8_t)(uint8_t)(words[i + b / 8] >> (8 * (b % 8)));
    streams.chain.write(word);
  }
}

// Bytes of the features of one fill.
std::vector<int8_t> fill_bytes(const bbs::Command& c, const bbs::Fill& fill, uint32_t first_tile,
                               const tb::Tensor& x) {
  std::vector<int8_t> bytes;
  const uint32_t first = fill.first_group * bbs::kLanes * c.bank_size;
  for (uint32_t t = first_tile; t < first_tile + fill.tiles; t++)
    bytes.insert(bytes.end(), x.column(t, first),
                 x.column(t, first) + (size_t)fill.features * bbs::kCols);
  return bytes;
}

int64_t run_command(bbs::Command c, const tb::Tensor& x) {
  const bbs::Shape s = bbs::derive_shape(c, bbs::amounts_of(c));
  tb::SequenceStreams told;
  told.run(c, s);
  Streams streams;
  const bool of_image = tb::has(c, bbs::kFlagImage), chain = tb::has(c, bbs::kFlagFromChain);
  if (of_image && !tb::has(c, bbs::kFlagResidentInput)) {
    tb::Words words;
    tb::append_bytes(words, x.bytes);
    feed(words, chain, streams);
  }
  std::vector<bbs::Fill> fills;
  std::vector<uint32_t> starts;
  uint32_t first = 0, next = 0;
  for (uint32_t f = 0; f < s.fills; f++) {
    fills.push_back(told.fills.read());
    const bbs::Fill& fill = fills.back();
    if (!fill.again) first = next;
    next = first + fill.tiles;
    starts.push_back(first);
    streams.fills.write(fill);
    if (of_image) {
      streams.tile_fills.write(fill);
    } else {
      tb::Words words;
      tb::append_bytes(words, fill_bytes(c, fill, first, x));
      feed(words, chain, streams);
    }
  }
  bbs::ColumnsCommandStream columns_commands("columns_commands");
  bbs::GatherCommandStream gather_commands("gather_commands");
  if (of_image) columns_commands.write(bbs::columns_command(c, s));
  columns_commands.write(bbs::end_mark<bbs::ColumnsCommand>());
  tb::tell(gather_commands, bbs::gather_command(c, s));
  bbs::columns(columns_commands, streams.tile_fills, streams.tiles);
  bbs::gather(gather_commands, streams.fills, streams.tiles, streams.port, streams.chain, image,
              streams.writes);
  std::vector<tb::Tensor> taps;  // by part
  for (uint32_t part = 0; part < c.parts; part++) taps.push_back(tb::matrix_input(c, x, part));
  int64_t words = 0;
  for (size_t f = 0; f < fills.size(); f++) {
    const uint32_t step = c.part_channels * c.image_words;
    const tb::Tensor& part = taps[step == 0 ? 0 : fills[f].channel_base / step];
    words += expect_filling(c, fills[f], starts[f], part, take_filling(fills[f], streams.writes));
  }
  TB_EXPECT(tb::drained(streams.fills), true, "fills left over");
  TB_EXPECT(tb::drained(streams.tiles), true, "tiles left over");
  TB_EXPECT(tb::drained(streams.port), true, "port words left over");
  TB_EXPECT(tb::drained(streams.chain), true, "chain words left over");
  return words;
}

// An image that is larger than its ring, as often as the dice allow; then, where it lies there as
// a whole, other windows of it without loading it again.
int64_t run_image(tb::Random& random) {
  bbs::Command c;
  const bool large = random.once_in(2);
  const int side = large ? 60 : 14;
  const tb::Limits limits = {8, large ? 40 : 6, large ? 60 : 600};
  if (!tb::random_image(random, limits, random.between(1, side), random.between(1, side),
                        random.between(1, large ? 3 : 40), c))
    return 0;
  if (random.once_in(3)) c.flags |= bbs::kFlagFromChain;
  const tb::Tensor x = tb::random_input(random, c);
  int64_t words = run_command(c, x);
  if (c.image_words < tb::whole_image_words(c)) return words;
  bbs::Command other;
  if (!tb::random_image(random, limits, c.height, c.width, c.channels, other)) return words;
  other.flags |= bbs::kFlagResidentInput;
  other.image_base = c.image_base;
  other.image_words = c.image_words;
  return words + run_command(other, x);
}

// Wide images in rings of just the room they need, loaded as fast as can be, and gathered more
// than once: a word overwritten too early is missed by a later filling.
int64_t run_ring(tb::Random& random) {
  for (int i = 0; i < 20; i++) {
    bbs::Command c;
    const int height = random.between(8, 30), width = random.between(40, 90);
    if (!tb::random_image(random, {8, 60, 400}, height, width, random.between(1, 4), c)) continue;
    c.image_words = tb::least_image_words(c);
    c.load_pace = 1;
    if (c.image_words == tb::whole_image_words(c) || tb::pass_count(c) == 1) continue;
    return run_command(c, tb::random_input(random, c));
  }
  return 0;
}

int64_t run_features(tb::Random& random) {
  bbs::Command c = tb::random_linear(random, {20, 6, 500});
  const bool chain = tb::pass_count(c) == 1 && random.once_in(2);
  if (chain) c.flags |= bbs::kFlagFromChain;
  c.last_columns = bbs::kCols;
  return run_command(c, tb::random_input(random, c));
}

}  // namespace

int main() {
  tb::Random random(19);
  int64_t count = 0, pixels = 0;
  for (int i = 0; i < tb::cases(500); i++) count += run_features(random);
  for (int i = 0; i < tb::cases(1500); i++) pixels += run_image(random);
  for (int i = 0; i < tb::cases(200); i++) pixels += run_ring(random);
  if (bbs::kImageWords > 0) TB_EXPECT(pixels > 100, true, "%" PRId64 " words of images", pixels);
  return tb::finish("gather_tb", count + pixels, "words");
}
