// SPDX-License-Identifier: Apache-2.0
// What every testbench needs: seeded randomness, checks that say what differed, an exit code.
#pragma once

#include <cinttypes>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "dataflow.hpp"

namespace tb {

// Sanitised runs do a share of the work: they look for wrong accesses, not for wrong numbers.
#ifdef BBS_TB_QUICK
constexpr int kShare = 16;
#else
constexpr int kShare = 1;
#endif

// Builds that are made for the tests alone get a share of what the others do.
#ifdef BBS_TB_CASES
constexpr int kCases = BBS_TB_CASES;
#else
constexpr int kCases = 1;
#endif

// How many of `count` cases are run.
constexpr int cases(int count) { return count / (kShare * kCases) + 1; }

// splitmix64: the same numbers everywhere, which the distributions of <random> do not promise.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t bits() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  // Both ends included.
  int32_t between(int64_t lowest, int64_t highest) {
    return (int32_t)(lowest + (int64_t)(bits() % (uint64_t)(highest - lowest + 1)));
  }
  bool once_in(int times) { return bits() % (uint64_t)times == 0; }
  int8_t byte() { return (int8_t)between(-128, 127); }

 private:
  uint64_t state_;
};

inline int& failures() {
  static int count = 0;
  return count;
}

// Prints the first few differences and counts them all.
__attribute__((format(printf, 3, 4))) inline void differs(int64_t got, int64_t want,
                                                          const char* format, ...) {
  if (failures()++ >= 10) return;
  std::va_list arguments;
  va_start(arguments, format);
  std::vprintf(format, arguments);
  va_end(arguments);
  std::printf(": got %" PRId64 ", want %" PRId64 "\n", got, want);
}

// A macro, so that what describes the place is only worked out where something differs.
#define TB_EXPECT(got, want, ...)                                                \
  do {                                                                           \
    const int64_t tb_got = (int64_t)(got);                                       \
    const int64_t tb_want = (int64_t)(want);                                     \
    if (tb_got != tb_want) tb::differs(tb_got, tb_want, __VA_ARGS__);            \
  } while (false)

template <typename T, int kDepth>
bool drained(bbs::Stream<T, kDepth>& stream) {
  return stream.empty();
}

// What main() returns.
inline int finish(const char* name, int64_t checked, const char* unit) {
  if (failures() == 0)
    std::printf("%s: %" PRId64 " %s, all as wanted\n", name, checked, unit);
  else
    std::printf("%s: %d differences\n", name, failures());
  return failures() == 0 ? 0 : 1;
}

}  // namespace tb
