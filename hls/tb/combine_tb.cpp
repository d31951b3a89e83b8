// SPDX-License-Identifier: Apache-2.0
// Sums and products of two bytes in fixed point against the definition in whole numbers: ties,
// extremes, every shift.
#include "combine.hpp"

#include "commands.hpp"

namespace {

// The nearest whole number to value / 2^shift, ties to even, by quotient and remainder.
__extension__ typedef __int128 wide_t;

wide_t nearest(wide_t value, uint32_t shift) {
  const wide_t one = (wide_t)1 << shift;
  const wide_t rest = ((value % one) + one) % one;
  const wide_t floor = (value - rest) / one;
  const bool odd = (floor % 2 + 2) % 2 == 1;
  return floor + (2 * rest > one || (2 * rest == one && odd) ? 1 : 0);
}

int64_t clamped(wide_t value, int64_t low, int64_t high) {
  return (int64_t)(value > high ? high : value < low ? low : value);
}

int8_t definition(const bbs::Command& c, int8_t a, int8_t b) {
  const wide_t from_a = a - c.a_zero, from_b = b - c.b_zero;
  const wide_t acc = c.flags & bbs::kFlagProduct ? c.a_scale * from_a * from_b
                                                 : c.a_scale * from_a + c.b_scale * from_b;
  return (int8_t)clamped(nearest(acc, c.shift) + c.out_zero, c.low, c.high);
}

void expect_one(const bbs::Command& c, int8_t a, int8_t b) {
  TB_EXPECT(bbs::combine_one(bbs::finish_command(c, {}), a, b), definition(c, a, b),
            "%s of %d and %d, scales %d %d, zeros %d %d %d, shift %u, %d to %d",
            c.flags & bbs::kFlagProduct ? "product" : "sum", a, b, c.a_scale, c.b_scale, c.a_zero,
            c.b_zero, c.out_zero, c.shift, c.low, c.high);
}

bbs::Command plain(uint32_t flags) {
  bbs::Command c = {};
  c.flags = bbs::kFlagResidual | flags;
  c.low = -128, c.high = 127;
  return c;
}

// Every pair of bytes at scales whose results have many ties.
int64_t every_pair() {
  int64_t count = 0;
  for (const uint32_t flags : {0u, (uint32_t)bbs::kFlagProduct}) {
    for (const int scale : {1, 3, -1, 5}) {
      bbs::Command c = plain(flags);
      c.a_scale = scale, c.b_scale = -1, c.shift = flags ? 8 : 2;
      c.a_zero = 7, c.b_zero = -9, c.out_zero = 3;
      for (int a = -128; a < 128; a++)
        for (int b = -128; b < 128; b += tb::kShare, count++)
          expect_one(c, (int8_t)a, (int8_t)b);
    }
  }
  return count;
}

// The largest factors there are, at every shift.
int64_t extremes() {
  int64_t count = 0;
  const int scales[] = {-(1 << 23), -(1 << 23) + 1, -1, 0, 1, (1 << 23) - 1};
  const int bytes[] = {-128, 0, 127};
  for (const uint32_t flags : {0u, (uint32_t)bbs::kFlagProduct}) {
    for (uint32_t shift = 0; shift < 48; shift++) {
      for (int i = 0; i < 6 * 6 * 3 * 3 * 3 * 3 * 3; i += tb::kShare, count++) {
        int rest = i;
        const auto digit = [&](int base) {
          const int d = rest % base;
          rest /= base;
          return d;
        };
        bbs::Command c = plain(flags);
        c.shift = shift;
        c.a_scale = scales[digit(6)], c.b_scale = scales[digit(6)];
        c.a_zero = bytes[digit(3)], c.b_zero = bytes[digit(3)], c.out_zero = bytes[digit(3)];
        const int a = bytes[digit(3)], b = bytes[digit(3)];
        expect_one(c, (int8_t)a, (int8_t)b);
      }
    }
  }
  return count;
}

// Sums and exact halves around them.
int64_t ties(tb::Random& random) {
  const int count = tb::cases(200000);
  for (int i = 0; i < count; i++) {
    const uint32_t shift = random.between(0, 47);
    const int64_t whole = random.between(-600, 600);
    const int64_t half = shift > 0 ? (int64_t)1 << (shift - 1) : 0;
    const int64_t value = whole * ((int64_t)1 << shift) + half + random.between(-1, 1);
    TB_EXPECT(bbs::round_shifted(value, shift), clamped(nearest(value, shift), -65536, 65535),
              "%" PRId64 " shifted by %u", value, shift);
  }
  return count;
}

int64_t random_commands(tb::Random& random) {
  const int count = tb::cases(500000);
  for (int i = 0; i < count; i++) {
    bbs::Command c = plain(random.once_in(2) ? (uint32_t)bbs::kFlagProduct : 0u);
    c.a_scale = random.between(-(1 << 23), (1 << 23) - 1) >> random.between(0, 22);
    c.b_scale = random.between(-(1 << 23), (1 << 23) - 1) >> random.between(0, 22);
    c.shift = random.between(0, 47);
    c.a_zero = random.byte(), c.b_zero = random.byte(), c.out_zero = random.byte();
    c.low = random.byte(), c.high = random.between(c.low, 127);
    expect_one(c, random.byte(), random.byte());
  }
  return count;
}

}  // namespace

int main() {
  tb::Random random(20);
  const int64_t count = every_pair() + extremes() + ties(random) + random_commands(random);
  return tb::finish("combine_tb", count, "bytes");
}
