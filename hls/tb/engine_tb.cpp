// SPDX-License-Identifier: Apache-2.0
// The whole engine: chains of layers against the definition, refusals in the middle, registers.
#include "memory_block.hpp"

namespace {

// A chain of layers of any kind; the bytes of one are the features of the next.
tb::Chain random_chain(tb::Random& random, int layers) {
  bbs::Command c = tb::random_command(random, 24, 5, 5);
  const uint32_t tiles = c.tiles;
  tb::Chain chain(tb::random_bytes(random, (size_t)tiles * c.features * bbs::kCols));
  for (int i = 0; i < layers; i++) {
    chain.add(tb::random_layer(random, c));
    const uint32_t features = c.flags & bbs::kFlagSumsOut ? 4 * c.rows : c.rows;
    c = tb::random_command(random, 40, 1, 1);
    c.tiles = tiles;
    c.features = features;
    tb::cut_loops(random, c);
  }
  chain.close();
  return chain;
}

void expect_registers(const tb::Registers& r, uint32_t status, uint32_t completed,
                      const char* name) {
  TB_EXPECT(r.status, status, "%s: status", name);
  TB_EXPECT(r.completed, completed, "%s: completed", name);
  TB_EXPECT(r.version, bbs::kVersion, "%s: version", name);
  TB_EXPECT(r.lanes, bbs::kLanes, "%s: lanes", name);
  TB_EXPECT(r.cols, bbs::kCols, "%s: cols", name);
  TB_EXPECT(r.requant_units, bbs::kRequantUnits, "%s: requant_units", name);
  TB_EXPECT(r.vector_words, bbs::kVectorWords, "%s: vector_words", name);
  TB_EXPECT(r.block_words, bbs::kBlockWords, "%s: block_words", name);
  TB_EXPECT(r.block_rows, bbs::kBlockRows, "%s: block_rows", name);
  TB_EXPECT(r.sum_words, bbs::kSumWords, "%s: sum_words", name);
}

int64_t chains(tb::Random& random) {
  const int count = 300 / tb::kShare;
  for (int i = 0; i < count; i++) {
    const int layers = random.between(1, 4);
    tb::Chain chain = random_chain(random, layers);
    const tb::Words before = chain.memory();
    expect_registers(chain.run(chain.first_command, layers), bbs::kStatusOk, layers, "chain");
    chain.expect_outputs("chain");
    // Nothing but the outputs has changed.
    for (size_t at = 0; at < before.size(); at++) {
      bool output = false;
      for (const bbs::Command& c : chain.commands())
        output |= at >= c.output && at - c.output < tb::plane_sizes(c)[1];
      if (!output) TB_EXPECT(chain.memory()[at], before[at], "word %zu is no output", at);
    }
  }
  return count;
}

// Features beyond one pass and tiles beyond one group, at sizes the random ones do not reach.
int64_t large(tb::Random& random) {
  int64_t count = 0;
  for (const uint32_t kind : {0u, (uint32_t)bbs::kFlagTable, (uint32_t)bbs::kFlagSumsOut}) {
    for (const uint32_t bank_size : {16u, 64u, 256u}) {
      bbs::Command c = tb::random_command(random, 1, 1, 1);
      c.flags = kind;
      c.bank_size = bank_size;
      c.keep = bank_size / 8;
      c.index_bits = bank_size == 16 ? 4 : bank_size == 64 ? 6 : 8;
      c.features = 2 * bbs::kVectorWords * bbs::kLanes + 777 + bank_size;
      c.rows = 30;
      c.tiles = 5;
      tb::cut_loops(random, c);
      tb::Chain chain(tb::random_bytes(random, (size_t)c.tiles * c.features * bbs::kCols));
      chain.add(tb::random_layer(random, c));
      chain.close();
      expect_registers(chain.run(chain.first_command, 1), bbs::kStatusOk, 1, "large");
      chain.expect_outputs("large");
      count++;
    }
  }
  return count;
}

// A bad command in the middle: those before it ran, it is named, and the next start works.
void refusal(tb::Random& random) {
  tb::Chain chain = random_chain(random, 4);
  const uint32_t first = chain.first_command;
  expect_registers(chain.run(first, 0), bbs::kStatusOk, 0, "zero commands");
  expect_registers(chain.run(UINT32_MAX, 0), bbs::kStatusOk, 0, "zero commands, nowhere");
  const uint32_t words = (uint32_t)chain.memory().size();
  expect_registers(chain.run(words - 7, 1), bbs::kStatusOutOfMemoryRange, 0, "cut command");
  expect_registers(chain.run(first, 5), bbs::kStatusOutOfMemoryRange, 4, "command past the end");
  expect_registers(chain.run(UINT32_MAX, 2), bbs::kStatusOutOfMemoryRange, 0, "offset wraps");
  uint64_t& spoiled = chain.memory()[first + 2 * bbs::kCommandWords + 7];
  const uint64_t signature = spoiled;
  spoiled = 0;
  const bbs::Command& last = chain.commands()[3];
  std::fill_n(&chain.memory()[last.output], tb::plane_sizes(last)[1], 42);
  expect_registers(chain.run(first, 4), bbs::kStatusBadSignature, 2, "refusal");
  TB_EXPECT(chain.memory()[last.output], 42, "nothing runs behind a refused command");
  spoiled = signature;
  expect_registers(chain.run(first + 2 * bbs::kCommandWords, 2), bbs::kStatusOk, 2, "next start");
  chain.expect_outputs("after a refusal");
}

}  // namespace

int main() {
  tb::Random random(14);
  int64_t count = chains(random) + large(random);
  for (int i = 0; i < 20; i++, count++) refusal(random);
  return tb::finish("engine_tb", count, "chains");
}
