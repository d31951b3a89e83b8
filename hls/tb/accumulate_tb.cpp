// SPDX-License-Identifier: Apache-2.0
// Bias, passes, the largest, the sum of a row's columns, and the table that goes through, over any
// cut of rows and tiles.
#include "accumulate.hpp"

#include "commands.hpp"

namespace {

struct Streams {
  bbs::VisitStream visits{"visits"};
  bbs::WordStream row_words{"row_words"};
  bbs::SumStream sums{"sums"};
  bbs::TableStream table_words{"table_words"};
  bbs::TotalStream totals{"totals"};
};

// What a row group of a tile starts from: the bias of its rows, of the sum of columns in its
// first column only.
bbs::TotalWord start(const bbs::Command& c, const std::vector<uint64_t>& parameters,
                     uint32_t row_group) {
  bbs::TotalWord total;
  for (int r = 0; r < bbs::kRows; r++) {
    const uint64_t word = parameters[row_group * bbs::kRows + r];
    total.multiplier[r] = (uint32_t)(word >> 32);
    for (int col = 0; col < bbs::kCols; col++)
      total.v[r * bbs::kCols + col] =
          col > 0 && tb::has(c, bbs::kFlagSumColumns) ? 0 : (int32_t)(uint32_t)word;
  }
  return total;
}

void add_columns(bbs::TotalWord& total) {
  for (int r = 0; r < bbs::kRows; r++)
    for (int col = 1; col < bbs::kCols; col++)
      total.v[r * bbs::kCols] += total.v[r * bbs::kCols + col];
}

bbs::Visit random_visit(tb::Random& random, int passes) {
  bbs::Visit visit = {};
  visit.tiles = random.between(1, std::min(bbs::kSumWords, 5));
  const int most = std::min<int>(bbs::kSumWords / visit.tiles, bbs::kBlockRows);
  visit.rows = random.between(1, std::min(most, 9));
  if (random.once_in(32)) visit.rows = most;
  if (passes == 1 && random.once_in(32)) visit.rows = bbs::kBlockRows;
  return visit;
}

// One block over one tile group, in `passes` visits; appends the totals it must give. The
// `parameters` are those of the block before where it is met again.
void append_block(tb::Random& random, const bbs::Command& c, int passes, bool again, bool final,
                  std::vector<uint64_t>& parameters, Streams& streams,
                  std::vector<bbs::TotalWord>& expected) {
  bbs::Visit visit = random_visit(random, passes);
  visit.last_group = final;
  visit.again = again;
  if (again) {
    visit.rows = (uint32_t)parameters.size() / bbs::kRows;
  } else {
    parameters.resize(visit.rows * bbs::kRows);
    for (uint64_t& word : parameters)
      word = random.bits() << 32 | (uint32_t)random.between(-(1 << 20), 1 << 20);
  }
  std::vector<bbs::TotalWord> totals;
  for (uint32_t i = 0; i < visit.tiles * visit.rows; i++) {
    totals.push_back(start(c, parameters, i % visit.rows));
    totals.back().last_tile = final && i / visit.rows + 1 == visit.tiles;
  }
  for (int pass = 0; pass < passes; pass++) {
    visit.first_pass = pass == 0;
    visit.last_pass = pass + 1 == passes;
    visit.final = final && visit.last_pass;
    streams.visits.write(visit);
    for (const uint64_t word : parameters)
      if (!again) streams.row_words.write(word);
    for (bbs::TotalWord& total : totals) {
      bbs::SumWord sum;
      for (int i = 0; i < bbs::kWide; i++) {
        sum.v[i] = random.between(-2000000, 2000000);
        total.v[i] = tb::has(c, bbs::kFlagMaximum) ? std::max(total.v[i], sum.v[i])
                                                   : total.v[i] + sum.v[i];
      }
      streams.sums.write(sum);
    }
  }
  if (tb::has(c, bbs::kFlagSumColumns))
    for (bbs::TotalWord& total : totals) add_columns(total);
  expected.insert(expected.end(), totals.begin(), totals.end());
}

int64_t run(tb::Random& random) {
  const uint32_t kinds[] = {0, bbs::kFlagMaximum, bbs::kFlagSumColumns};
  Streams streams;
  bbs::Command c = {};
  c.flags = kinds[random.between(0, 2)] & bbs::kBuiltFlags;
  tb::Words table;
  if (random.once_in(2)) {
    c.flags |= bbs::kFlagTable;
    for (int i = 0; i < bbs::kTableWords; i++) table.push_back(random.bits());
    for (const uint64_t word : table) streams.row_words.write(word);
  }
  const int passes = random.between(1, 4);
  const int blocks = random.between(1, 4);
  std::vector<bbs::TotalWord> expected;
  std::vector<uint64_t> parameters;
  for (int b = 0; b < blocks; b++) {
    const bool again = passes == 1 && b > 0 && random.once_in(2);
    append_block(random, c, passes, again, b + 1 == blocks, parameters, streams, expected);
  }
  bbs::accumulate(c, streams.visits, streams.row_words, streams.sums, streams.table_words,
                  streams.totals);
  for (size_t i = 0; i < table.size(); i++)
    TB_EXPECT(streams.table_words.read(), table[i], "table word %zu", i);
  for (size_t i = 0; i < expected.size(); i++) {
    const bbs::TotalWord total = streams.totals.read();
    TB_EXPECT(total.last_tile, expected[i].last_tile, "last tile of total %zu", i);
    for (int r = 0; r < bbs::kRows; r++)
      TB_EXPECT(total.multiplier[r], expected[i].multiplier[r], "multiplier %d of total %zu", r, i);
    for (int col = 0; col < bbs::kWide; col++)
      TB_EXPECT(total.v[col], expected[i].v[col], "flags %u, %d passes: total %zu, column %d",
                c.flags, passes, i, col);
  }
  TB_EXPECT(tb::drained(streams.visits), true, "visits left over");
  TB_EXPECT(tb::drained(streams.row_words), true, "row parameters left over");
  TB_EXPECT(tb::drained(streams.sums), true, "sums left over");
  TB_EXPECT(tb::drained(streams.table_words), true, "table words too many");
  TB_EXPECT(tb::drained(streams.totals), true, "totals too many");
  return (int64_t)expected.size() * bbs::kWide;
}

// A row group's parameters are left in its last cycle and read in its first one, a tile later.
void rows_in_time() {
  for (uint32_t rows = 1; rows < 9; rows++) {
    bbs::Visit visit = {};
    bbs::Rows at = {};
    visit.rows = rows;
    bbs::start_rows(visit, at);
    const int distance = (int)at.period - (bbs::kRows - 1);
    TB_EXPECT(distance >= bbs::kReuseDistance, true, "%u row groups, read after %d", rows,
              distance);
  }
}

}  // namespace

int main() {
  tb::Random random(5);
  rows_in_time();
  int64_t count = 0;
  for (int i = 0; i < tb::cases(3000); i++) count += run(random);
  return tb::finish("accumulate_tb", count, "totals");
}
