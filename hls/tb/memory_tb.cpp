// SPDX-License-Identifier: Apache-2.0
// Bursts from and to memory: each word once, in order, nothing beside them; commands among
// residuals; outputs to the chain, to memory, or to both.
#include "memory.hpp"

#include "commands.hpp"

namespace {

constexpr uint32_t kWords = 500;

// Bursts anywhere in the memory, empty ones among them; they overlap where `disjoint` is false.
std::vector<bbs::Burst> random_bursts(tb::Random& random, bool disjoint, uint32_t unit) {
  std::vector<bbs::Burst> bursts;
  const int count = random.between(1, 12);
  uint32_t at = 0;
  for (int i = 0; i < count; i++) {
    bbs::Burst burst = bbs::no_burst();
    burst.times = random.once_in(8) ? 0 : random.between(1, 4);
    burst.count = random.once_in(4) ? 0 : unit * random.between(0, 10);
    burst.step = burst.count + random.between(0, 3);
    if (!disjoint && random.once_in(4)) burst.step = random.between(0, 20);
    const uint32_t span = burst.times > 0 ? (burst.times - 1) * burst.step + burst.count : 0;
    burst.offset = disjoint ? at + random.between(0, 5) : random.between(0, kWords - span);
    burst.final = i + 1 == count;
    at = burst.offset + span;
    bursts.push_back(burst);
  }
  return bursts;
}

int64_t run_fetch(tb::Random& random) {
  tb::Words memory(kWords);
  for (uint64_t& word : memory) word = random.bits();
  bbs::BurstStream bursts("bursts");
  bbs::WordStream words("words");
  const std::vector<bbs::Burst> wanted = random_bursts(random, false, 1);
  for (const bbs::Burst& burst : wanted) bursts.write(burst);
  bbs::fetch(memory.data(), bursts, words);
  int64_t count = 0;
  for (const bbs::Burst& burst : wanted)
    for (uint32_t t = 0; t < burst.times; t++)
      for (uint32_t i = 0; i < burst.count; i++, count++)
        TB_EXPECT(words.read(), memory[burst.offset + t * burst.step + i], "fetched word %u",
                  burst.offset + t * burst.step + i);
  TB_EXPECT(tb::drained(bursts), true, "bursts left over after fetch");
  TB_EXPECT(tb::drained(words), true, "fetched words too many");
  return count;
}

// Commands come between bursts of residuals, to a stream of their own.
int64_t run_fetch_residuals(tb::Random& random) {
  tb::Words memory(kWords);
  for (uint64_t& word : memory) word = random.bits();
  bbs::BurstStream bursts("bursts");
  bbs::WordStream words("words");
  bbs::CommandStream command("command");
  const std::vector<bbs::Burst> wanted = random_bursts(random, false, 1);
  const size_t before = random.between(0, (int)wanted.size() - 1);
  bbs::Burst next = bbs::no_burst();
  next.offset = random.between(0, kWords - bbs::kCommandWords);
  next.command = true;
  for (size_t i = 0; i < wanted.size(); i++) {
    if (i == before) bursts.write(next);
    bursts.write(wanted[i]);
  }
  bbs::fetch_residuals(memory.data(), bursts, words, command);
  for (uint32_t i = 0; i < bbs::kCommandWords; i++)
    TB_EXPECT(command.read(), memory[next.offset + i], "command word %u", i);
  int64_t count = bbs::kCommandWords;
  for (const bbs::Burst& burst : wanted)
    for (uint32_t t = 0; t < burst.times; t++)
      for (uint32_t i = 0; i < burst.count; i++, count++)
        TB_EXPECT(words.read(), memory[burst.offset + t * burst.step + i], "residual word %u",
                  burst.offset + t * burst.step + i);
  TB_EXPECT(tb::drained(bursts), true, "bursts left over after residuals");
  TB_EXPECT(tb::drained(words), true, "residual words too many");
  TB_EXPECT(tb::drained(command), true, "command words too many");
  return count;
}

int64_t run_deliver(tb::Random& random) {
  tb::Words memory(kWords * 4);
  for (uint64_t& word : memory) word = random.bits();
  tb::Words expected = memory, sent;
  bbs::Command c = {};
  const uint32_t places[] = {bbs::kFlagToMemory, bbs::kFlagToChain,
                             bbs::kFlagToMemory | bbs::kFlagToChain};
  c.flags = places[random.between(0, 2)];
  if (random.once_in(2)) c.flags |= bbs::kFlagLstm;  // hidden values are delivered
  const bool to_chain = tb::has(c, bbs::kFlagToChain);
  bbs::BurstStream bursts("bursts");
  bbs::WordStream outputs("outputs"), hidden("hidden");
  bbs::WordStream& words = bbs::is_cell(c) ? hidden : outputs;
  bbs::ChainStream chain("chain");
  bbs::Shape s = {};
  s.last_words = bbs::kPortWords;
  if (tb::has(c, bbs::kFlagToMemory)) {
    for (const bbs::Burst& burst : random_bursts(random, true, to_chain ? bbs::kPortWords : 1)) {
      bursts.write(burst);
      for (uint32_t t = 0; t < burst.times; t++) {
        for (uint32_t i = 0; i < burst.count; i++) {
          sent.push_back(random.bits());
          words.write(sent.back());
          expected[burst.offset + t * burst.step + i] = sent.back();
        }
      }
    }
    s.links = random.between(0, 9);  // whatever it is
  } else {
    s.links = random.between(0, 40);
    s.last_links = random.between(0, (int)s.links);
    s.last_words = random.between(1, bbs::kPortWords);
    for (uint32_t i = 0; i < s.links; i++) {
      const uint32_t count = i + s.last_links < s.links ? bbs::kPortWords : s.last_words;
      for (uint32_t k = 0; k < bbs::kPortWords; k++) {
        sent.push_back(k < count ? random.bits() : 0);  // what does not come is 0
        if (k < count) words.write(sent.back());
      }
    }
  }
  bbs::DeliverCommandStream commands("commands");
  tb::tell(commands, bbs::deliver_command(c, s));
  bbs::deliver(commands, memory.data(), bursts, outputs, hidden, chain);
  for (size_t i = 0; i < memory.size(); i++) TB_EXPECT(memory[i], expected[i], "word %zu", i);
  for (size_t i = 0; to_chain && i < sent.size(); i += bbs::kPortWords) {
    const bbs::ActWord word = chain.read();
    for (int b = 0; b < bbs::kWordActs; b++)
      TB_EXPECT(word.v[b], (int8_t)(uint8_t)(sent[i + b / 8] >> (8 * (b % 8))),
                "byte %d of word %zu of the chain", b, i);
  }
  TB_EXPECT(tb::drained(bursts), true, "bursts left over after deliver");
  TB_EXPECT(tb::drained(words), true, "words left over after deliver");
  TB_EXPECT(tb::drained(chain), true, "chain words too many");
  return (int64_t)sent.size();
}

}  // namespace

int main() {
  tb::Random random(6);
  int64_t count = 0;
  for (int i = 0; i < tb::cases(10000); i++)
    count += run_fetch(random) + run_fetch_residuals(random) + run_deliver(random);
  return tb::finish("memory_tb", count, "words");
}
