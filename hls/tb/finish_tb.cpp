// SPDX-License-Identifier: Apache-2.0
// From sums to outputs, over any cut of rows, tiles and passes: bias, the largest, the sum of a
// row's columns; bytes, through a table, combined with a residual, sums; gates, states passed
// through, columns that do not count.
#include "finish.hpp"

#include "commands.hpp"

namespace {

struct Streams {
  bbs::VisitStream visits{"visits"};
  bbs::WordStream row_words{"row_words"};
  bbs::SumStream sums{"sums"};
  bbs::WordStream residuals{"residuals"}, states{"states"}, gates{"gates"}, outputs{"outputs"};
};

// What goes in, and the bytes and states that must come out.
struct Case {
  bbs::Command c;
  Streams streams;
  std::vector<int8_t> table;
  std::vector<uint64_t> parameters;  // of the block, which may be met again
  std::vector<int8_t> residuals;
  std::vector<int8_t> expected;
  uint32_t row = 0;  // output row, for gates
};

using Sums = std::vector<int32_t>;  // of a row group

// What a row group of a tile starts from: the bias of its rows, of the sum of columns in its first
// column only.
Sums start(const Case& k, uint32_t row_group) {
  Sums total;
  for (int r = 0; r < bbs::kRows; r++)
    for (int col = 0; col < bbs::kCols; col++) {
      const uint64_t word = k.parameters[row_group * bbs::kRows + r];
      const bool one_bias = col > 0 && tb::has(k.c, bbs::kFlagSumColumns);
      total.push_back(one_bias ? 0 : (int32_t)(uint32_t)word);
    }
  return total;
}

void add_columns(Sums& total) {
  for (int r = 0; r < bbs::kRows; r++)
    for (int col = 1; col < bbs::kCols; col++)
      total[r * bbs::kCols] += total[r * bbs::kCols + col];
}

// The outputs that a complete row group gives.
void expect_outputs(tb::Random& random, Case& k, uint32_t row_group, const Sums& total,
                    bool last_tile) {
  const bbs::Command& c = k.c;
  for (int place = 0; place < bbs::kWide; place++) {
    const uint32_t column = place % bbs::kCols;
    const bool counts = !last_tile || column < c.last_columns;
    if (tb::has(c, bbs::kFlagSumsOut)) {
      for (int byte = 0; byte < 4; byte++)
        k.expected.push_back((int8_t)(uint8_t)(counts ? (uint32_t)total[place] >> (8 * byte) : 0));
      continue;
    }
    const int row = place / bbs::kCols;
    const uint64_t word = k.parameters[row_group * bbs::kRows + row];
    const float multiplier = bbs::float_of_bits((uint32_t)(word >> 32));
    int8_t y = tb::requantised(total[place], multiplier, c.zero_point);
    const bool skips = tb::has(c, bbs::kFlagGru) && (k.row + row) % 4 >= 2;
    if (tb::has(c, bbs::kFlagTable) && !skips) y = k.table[y + 128];
    if (tb::has(c, bbs::kFlagResidual)) {
      k.residuals.push_back(random.byte());
      y = tb::combined(c, y, k.residuals.back());
    }
    // Where nothing goes to memory, words of columns that do not count are left out.
    const uint32_t words = (c.last_columns + 7) / 8;
    const bool wanted = !bbs::leaves_out(c) || bbs::kCols < 8 || !last_tile || column < words * 8;
    if (wanted) k.expected.push_back(counts ? y : 0);
  }
  k.row += bbs::kRows;
}

bbs::Visit random_visit(tb::Random& random, int passes) {
  bbs::Visit visit = {};
  visit.tiles = random.between(1, std::min(bbs::kSumWords, 5));
  const int most = std::min<int>(bbs::kSumWords / visit.tiles, bbs::kBlockRows);
  visit.rows = random.between(1, std::min(most, 9));
  if (random.once_in(32)) visit.rows = most;
  if (passes == 1 && random.once_in(32)) visit.rows = bbs::kBlockRows;
  // Outputs of one row group after the other must fill whole words.
  const uint32_t step = tb::row_step({}) / bbs::kRows;
  const uint32_t whole = visit.rows / step * step;
  visit.rows = whole > 0 ? whole : step;
  return visit;
}

// One block over one tile group, in `passes` visits. The parameters are those of the block before
// where it is met `again`.
void append_block(tb::Random& random, Case& k, int passes, bool again, bool final) {
  const bool maximum = tb::has(k.c, bbs::kFlagMaximum);
  bbs::Visit visit = random_visit(random, passes);
  visit.last_group = final;
  visit.again = again;
  if (again) {
    visit.rows = (uint32_t)k.parameters.size() / bbs::kRows;
  } else {
    k.parameters.resize(visit.rows * bbs::kRows);
    for (uint64_t& word : k.parameters) {
      const float multiplier = (float)random.between(1, 1000) / 10000000;
      const int32_t bias = random.between(-(1 << 20), 1 << 20);
      word = (uint64_t)bbs::bits_of_float(multiplier) << 32 | (uint32_t)bias;
    }
  }
  std::vector<Sums> totals;
  for (uint32_t i = 0; i < visit.tiles * visit.rows; i++)
    totals.push_back(start(k, i % visit.rows));
  for (int pass = 0; pass < passes; pass++) {
    visit.first_pass = pass == 0;
    visit.last_pass = pass + 1 == passes;
    visit.final = final && visit.last_pass;
    k.streams.visits.write(visit);
    for (const uint64_t word : k.parameters)
      if (!again) k.streams.row_words.write(word);
    for (Sums& total : totals) {
      bbs::SumWord sum;
      for (int i = 0; i < bbs::kWide; i++) {
        sum.v[i] = random.between(-2000000, 2000000);
        total[i] = maximum ? std::max(total[i], sum.v[i]) : total[i] + sum.v[i];
      }
      k.streams.sums.write(sum);
    }
  }
  for (uint32_t i = 0; i < totals.size(); i++) {
    if (tb::has(k.c, bbs::kFlagSumColumns)) add_columns(totals[i]);
    const bool last_tile = final && i / visit.rows + 1 == visit.tiles;
    expect_outputs(random, k, i % visit.rows, totals[i], last_tile);
  }
}

int64_t run(tb::Random& random, uint32_t flags) {
  Case k;
  bbs::Command& c = k.c = tb::random_matrix(random, {20, 1, 1}, 256);
  const uint32_t kinds[] = {0, bbs::kFlagMaximum, bbs::kFlagSumColumns};
  c.flags = (flags | kinds[random.between(0, 2)]) & bbs::kBuiltFlags;
  c.last_columns = random.between(1, bbs::kCols);
  if (tb::has(c, bbs::kFlagSumsOut) || random.once_in(2)) c.flags |= bbs::kFlagToMemory;
  k.table = tb::random_bytes(random, bbs::kTableEntries);
  tb::Words words;
  if (tb::has(c, bbs::kFlagTable)) tb::append_bytes(words, k.table);
  for (const uint64_t word : words) k.streams.row_words.write(word);
  // States come before anything else, for the stage behind this one.
  tb::Words states(tb::has(c, bbs::kFlagStateIn) ? c.state_words = random.between(0, 9) : 0);
  for (uint64_t& word : states) k.streams.residuals.write(word = random.bits());
  const int passes = random.between(1, 4);
  const int blocks = random.between(1, 4);
  for (int b = 0; b < blocks; b++) {
    const bool again = passes == 1 && b > 0 && random.once_in(2);
    append_block(random, k, passes, again, b + 1 == blocks);
  }
  tb::Words residuals, expected;
  tb::append_bytes(residuals, k.residuals);
  for (const uint64_t word : residuals) k.streams.residuals.write(word);
  tb::append_bytes(expected, k.expected);

  bbs::Shape s = {};
  const bool shorter = bbs::kPortWords > 1 && bbs::leaves_out(c);
  s.last_words = shorter ? (c.last_columns + 7) / 8 : bbs::kPortWords;
  bbs::FinishCommandStream commands("commands");
  tb::tell(commands, bbs::finish_command(c, s));
  bbs::finish(commands, k.streams.visits, k.streams.row_words, k.streams.sums,
              k.streams.residuals, k.streams.states, k.streams.gates, k.streams.outputs);
  bbs::WordStream& outputs = bbs::is_cell(c) ? k.streams.gates : k.streams.outputs;
  for (size_t i = 0; i < expected.size(); i++)
    TB_EXPECT(outputs.read(), expected[i], "flags %u, %d passes: output word %zu", c.flags, passes,
              i);
  for (size_t i = 0; i < states.size(); i++)
    TB_EXPECT(k.streams.states.read(), states[i], "flags %u: state word %zu", c.flags, i);
  TB_EXPECT(tb::drained(k.streams.visits), true, "flags %u: visits left over", c.flags);
  TB_EXPECT(tb::drained(k.streams.row_words), true, "flags %u: row parameters left over", c.flags);
  TB_EXPECT(tb::drained(k.streams.sums), true, "flags %u: sums left over", c.flags);
  TB_EXPECT(tb::drained(k.streams.residuals), true, "flags %u: residuals left over", c.flags);
  TB_EXPECT(tb::drained(k.streams.states), true, "flags %u: state words too many", c.flags);
  TB_EXPECT(tb::drained(k.streams.gates), true, "flags %u: gates too many", c.flags);
  TB_EXPECT(tb::drained(k.streams.outputs), true, "flags %u: output words too many", c.flags);
  return (int64_t)expected.size();
}

// A row group's parameters are left in its last cycle and read in its first one, a tile later.
void rows_in_time() {
  const int distance = (int)bbs::kTileCycles - (bbs::kRows - 1);
  TB_EXPECT(distance >= bbs::kReuseDistance, true, "parameters read after %d", distance);
}

}  // namespace

int main() {
  const uint32_t table = bbs::kFlagTable, residual = bbs::kFlagResidual;
  const uint32_t lstm = bbs::kFlagLstm, gru = bbs::kFlagGru, state_in = bbs::kFlagStateIn;
  tb::Random random(5);
  rows_in_time();
  int64_t count = 0;
  for (int i = 0; i < tb::cases(500); i++)
    for (const uint32_t flags : {0u, table, residual, table | residual,
                                 residual | bbs::kFlagProduct, (uint32_t)bbs::kFlagSumsOut,
                                 lstm | table, gru | table | state_in})
      if (!(flags & ~bbs::kBuiltFlags)) count += run(random, flags);
  return tb::finish("finish_tb", count, "output words");
}
