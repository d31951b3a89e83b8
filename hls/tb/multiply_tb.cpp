// SPDX-License-Identifier: Apache-2.0
// Gather, multiply, add: several fillings of the vector buffer, blocks that meet many tiles, a
// block longer than its buffer that meets one.
#include "multiply.hpp"

#include "layer.hpp"

namespace {

struct Streams {
  bbs::FillStream fills{"fills"};
  bbs::WordStream features{"features"};
  bbs::VisitStream visits{"visits"};
  bbs::WeightStream words{"words"};
  bbs::SumStream sums{"sums"};
};

// One weight block over the filled buffer: feeds its words, appends the sums it must give.
void append_visit(tb::Random& random, const bbs::Command& c, const bbs::Fill& fill,
                  const bbs::Visit& visit, const std::vector<int8_t>& x, Streams& streams,
                  std::vector<int32_t>& expected) {
  const size_t row_size = (size_t)visit.row_words * bbs::kLanes;
  std::vector<int8_t> weights;
  std::vector<uint32_t> features;
  for (uint32_t i = 0; i < visit.rows * visit.row_words; i++) {
    bbs::WeightWord word;
    for (uint32_t lane = 0; lane < bbs::kLanes; lane++) {
      word.index[lane] = (uint8_t)random.between(0, c.bank_size - 1);
      const uint32_t group = i % visit.row_words / c.keep;
      const uint32_t feature = tb::feature_of(c, group, lane, word.index[lane]);
      const bool padding = feature >= fill.features;
      word.weight[lane] = padding ? 0 : random.once_in(3) ? -128 : random.byte();
      weights.push_back(word.weight[lane]);
      features.push_back(padding ? 0 : feature);
    }
    streams.words.write(word);
  }
  for (uint32_t tile = 0; tile < visit.tiles; tile++) {
    for (uint32_t row = 0; row < visit.rows; row++) {
      std::vector<int32_t> sums(bbs::kCols);
      for (size_t i = row * row_size; i < (row + 1) * row_size; i++)
        for (int col = 0; col < bbs::kCols; col++)
          sums[col] += weights[i] * x[(tile * fill.features + features[i]) * bbs::kCols + col];
      expected.insert(expected.end(), sums.begin(), sums.end());
    }
  }
}

// One filling of the vector buffer and the visits that use it.
void append_fill(tb::Random& random, bool long_block, const bbs::Command& c, Streams& streams,
                 std::vector<int32_t>& expected) {
  const int fit = bbs::kVectorWords / c.bank_size;
  const int groups = random.between(1, std::min(fit, 6));
  bbs::Fill fill;
  fill.tiles = long_block ? 1 : random.between(1, std::min(fit / groups, 4));
  fill.features = random.between(1, groups * bbs::kLanes * c.bank_size);
  fill.stride = groups * c.bank_size;
  fill.bank_size = c.bank_size;
  streams.fills.write(fill);
  const std::vector<int8_t> x =
      tb::random_bytes(random, (size_t)fill.tiles * fill.features * bbs::kCols);
  tb::Words words;
  tb::append_bytes(words, x);
  for (const uint64_t word : words) streams.features.write(word);
  bbs::Visit visit = {};
  visit.tiles = fill.tiles;
  visit.row_words = groups * c.keep;
  visit.stride = fill.stride;
  const int most_rows = bbs::kBlockWords / (int)visit.row_words;
  const int visits = long_block ? 1 : random.between(1, 3);
  for (int v = 0; v < visits; v++) {
    visit.rows = long_block ? most_rows + random.between(1, 9)
                            : random.between(1, std::min(most_rows, 12));
    if (random.once_in(16)) visit.rows = most_rows;  // the whole buffer
    visit.fill_end = v + 1 == visits;
    streams.visits.write(visit);
    append_visit(random, c, fill, visit, x, streams, expected);
  }
}

int64_t run(tb::Random& random, bool long_block) {
  bbs::Command c = {};
  c.bank_size = random.once_in(2) ? 2 << random.between(0, 7) : random.between(2, 256);
  c.keep = random.between(1, std::min<int>(c.bank_size, 12));
  Streams streams;
  std::vector<int32_t> expected;
  bbs::Shape shape = {};
  shape.fills = random.between(1, 3);
  for (uint32_t f = 0; f < shape.fills; f++)
    append_fill(random, long_block, c, streams, expected);
  bbs::multiply(c, shape, streams.fills, streams.features, streams.visits, streams.words,
                streams.sums);
  for (size_t i = 0; i < expected.size(); i += bbs::kCols) {
    const bbs::SumWord sum = streams.sums.read();
    for (int col = 0; col < bbs::kCols; col++)
      TB_EXPECT(sum.v[col], expected[i + col], "bank size %u, keep %u: sum %zu, column %d",
                c.bank_size, c.keep, i / bbs::kCols, col);
  }
  TB_EXPECT(tb::drained(streams.fills), true, "fills left over");
  TB_EXPECT(tb::drained(streams.features), true, "feature words left over");
  TB_EXPECT(tb::drained(streams.visits), true, "visits left over");
  TB_EXPECT(tb::drained(streams.words), true, "CSB words left over");
  TB_EXPECT(tb::drained(streams.sums), true, "sums too many");
  return (int64_t)expected.size();
}

}  // namespace

int main() {
  tb::Random random(4);
  int64_t count = 0;
  for (int i = 0; i < 400 / tb::kShare; i++) count += run(random, i % 16 == 0);
  return tb::finish("multiply_tb", count, "sums");
}
