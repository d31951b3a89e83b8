// SPDX-License-Identifier: Apache-2.0
// Rounding on the bits against the library's rint, and saturation.
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

}  // namespace

int main() { return tb::finish("requantise_tb", rounding() + ties() + random_sums(), "values"); }
