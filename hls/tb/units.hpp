// SPDX-License-Identifier: Apache-2.0
// Units of LSTM and GRU by the words of docs/recurrent.md, in floating point that is exact here.
#pragma once

#include <cmath>

#include "check.hpp"

namespace tb {

// What a unit's gates and state become; every quotient is exact in a double.
struct Result {
  int32_t hidden;
  int32_t state;
};

inline double limited(double value, double largest) {
  return value > largest ? largest : value < -largest - 1 ? -largest - 1 : value;
}

inline double tanh_knot(int k) { return std::fmin(32767, std::rint(32768 * std::tanh(k / 32.0))); }

inline double tanh_line(double x) {
  const double size = std::fmin(std::fabs(x), 16383);
  const int k = (int)(size / 64);
  const double rise = (tanh_knot(k + 1) - tanh_knot(k)) * (size - 64 * k);
  return std::copysign(tanh_knot(k) + std::floor((rise + 32) / 64), x);
}

inline double level(int8_t q) { return q == 127 ? 256 : q + 128; }

inline Result lstm(const int8_t gates[4], int32_t state) {
  const double kept = level(gates[2]) * state;
  const double acc = kept + 16 * level(gates[0]) * (level(gates[3]) - 128);
  const double after = limited(std::rint(acc / 256), 32767);
  const double hidden = limited(std::rint(level(gates[1]) * tanh_line(after) / 65536), 127);
  return {(int32_t)hidden, (int32_t)after};
}

inline Result gru(const int8_t gates[4], int32_t state, uint32_t shift) {
  const double acc = 256.0 * gates[2] + level(gates[1]) * gates[3];
  const double n = tanh_line(limited(std::rint(std::ldexp(acc, -(int)shift)), 32767));
  const double after = n + std::rint(level(gates[0]) * (state - n) / 256);
  return {(int32_t)limited(std::rint(after / 256), 127), (int32_t)after};
}

inline Result unit(const bbs::Command& c, const int8_t gates[4], int32_t state) {
  return bbs::has(c, bbs::kFlagLstm) ? lstm(gates, state) : gru(gates, state, c.shift);
}

}  // namespace tb
