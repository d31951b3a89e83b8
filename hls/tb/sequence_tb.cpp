// SPDX-License-Identifier: Apache-2.0
// The order of work: what every stream is told adds up, covers each plane as often as it must,
// and ends once.
#include "sequence.hpp"

#include "layer.hpp"

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

// Counts how often every word of a plane of `words` words at `offset` is met: `times` each.
int64_t expect_cover(const std::vector<bbs::Burst>& bursts, uint32_t offset, uint64_t words,
                     uint32_t times, const char* name) {
  std::vector<uint32_t> met(words);
  int64_t total = 0;
  for (const bbs::Burst& burst : bursts) {
    total += burst.count;
    for (uint32_t i = 0; i < burst.count; i++) {
      const uint32_t at = burst.offset + i - offset;
      if (at < words)
        met[at]++;
      else
        tb::differs(at, (int64_t)words - 1, "%s: word beyond the last one", name);
    }
  }
  for (size_t i = 0; i < words; i++) TB_EXPECT(met[i], times, "%s: word %zu met", name, i);
  return total;
}

// What the visits make the compute stages read and write.
struct Totals {
  int64_t weights = 0, indices = 0, rows = 0, outputs = 0, fills = 0, products = 0;
};

Totals follow(const bbs::Command& c, const bbs::Shape& s, const std::vector<bbs::Visit>& visits) {
  Totals t;
  bool first_pass = true;
  for (const bbs::Visit& v : visits) {
    const int64_t lanes = (int64_t)v.row_words * bbs::kLanes;
    t.weights += v.rows * ((lanes * tb::weight_width(c) + 63) / 64);
    t.indices += v.rows * ((lanes * c.index_bits + 63) / 64);
    t.rows += v.rows;
    t.outputs += v.last_pass ? (int64_t)v.rows * v.tiles * s.output_words : 0;
    t.fills += v.fill_end;
    t.products += (int64_t)v.rows * v.tiles * v.row_words;
    TB_EXPECT(v.first_pass, first_pass, "a first pass comes after a last one");
    first_pass = v.last_pass;
    TB_EXPECT(v.stride * c.keep, v.row_words * c.bank_size, "stride and row words of a visit");
  }
  return t;
}

void expect_same(const std::vector<bbs::Visit>& a, const std::vector<bbs::Visit>& b) {
  TB_EXPECT(a.size(), b.size(), "visits of two stages");
  for (size_t i = 0; i < std::min(a.size(), b.size()); i++) {
    const bool same = a[i].tiles == b[i].tiles && a[i].rows == b[i].rows &&
                      a[i].row_words == b[i].row_words && a[i].stride == b[i].stride &&
                      a[i].first_pass == b[i].first_pass && a[i].last_pass == b[i].last_pass &&
                      a[i].fill_end == b[i].fill_end;
    TB_EXPECT(same, true, "visit %zu is the same for every stage", i);
  }
}

// The fills, read in order, give the activation words that the fetch brings.
int64_t follow_fills(bbs::FillStream& fills, const bbs::Command& c, const bbs::Shape& s) {
  int64_t words = 0;
  for (uint32_t f = 0; f < s.fills; f++) {
    const bbs::Fill fill = fills.read();
    words += (int64_t)fill.tiles * fill.features * bbs::kColWords;
    TB_EXPECT(fill.bank_size, c.bank_size, "bank size of fill %u", f);
    TB_EXPECT(fill.tiles * fill.stride <= bbs::kVectorWords, true, "fill %u fits", f);
    TB_EXPECT(fill.features <= fill.stride * bbs::kLanes, true, "features of fill %u fit", f);
  }
  TB_EXPECT(tb::drained(fills), true, "fills too many");
  return words;
}

int64_t run(tb::Random& random) {
  bbs::Command c = tb::random_command(random, 40, 12, 6);
  c.input = random.between(0, 1000);
  c.output = random.between(0, 1000);
  c.weights = random.between(0, 1000);
  c.indices = random.between(0, 1000);
  c.parameters = random.between(0, 1000);
  c.table = 3000;  // apart from the row parameters
  bbs::Shape s = {};
  TB_EXPECT(bbs::check_command(c, UINT32_MAX, s), bbs::kStatusOk, "status of a good command");
  tb::SequenceStreams streams;
  streams.run(c, s);
  const auto visits = until_final(streams.multiply, "multiply visits");
  expect_same(visits, until_final(streams.unpack, "unpack visits"));
  expect_same(visits, until_final(streams.accumulate, "accumulate visits"));
  const Totals t = follow(c, s, visits);

  const std::vector<uint64_t> sizes = tb::plane_sizes(c);
  const uint32_t groups = s.tile_groups;
  TB_EXPECT(expect_cover(until_final(streams.weights, "weight bursts"), c.weights,
                         sizes[2], groups, "weights"),
            t.weights, "weight words");
  TB_EXPECT(expect_cover(until_final(streams.indices, "index bursts"), c.indices, sizes[3],
                         groups, "indices"),
            t.indices, "index words");
  auto rows = until_final(streams.rows, "row bursts");
  if (c.flags & bbs::kFlagTable) {
    TB_EXPECT(rows[0].offset, c.table, "the table comes first");
    TB_EXPECT(rows[0].count, 32, "words of the table");
    rows.erase(rows.begin());
  }
  TB_EXPECT(expect_cover(rows, c.parameters, c.rows, groups * s.passes, "row parameters"), t.rows,
            "row words");
  const uint32_t loads = s.passes == 1 ? 1 : s.blocks;  // of every activation
  const int64_t acts = expect_cover(until_final(streams.acts, "activation bursts"), c.input,
                                    sizes[0], loads, "activations");
  TB_EXPECT(follow_fills(streams.fills, c, s), acts, "activation words");
  TB_EXPECT(t.fills, s.fills, "fills that the visits end");
  TB_EXPECT(expect_cover(until_final(streams.stores, "store bursts"), c.output, sizes[1], 1,
                         "outputs"),
            t.outputs, "output words");
  TB_EXPECT(t.products, (int64_t)c.tiles * c.rows * c.groups * c.keep, "CSB words multiplied");
  return (int64_t)visits.size();
}

}  // namespace

int main() {
  tb::Random random(10);
  int64_t count = 0;
  for (int i = 0; i < 4000 / tb::kShare; i++) count += run(random);
  return tb::finish("sequence_tb", count, "visits");
}
