// SPDX-License-Identifier: Apache-2.0
// Two products in one DSP: the packed form against plain products.
#include "mul_pair.hpp"

#include <algorithm>
#include <vector>

#include "testbench.hpp"

namespace {

constexpr int kExtremes[] = {-128, -127, -1, 0, 1, 126, 127};

// Compares one packed pair sum; the six operands in the order of pair_sums_packed.
inline void expect_pair(int w0, int w1, int a0, int a1, int b0, int b1) {
  const bbs::PairSums s = bbs::pair_sums_packed(w0, w1, a0, a1, b0, b1);
  if (s.low == a0 * w0 + b0 * w1 - 1 && s.high == a1 * w0 + b1 * w1 - 1) return;
  tb::differs(s.low, a0 * w0 + b0 * w1 - 1, "low: w %d %d a %d %d b %d %d", w0, w1, a0, a1, b0, b1);
  tb::differs(s.high, a1 * w0 + b1 * w1 - 1, "high: w %d %d a %d %d b %d %d", w0, w1, a0, a1, b0,
              b1);
}

// Every weight with every pair of activations.
int64_t single_products() {
  int64_t count = 0;
  for (int w = -128; w < 128; w++)
    for (int high = -128; high < 128; high += tb::kShare)
      for (int low = -128; low < 128; low++, count++) expect_pair(w, 0, low, high, 0, 0);
  return count;
}

// Every pair of weights with every low activation of one lane, extremes elsewhere.
int64_t weight_pairs() {
  int64_t count = 0;
  for (int w0 = -128; w0 < 128; w0++)
    for (int w1 = -128; w1 < 128; w1 += tb::kShare)
      for (int a0 = -128; a0 < 128; a0++)
        for (const int b0 : {-128, 0, 127})
          for (int high = 0; high < 4; high++, count++)
            expect_pair(w0, w1, a0, high & 1 ? 127 : -128, b0, high & 2 ? 127 : -128);
  return count;
}

struct Product {
  int value, weight, activation;
};

// Every value that a product takes, with one pair of operands for each.
std::vector<Product> products() {
  std::vector<bool> seen(1 << 16);
  std::vector<Product> found;
  for (int w = -128; w < 128; w++) {
    for (int a = -128; a < 128; a++) {
      if (seen[w * a + (1 << 15)]) continue;
      seen[w * a + (1 << 15)] = true;
      found.push_back({w * a, w, a});
    }
  }
  return found;
}

// Every low sum there is, with extremes and a sample of high sums. P depends on the low and the
// high sum only, so one set of operands stands for all that give the same low sum.
int64_t low_sums() {
  tb::Random random(1);
  std::vector<char> seen(1 << 17);
  int64_t count = 0;
  int lowest = 0, highest = 0;
  const std::vector<Product> all = products();
  for (const Product& a : all) {
    for (const Product& b : all) {
      const int low = a.value + b.value;
      if (seen[low + (1 << 16)]) continue;
      seen[low + (1 << 16)] = 1;
      lowest = std::min(lowest, low);
      highest = std::max(highest, low);
      for (const int a1 : kExtremes)
        for (const int b1 : kExtremes)
          expect_pair(a.weight, b.weight, a.activation, a1, b.activation, b1);
      for (int i = 0; i < 64; i++)
        expect_pair(a.weight, b.weight, a.activation, random.byte(), b.activation,
                    random.byte());
      count++;
    }
  }
  TB_EXPECT(lowest, -2 * 128 * 127, "lowest sum of two products");
  TB_EXPECT(highest, 2 * 128 * 128, "highest sum of two products");
  return count;
}

// The form of LUTs: 16 bits hold every sum, and its rows are all of the product but what is owed.
int64_t fabric() {
  int64_t count = 0;
  for (int w0 = -128; w0 < 128; w0++)
    for (int a = -128; a < 128; a++)
      for (int w1 = -128; w1 < 128; w1 += tb::kShare)
        for (const int b : kExtremes) {
          const int want = a * w0 + b * w1 - (int)bbs::pair_owed<bbs::Place::kFabric>(w0, w1);
          const int got = bbs::pair_sum_fabric((int8_t)w0, (int8_t)w1, (int8_t)a, (int8_t)b);
          if (got != want) tb::differs(got, want, "fabric: w %d %d a %d b %d", w0, w1, a, b);
          count++;
        }
  return count;
}

// What the emulator runs is what synthesis builds, in DSPs and in LUTs.
int64_t plain_form() {
  tb::Random random(2);
  const int count = 100000 / tb::kShare;
  for (int i = 0; i < count; i++) {
    bbs::ActWord a, b;
    for (int c = 0; c < bbs::kCols; c++) {
      a.v[c] = random.once_in(4) ? -128 : random.byte();
      b.v[c] = random.once_in(4) ? -128 : random.byte();
    }
    const int8_t w0 = random.once_in(4) ? -128 : random.byte();
    const int8_t w1 = random.once_in(4) ? -128 : random.byte();
    int16_t sums[bbs::kCols], fabric_sums[bbs::kCols];
    bbs::pair_sums<bbs::Place::kDsp>(w0, w1, a.v, b.v, sums);
    bbs::pair_sums<bbs::Place::kFabric>(w0, w1, a.v, b.v, fabric_sums);
    for (int c = 0; c < bbs::kCols; c++) {
      const int even = c & ~1, odd = std::min(c | 1, bbs::kCols - 1);
      const bbs::PairSums s =
          bbs::pair_sums_packed(w0, w1, (int8_t)a.v[even], (int8_t)a.v[odd], (int8_t)b.v[even],
                                (int8_t)b.v[odd]);
      const int packed = c & 1 ? s.high : s.low;
      TB_EXPECT(sums[c], packed, "plain form, weights %d %d, column %d", w0, w1, c);
      TB_EXPECT(fabric_sums[c], bbs::pair_sum_fabric(w0, w1, (int8_t)a.v[c], (int8_t)b.v[c]),
                "plain form in LUTs, weights %d %d, column %d", w0, w1, c);
    }
  }
  return count;
}

}  // namespace

int main() {
  // The port of a DSP48E1: what is packed must fit 25 bits.
  TB_EXPECT((-128 * (1 << 16) - 128) >> 24, -1, "lowest packed operand");
  TB_EXPECT((127 * (1 << 16) + 127) >> 24, 0, "highest packed operand");
  const int64_t sums = low_sums();
  const int64_t count = single_products() + weight_pairs() + fabric() + plain_form();
  std::printf("mul_pair_tb: %" PRId64 " low sums\n", sums);
  return tb::finish("mul_pair_tb", count, "operands");
}
