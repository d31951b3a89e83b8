// SPDX-License-Identifier: Apache-2.0
// Bursts from and to memory: each word once, in order, nothing beside them.
#include "memory.hpp"

#include "layer.hpp"

namespace {

constexpr uint32_t kWords = 500;

// Bursts anywhere in the memory, empty ones among them; they overlap where `disjoint` is false.
std::vector<bbs::Burst> random_bursts(tb::Random& random, bool disjoint) {
  std::vector<bbs::Burst> bursts;
  const int count = random.between(1, 12);
  uint32_t at = 0;
  for (int i = 0; i < count; i++) {
    bbs::Burst burst;
    burst.offset = disjoint ? at + random.between(0, 5) : random.between(0, kWords);
    const uint32_t most = disjoint ? 30 : kWords - burst.offset;
    burst.count = random.once_in(4) ? 0 : random.between(0, std::min<int>(most, 100));
    burst.final = i + 1 == count;
    at = burst.offset + burst.count;
    bursts.push_back(burst);
  }
  return bursts;
}

int64_t run_fetch(tb::Random& random) {
  tb::Words memory(kWords);
  for (uint64_t& word : memory) word = random.bits();
  bbs::BurstStream bursts("bursts");
  bbs::WordStream words("words");
  const std::vector<bbs::Burst> wanted = random_bursts(random, false);
  for (const bbs::Burst& burst : wanted) bursts.write(burst);
  bbs::fetch(memory.data(), bursts, words);
  int64_t count = 0;
  for (const bbs::Burst& burst : wanted)
    for (uint32_t i = 0; i < burst.count; i++, count++)
      TB_EXPECT(words.read(), memory[burst.offset + i], "fetched word %u", burst.offset + i);
  TB_EXPECT(tb::drained(bursts), true, "bursts left over after fetch");
  TB_EXPECT(tb::drained(words), true, "fetched words too many");
  return count;
}

int64_t run_store(tb::Random& random) {
  tb::Words memory(kWords);
  for (uint64_t& word : memory) word = random.bits();
  tb::Words expected = memory;
  bbs::BurstStream bursts("bursts");
  bbs::WordStream words("words");
  int64_t count = 0;
  for (const bbs::Burst& burst : random_bursts(random, true)) {
    bursts.write(burst);
    for (uint32_t i = 0; i < burst.count; i++, count++) {
      expected[burst.offset + i] = random.bits();
      words.write(expected[burst.offset + i]);
    }
  }
  bbs::store(memory.data(), bursts, words);
  for (uint32_t i = 0; i < kWords; i++) TB_EXPECT(memory[i], expected[i], "stored word %u", i);
  TB_EXPECT(tb::drained(bursts), true, "bursts left over after store");
  TB_EXPECT(tb::drained(words), true, "words left over after store");
  return count;
}

}  // namespace

int main() {
  tb::Random random(6);
  int64_t count = 0;
  for (int i = 0; i < 20000 / tb::kShare; i++) count += run_fetch(random) + run_store(random);
  return tb::finish("memory_tb", count, "words");
}
