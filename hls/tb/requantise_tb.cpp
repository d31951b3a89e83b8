// SPDX-License-Identifier: Apache-2.0
// Rounding on the bits against the library's rint, saturation, tables, residuals, sums and states
// passed through, gates, columns that do not count.
#include "requantise.hpp"

#include <cmath>

#include "commands.hpp"

namespace {

// Nearest, ties to even, clamped to what round_half_even promises.
int32_t reference(float value) {
  const float rounded = std::rint(value);  // the default rounding mode
  return (int32_t)(rounded > 512 ? 512 : rounded < -512 ? -512 : rounded);
}

void expect_rounded(uint32_t bits) {
  const float value = bbs::float_of_bits(bits);
  TB_EXPECT(bbs::round_half_even(value), reference(value), "round_half_even of %a", value);
  TB_EXPECT(bbs::round_half_even(-value), reference(-value), "round_half_even of %a", -value);
}

// Every float from a quarter to 1024, where all that rounding decides is decided; samples of
// every exponent beyond, zero, subnormals and infinity among them. Both signs.
int64_t rounding() {
  tb::Random random(7);
  int64_t count = 0;
  for (uint32_t exponent = 0; exponent < 255; exponent++) {
    const bool all = exponent >= 125 && exponent < 137;
    const uint32_t step = all ? tb::kShare * tb::kCases : 4093 * tb::kShare;
    for (uint32_t mantissa = 0; mantissa < (1u << 23); mantissa += step, count++)
      expect_rounded(exponent << 23 | mantissa);
    for (uint32_t bit = 0; bit < 23; bit++, count += 3) {  // around every power of two: ties
      const uint32_t bits = exponent << 23 | 1u << bit;
      expect_rounded(bits - 1);
      expect_rounded(bits);
      expect_rounded(bits + 1);
    }
    expect_rounded(exponent << 23 | 0x7fffff);
  }
  expect_rounded(0x7f800000);
  for (int i = 0; i < tb::cases(4000000); i++, count++) {
    const uint32_t bits = (uint32_t)random.bits() & 0x7fffffff;
    if (bits <= 0x7f800000) expect_rounded(bits);  // multipliers are finite: no NaN comes here
  }
  return 2 * count;
}

// Every half from -600.5 to 600.5 made by a sum and a power of two, every zero point.
int64_t ties() {
  int64_t count = 0;
  for (int shift = 1; shift < 20; shift += 3)
    for (int odd = -1201; odd <= 1201; odd += 2)
      for (int zero_point = -128; zero_point < 128; zero_point += tb::kShare, count++) {
        const int32_t sum = odd * (1 << (shift - 1));
        const float m = std::ldexp(1.0f, -shift);
        TB_EXPECT(bbs::requantise_one(sum, m, zero_point), tb::requantised(sum, m, zero_point),
                  "sum %d, multiplier %a, zero point %d", sum, m, zero_point);
      }
  return count;
}

int64_t random_sums() {
  tb::Random random(8);
  const int count = tb::cases(8000000);
  for (int i = 0; i < count; i++) {
    const int32_t sum = (int32_t)(uint32_t)(random.bits() >> 32) >> random.between(0, 31);
    // Any finite positive multiplier, or one whose products fall in and around the range.
    const uint32_t bits = random.between(1, 0x7f7fffff);
    const float near = (float)random.between(1, 1 << 20) / (1 + std::fabs((float)sum)) / 1024;
    const float m = random.once_in(2) ? bbs::float_of_bits(bits) : near;
    const int zero_point = random.byte();
    TB_EXPECT(bbs::requantise_one(sum, m, zero_point), tb::requantised(sum, m, zero_point),
              "sum %d, multiplier %a, zero point %d", sum, m, zero_point);
  }
  return count;
}

// The whole stage: bytes, bytes through a table, combined with a residual, sums.
int64_t stage(tb::Random& random, uint32_t flags) {
  bbs::Command c = tb::random_matrix(random, {20, 1, 1}, 256);
  flags &= bbs::kBuiltFlags;
  c.flags = flags;
  c.rows = tb::round_up(c.rows, tb::row_step(c));
  c.tiles = random.between(1, 4);
  c.tiles_per_block = c.groups = c.groups_per_pass = 1;
  c.rows_per_block = bbs::kRows;
  c.last_columns = random.between(1, bbs::kCols);
  // Where nothing goes to memory, words of columns that do not count are left out.
  if (tb::has(c, bbs::kFlagSumsOut) || random.once_in(2)) c.flags |= bbs::kFlagToMemory;
  tb::set_quotients(c);
  bbs::TableStream table_words("table_words");
  bbs::TotalStream totals("totals");
  bbs::WordStream residuals("residuals"), states("states");
  bbs::WordStream gates("gates"), outputs("outputs");
  const std::vector<int8_t> table = tb::random_bytes(random, bbs::kTableEntries);
  const tb::Tensor b = tb::random_tensor(random, c.tiles, c.rows);
  tb::Words words, residual_words;
  tb::append_bytes(words, table);
  tb::append_bytes(residual_words, b.bytes);
  if (tb::has(c, bbs::kFlagTable))
    for (const uint64_t word : words) table_words.write(word);
  if (tb::has(c, bbs::kFlagResidual))
    for (const uint64_t word : residual_words) residuals.write(word);
  // States come before anything else, for the stage behind this one.
  tb::Words state_words(tb::has(c, bbs::kFlagStateIn) ? c.state_words = random.between(0, 9) : 0);
  for (uint64_t& word : state_words) residuals.write(word = random.bits());
  std::vector<int8_t> expected;
  for (uint32_t i = 0; i < c.rows / bbs::kRows * c.tiles; i++) {
    bbs::TotalWord total;
    total.last_tile = i / (c.rows / bbs::kRows) + 1 == c.tiles;
    for (uint32_t& m : total.multiplier)
      m = bbs::bits_of_float((float)random.between(1, 1000) / 100000);
    for (uint32_t place = 0; place < bbs::kWide; place++) {
      int32_t& sum = total.v[place];
      const bool counts = !total.last_tile || place % bbs::kCols < c.last_columns;
      sum = random.between(-30000, 30000);
      if (flags & bbs::kFlagSumsOut) {
        sum = (int32_t)(uint32_t)random.bits();
        for (int byte = 0; byte < 4; byte++)
          expected.push_back((int8_t)(uint8_t)(counts ? (uint32_t)sum >> (8 * byte) : 0));
        continue;
      }
      const float m = bbs::float_of_bits(total.multiplier[place / bbs::kCols]);
      int8_t y = tb::requantised(sum, m, c.zero_point);
      const uint32_t row = i % (c.rows / bbs::kRows) * bbs::kRows + place / bbs::kCols;
      const bool skips = (flags & bbs::kFlagGru) && row % 4 >= 2;
      if ((flags & bbs::kFlagTable) && !skips) y = table[y + 128];
      if (flags & bbs::kFlagResidual) y = tb::combined(c, y, b.bytes[expected.size()]);
      const uint32_t words = (c.last_columns + 7) / 8;
      const bool wanted = !bbs::leaves_out(c) || bbs::kCols < 8 || !total.last_tile ||
                          place % bbs::kCols < words * 8;
      if (wanted) expected.push_back(counts ? y : 0);
    }
    totals.write(total);
  }
  const bbs::Shape s = bbs::derive_shape(c, bbs::amounts_of(c));
  bbs::requantise(c, s, table_words, totals, residuals, states, gates, outputs);
  tb::Words expected_words;
  tb::append_bytes(expected_words, expected);
  for (size_t i = 0; i < expected_words.size(); i++)
    TB_EXPECT((bbs::is_cell(c) ? gates : outputs).read(), expected_words[i],
              "flags %u: output word %zu", flags, i);
  for (size_t i = 0; i < state_words.size(); i++)
    TB_EXPECT(states.read(), state_words[i], "flags %u: state word %zu", flags, i);
  TB_EXPECT(tb::drained(states), true, "flags %u: state words too many", flags);
  TB_EXPECT(tb::drained(table_words), true, "flags %u: table words left over", flags);
  TB_EXPECT(tb::drained(totals), true, "flags %u: totals left over", flags);
  TB_EXPECT(tb::drained(residuals), true, "flags %u: residual words left over", flags);
  TB_EXPECT(tb::drained(gates), true, "flags %u: gates too many", flags);
  TB_EXPECT(tb::drained(outputs), true, "flags %u: output words too many", flags);
  return (int64_t)expected_words.size();
}

}  // namespace

int main() {
  const uint32_t table = bbs::kFlagTable, residual = bbs::kFlagResidual;
  const uint32_t lstm = bbs::kFlagLstm, gru = bbs::kFlagGru, state_in = bbs::kFlagStateIn;
  tb::Random random(9);
  int64_t count = rounding() + ties() + random_sums();
  for (int i = 0; i < tb::cases(1000); i++)
    for (const uint32_t flags : {0u, table, residual, table | residual,
                                 residual | bbs::kFlagProduct, (uint32_t)bbs::kFlagSumsOut,
                                 lstm | table, gru | table | state_in})
      if (!(flags & ~bbs::kBuiltFlags)) count += stage(random, flags);
  return tb::finish("requantise_tb", count, "values");
}
