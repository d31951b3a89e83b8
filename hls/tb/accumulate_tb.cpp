// SPDX-License-Identifier: Apache-2.0
// Bias, passes and the table that goes through, over any cut of rows and tiles.
#include "accumulate.hpp"

#include "layer.hpp"

namespace {

struct Streams {
  bbs::VisitStream visits{"visits"};
  bbs::WordStream row_words{"row_words"};
  bbs::SumStream sums{"sums"};
  bbs::TableStream table_words{"table_words"};
  bbs::TotalStream totals{"totals"};
};

// One block over one tile group, in `passes` visits; appends the totals it must give.
void append_block(tb::Random& random, int passes, bool final, Streams& streams,
                  std::vector<bbs::TotalWord>& expected) {
  bbs::Visit visit = {};
  visit.tiles = random.between(1, std::min(bbs::kSumWords, 5));
  visit.rows = random.between(1, std::min({bbs::kSumWords / (int)visit.tiles, bbs::kBlockRows, 9}));
  if (random.once_in(32)) visit.rows = std::min<int>(bbs::kSumWords / visit.tiles, bbs::kBlockRows);
  if (passes == 1 && random.once_in(32)) visit.rows = bbs::kBlockRows;
  std::vector<uint64_t> parameters(visit.rows);
  for (uint64_t& word : parameters)
    word = random.bits() << 32 | (uint32_t)random.between(-(1 << 30), 1 << 30);
  std::vector<bbs::TotalWord> totals(visit.tiles * visit.rows);
  for (size_t i = 0; i < totals.size(); i++) {
    for (int32_t& value : totals[i].v) value = (int32_t)(uint32_t)parameters[i % visit.rows];
    totals[i].multiplier = (uint32_t)(parameters[i % visit.rows] >> 32);
  }
  for (int pass = 0; pass < passes; pass++) {
    visit.first_pass = pass == 0;
    visit.last_pass = pass + 1 == passes;
    visit.final = final && visit.last_pass;
    streams.visits.write(visit);
    for (const uint64_t word : parameters) streams.row_words.write(word);
    for (bbs::TotalWord& total : totals) {
      bbs::SumWord sum;
      for (int col = 0; col < bbs::kCols; col++) {
        sum.v[col] = random.between(-100000000, 100000000);
        total.v[col] += sum.v[col];
      }
      streams.sums.write(sum);
    }
  }
  expected.insert(expected.end(), totals.begin(), totals.end());
}

int64_t run(tb::Random& random) {
  Streams streams;
  bbs::Command c = {};
  tb::Words table;
  if (random.once_in(2)) {
    c.flags = bbs::kFlagTable;
    for (int i = 0; i < bbs::kTableWords; i++) table.push_back(random.bits());
    for (const uint64_t word : table) streams.row_words.write(word);
  }
  const int passes = random.between(1, 4);
  const int blocks = random.between(1, 4);
  std::vector<bbs::TotalWord> expected;
  for (int b = 0; b < blocks; b++)
    append_block(random, passes, b + 1 == blocks, streams, expected);
  bbs::accumulate(c, streams.visits, streams.row_words, streams.sums, streams.table_words,
                  streams.totals);
  for (size_t i = 0; i < table.size(); i++)
    TB_EXPECT(streams.table_words.read(), table[i], "table word %zu", i);
  for (size_t i = 0; i < expected.size(); i++) {
    const bbs::TotalWord total = streams.totals.read();
    TB_EXPECT(total.multiplier, expected[i].multiplier, "multiplier of total %zu", i);
    for (int col = 0; col < bbs::kCols; col++)
      TB_EXPECT(total.v[col], expected[i].v[col], "%d passes: total %zu, column %d", passes, i,
                col);
  }
  TB_EXPECT(tb::drained(streams.visits), true, "visits left over");
  TB_EXPECT(tb::drained(streams.row_words), true, "row parameters left over");
  TB_EXPECT(tb::drained(streams.sums), true, "sums left over");
  TB_EXPECT(tb::drained(streams.table_words), true, "table words too many");
  TB_EXPECT(tb::drained(streams.totals), true, "totals too many");
  return (int64_t)expected.size() * bbs::kCols;
}

}  // namespace

int main() {
  tb::Random random(5);
  int64_t count = 0;
  for (int i = 0; i < 3000 / tb::kShare; i++) count += run(random);
  return tb::finish("accumulate_tb", count, "totals");
}
