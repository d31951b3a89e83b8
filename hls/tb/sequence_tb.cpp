// SPDX-License-Identifier: Apache-2.0
// The order of work: what every stream is told adds up, covers each plane as often as it must,
// and ends once.
#include "sequence.hpp"

#include "commands.hpp"

namespace {

// Everything up to `final`; what lies behind it counts as a difference.
template <typename T, int kDepth>
std::vector<T> until_final(bbs::Stream<T, kDepth>& stream, const char* name) {
  std::vector<T> items;
  do items.push_back(stream.read());
  while (!items.back().final);
  TB_EXPECT(tb::drained(stream), true, "%s: items after the final one", name);
  return items;
}

// Everything.
std::vector<bbs::Burst> all_of(bbs::BurstStream& stream) {
  std::vector<bbs::Burst> bursts;
  while (!stream.empty()) bursts.push_back(stream.read());
  for (const bbs::Burst& burst : bursts)
    TB_EXPECT(burst.final || burst.command, false, "a burst of a command that ends a port");
  return bursts;
}

// Port words in all.
int64_t total_of(const std::vector<bbs::Burst>& bursts) {
  int64_t total = 0;
  for (const bbs::Burst& burst : bursts) total += (int64_t)burst.count * burst.times;
  return total;
}

// Tiles of a tensor: `count` words each, `step` words apart. A plane is one such tile.
struct Extent {
  uint32_t offset;
  uint64_t tiles, count, step;
};

// Counts how often every word of a tensor is met: `times` each, and none between the tiles.
int64_t expect_cover(const std::vector<bbs::Burst>& bursts, const Extent& extent, uint32_t times,
                     const char* name) {
  const uint64_t words = (extent.tiles - 1) * extent.step + extent.count;
  std::vector<uint32_t> met(words);
  for (const bbs::Burst& burst : bursts) {
    for (uint32_t t = 0; t < burst.times; t++) {
      for (uint32_t i = 0; i < burst.count; i++) {
        const uint32_t at = burst.offset + t * burst.step + i - extent.offset;
        if (at < words)
          met[at]++;
        else
          tb::differs(at, (int64_t)words - 1, "%s: word beyond the last one", name);
      }
    }
  }
  for (size_t i = 0; i < words; i++)
    TB_EXPECT(met[i], i % extent.step < extent.count ? times : 0, "%s: word %zu met", name, i);
  return total_of(bursts);
}

Extent plane(uint32_t offset, uint64_t words) {
  return {offset, 1, words, std::max<uint64_t>(words, 1)};
}

Extent tensor(uint32_t offset, uint64_t tiles, uint64_t features, uint64_t stride, int bytes) {
  const auto words = [&](uint64_t f) { return f * bbs::kCols * bytes / bbs::kPortBytes; };
  return {offset, tiles, words(features), words(stride)};
}

// What the visits make the compute stages read and write, in words.
struct Totals {
  int64_t weights = 0, indices = 0, rows = 0, outputs = 0, fills = 0, products = 0;
};

Totals follow(const bbs::Command& c, const std::vector<bbs::Visit>& visits) {
  Totals t;
  bool first_pass = true, last_group = false;
  uint32_t row = 0;
  const bool resident = tb::has(c, bbs::kFlagResidentWeights);
  const bool kept = resident || tb::has(c, bbs::kFlagKeepWeights), stays = tb::weights_stay(c);
  for (const bbs::Visit& v : visits) {
    const int64_t slices = (int64_t)v.row_words * bbs::kLanes * bbs::kRows;
    const int64_t rows = v.rows * bbs::kRows;
    t.weights += resident || v.again ? 0 : v.rows * ((slices * tb::weight_width(c) + 63) / 64);
    t.indices += resident || v.again ? 0 : v.rows * ((slices * c.index_bits + 63) / 64);
    t.rows += v.again ? 0 : rows;
    t.outputs += v.last_pass ? rows * v.tiles * bbs::kCols / (tb::of_cell(c) ? 4 : 1) : 0;
    t.fills += v.fill_end;
    t.products += rows * v.tiles * v.row_words;
    TB_EXPECT(v.first_pass, first_pass, "a first pass comes after a last one");
    first_pass = v.last_pass;
    TB_EXPECT(v.stride * c.keep, v.row_words * tb::bank_room(c), "stride and row words of a visit");
    const uint32_t base = kept ? c.block_base : 0;
    TB_EXPECT(v.block, kept || stays ? base + row * v.row_words : 0, "place in the block buffer");
    TB_EXPECT(v.parameters, stays ? row : 0, "place of the row parameters");
    TB_EXPECT(row * bbs::kRows / c.part_rows, (row + v.rows - 1) * bbs::kRows / c.part_rows,
              "a visit is of one part");
    if (v.last_pass) row = (row + v.rows) % (c.rows / bbs::kRows);
    TB_EXPECT(!last_group || v.last_group, true, "nothing comes behind the last group");
    last_group = v.last_group;
  }
  TB_EXPECT(last_group, true, "the last group comes");
  return t;
}

void expect_same(const std::vector<bbs::Visit>& a, const std::vector<bbs::Visit>& b) {
  TB_EXPECT(a.size(), b.size(), "visits of two stages");
  for (size_t i = 0; i < std::min(a.size(), b.size()); i++) {
    const bool same = a[i].tiles == b[i].tiles && a[i].rows == b[i].rows &&
                      a[i].row_words == b[i].row_words && a[i].stride == b[i].stride &&
                      a[i].first_pass == b[i].first_pass && a[i].last_pass == b[i].last_pass &&
                      a[i].last_group == b[i].last_group && a[i].fill_end == b[i].fill_end &&
                      a[i].block == b[i].block && a[i].again == b[i].again &&
                      a[i].parameters == b[i].parameters;
    TB_EXPECT(same, true, "visit %zu is the same for every stage", i);
  }
}

// The fills, read in order, cover all features of all tiles.
int64_t follow_fills(tb::SequenceStreams& streams, const bbs::Command& c, const bbs::Shape& s) {
  int64_t features = 0;
  for (uint32_t f = 0; f < s.fills; f++) {
    const bbs::Fill fill = streams.fills.read();
    features += (int64_t)fill.tiles * fill.features;
    TB_EXPECT(fill.tiles * fill.stride <= bbs::kVectorWords, true, "fill %u fits", f);
    TB_EXPECT(fill.features <= fill.stride * bbs::kLanes, true, "features of fill %u fit", f);
    TB_EXPECT(fill.stride, fill.groups * tb::bank_room(c), "stride of fill %u", f);
    TB_EXPECT(fill.first_group % c.groups_per_pass, 0, "first group of fill %u", f);
    const uint32_t of_part = c.passes == 1 ? 1 : c.passes * c.blocks;
    TB_EXPECT(fill.again, f % (c.parts * of_part) != 0, "whether fill %u brings the same tiles again",
              f);
    TB_EXPECT(fill.channel_base, f / of_part % c.parts * c.part_channels * c.image_words,
              "channels of fill %u", f);
    if (!tb::has(c, bbs::kFlagImage)) continue;
    const bbs::Fill tile_fill = streams.tile_fills.read();
    TB_EXPECT(tile_fill.tiles, fill.tiles, "tiles of fill %u", f);
    TB_EXPECT(tile_fill.again, fill.again, "fill %u of columns", f);
  }
  TB_EXPECT(tb::drained(streams.fills), true, "fills too many");
  TB_EXPECT(tb::drained(streams.tile_fills), true, "fills of columns too many");
  return features;
}

// Activations come a fill at a time, an image in one piece.
void expect_activations(tb::SequenceStreams& streams, const bbs::Command& c, const bbs::Shape& s) {
  const uint32_t loads = c.passes == 1 ? 1 : c.blocks;  // of every feature
  const bool image = tb::has(c, bbs::kFlagImage);
  const int64_t filled = follow_fills(streams, c, s);
  TB_EXPECT(filled, (int64_t)c.tiles * c.parts * c.features * loads, "features filled");
  const auto bursts = all_of(streams.acts);
  if (tb::plane_sizes(c)[0] == 0) {
    TB_EXPECT(total_of(bursts), 0, "words fetched where none are wanted");
    return;
  }
  const Extent extent = image ? tensor(c.input, tb::image_tiles(c), c.channels, c.input_stride, 1)
                              : tensor(c.input, c.tiles, c.features, c.input_stride, 1);
  expect_cover(bursts, extent, image ? 1 : loads, "activations");
}

// How often weights and row parameters are fetched: what fits the buffers stays.
uint32_t fetches(const bbs::Command& c) { return tb::weights_stay(c) ? 1 : c.tile_groups; }

void expect_rows(tb::SequenceStreams& streams, const bbs::Command& c, int64_t wanted) {
  auto rows = all_of(streams.rows);
  if (tb::has(c, bbs::kFlagTable)) {
    TB_EXPECT(rows[0].offset, c.table, "the table comes first");
    TB_EXPECT(rows[0].count * rows[0].times, 32, "words of the table");
    rows.erase(rows.begin());
  }
  TB_EXPECT(expect_cover(rows, plane(c.parameters, c.rows), fetches(c) * c.passes,
                         "row parameters"),
            wanted, "row words");
}

void expect_outputs(tb::SequenceStreams& streams, const bbs::Command& c, int64_t bytes) {
  const int size = tb::has(c, bbs::kFlagSumsOut) ? 4 : 1;
  const uint32_t rows = tb::output_rows(c);
  if (tb::has(c, bbs::kFlagToMemory)) {
    auto stores = until_final(streams.stores, "store bursts");
    if (tb::has(c, bbs::kFlagStateOut)) {
      expect_cover({stores.back()}, plane(c.state, c.state_words), 1, "stored states");
      stores.pop_back();
    }
    const Extent extent = tensor(c.output, c.tiles, rows, c.output_stride, size);
    TB_EXPECT(expect_cover(stores, extent, 1, "outputs"), bytes * size / bbs::kPortBytes,
              "output words");
  }
  TB_EXPECT(tb::drained(streams.stores), true, "bursts of outputs for the chain");
  const auto bursts = all_of(streams.residuals);
  if (tb::has(c, bbs::kFlagResidual)) {
    expect_cover(bursts, tensor(c.residual, c.tiles, rows, c.output_stride, 1), 1, "residual");
  } else if (tb::has(c, bbs::kFlagStateIn)) {
    expect_cover(bursts, plane(c.residual, c.state_words), 1, "loaded states");
  } else {
    TB_EXPECT(total_of(bursts), 0, "words of no residual");
  }
}

// The cells of a tile follow once all passes are through.
void expect_cell_visits(tb::SequenceStreams& streams, const bbs::Command& c,
                        const std::vector<bbs::Visit>& visits) {
  std::vector<bbs::Visit> wanted, got;
  for (const bbs::Visit& visit : visits)
    if (tb::of_cell(c) && visit.last_pass) wanted.push_back(visit);
  for (size_t i = 0; i < wanted.size(); i++) got.push_back(streams.cells.read());
  expect_same(wanted, got);
  TB_EXPECT(tb::drained(streams.cells), true, "visits of cells too many");
}

bbs::Command command(tb::Random& random) {
  bbs::Command c = tb::random_command(random, {40, 12, 600});
  for (uint32_t* offset : tb::plane_offsets(c)) *offset = random.between(0, 1000);
  c.table = 3000;  // apart from the row parameters
  const bool image = tb::has(c, bbs::kFlagImage);
  if (random.once_in(4) && image) c.flags |= bbs::kFlagResidentInput;
  const bool fits = c.tiles * (tb::output_rows(c) / bbs::kPack) <= bbs::kChainWords;
  const bool one_block = c.parts == 1 && c.rows <= c.rows_per_block;
  const bool in_order = one_block || c.tiles_per_block == 1;
  if (random.once_in(4) && fits && in_order &&
      !tb::has(c, bbs::kFlagSumsOut | bbs::kFlagStateOut))
    c.flags ^= random.once_in(2) ? bbs::kFlagToChain : bbs::kFlagToChain | bbs::kFlagToMemory;
  if (tb::pass_count(c) == 1 && tb::block_size(c) <= bbs::kBlockWords && random.once_in(2)) {
    c.flags |= random.once_in(2) ? bbs::kFlagKeepWeights : bbs::kFlagResidentWeights;
    c.block_base = random.between(0, bbs::kBlockWords - tb::block_size(c));
  }
  return c;
}

int64_t run(tb::Random& random) {
  const bbs::Command c = command(random);
  bbs::Shape s = {};
  TB_EXPECT(bbs::check_command(c, UINT32_MAX, 0, s), bbs::kStatusOk, "status of a good command");
  tb::SequenceStreams streams;
  streams.run(c, s);
  const auto visits = until_final(streams.multiply, "multiply visits");
  expect_same(visits, until_final(streams.unpack, "unpack visits"));
  expect_same(visits, until_final(streams.finish, "visits of finish"));
  expect_cell_visits(streams, c, visits);
  const Totals t = follow(c, visits);
  const std::vector<uint64_t> sizes = tb::plane_sizes(c);
  TB_EXPECT(expect_cover(all_of(streams.weights),
                         plane(c.weights, sizes[2]), fetches(c), "weights"),
            t.weights, "weight words");
  TB_EXPECT(expect_cover(all_of(streams.indices),
                         plane(c.indices, sizes[3]), fetches(c), "indices"),
            t.indices, "index words");
  expect_rows(streams, c, t.rows);
  expect_activations(streams, c, s);
  expect_outputs(streams, c, t.outputs);
  TB_EXPECT(t.fills, s.fills, "fills that the visits end");
  TB_EXPECT(t.products, (int64_t)c.tiles * c.rows * c.groups * c.keep, "CSB words multiplied");
  return (int64_t)visits.size();
}

}  // namespace

int main() {
  tb::Random random(10);
  int64_t count = 0;
  for (int i = 0; i < tb::cases(4000); i++) count += run(random);
  return tb::finish("sequence_tb", count, "visits");
}
