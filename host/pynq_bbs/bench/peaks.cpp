// SPDX-License-Identifier: Apache-2.0
// What this processor reaches at most: bytes read from memory and INT8 products, by plain loops that
// the compiler turns into its best instructions. Each worker has operands of its own.

#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

constexpr size_t kDepth = 2048;  // values of a dot product: nine rows of INT16 fit a first-level cache
constexpr size_t kRows = 4;

template <typename Work>
void in_parallel(int threads, Work work) {
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back(work, t);
  work(0);
  for (std::thread& other : others) other.join();
}

// Four dot products with one operand in common, so that loads are not what limits them.
template <typename A, typename B>
int32_t dot_products(const A* x, const B* w) {
  int32_t sums[kRows] = {};
  for (size_t i = 0; i < kDepth; ++i) {
    for (size_t r = 0; r < kRows; ++r) sums[r] += int32_t(x[i]) * w[r * kDepth + i];
  }
  return sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
}

template <typename A, typename B>
int64_t products(size_t repeats, int threads) {
  std::vector<int64_t> results(size_t(threads) * 16);  // a cache line and more apart
  in_parallel(threads, [&](int t) {
    std::vector<A> x(kDepth, A(t + 1));
    std::vector<B> w(kRows * kDepth, B(3));
    int64_t result = 0;
    for (size_t n = 0; n < repeats; ++n) {
      x[n % kDepth] = A(n & 63);  // so that no repeat is the one before it
      result += dot_products(x.data(), w.data());
    }
    results[size_t(t) * 16] = result;
  });
  return results[0];
}

}  // namespace

// Products of a repeat and thread.
extern "C" size_t bbs_peak_products() { return kDepth * kRows; }

// The sum of `words`, each read once.
extern "C" uint64_t bbs_peak_read(const uint64_t* words, size_t count, int threads) {
  std::vector<uint64_t> sums(size_t(threads) * 16);
  in_parallel(threads, [&](int t) {
    const size_t first = count * size_t(t) / size_t(threads);
    const size_t end = count * size_t(t + 1) / size_t(threads);
    uint64_t sum = 0;
    for (size_t i = first; i < end; ++i) sum += words[i];
    sums[size_t(t) * 16] = sum;
  });
  uint64_t sum = 0;
  for (size_t t = 0; t < size_t(threads); ++t) sum += sums[t * 16];
  return sum;
}

extern "C" int64_t bbs_peak_int16(size_t repeats, int threads) {
  return products<int16_t, int16_t>(repeats, threads);
}

// Processors have dot products of INT8 with one operand unsigned (x86) or none (arm).
extern "C" int64_t bbs_peak_uint8(size_t repeats, int threads) {
  return products<uint8_t, int8_t>(repeats, threads);
}

extern "C" int64_t bbs_peak_int8(size_t repeats, int threads) {
  return products<int8_t, int8_t>(repeats, threads);
}
