// SPDX-License-Identifier: Apache-2.0
// What the vector buffer holds before it is filled must never count. Compiled once with every
// variable starting as zero and once with every variable starting as a pattern: the first line
// printed must not differ, the second must, or nothing was poisoned.
#include "memory_block.hpp"

namespace {

// A layer alone, with the features that a group of every pass lacks.
tb::Chain padded_layer(tb::Random& random, bool read_padding) {
  bbs::Command c = tb::random_command(random, 12, 3, 4);
  if (c.features % (bbs::kLanes * c.bank_size) == 0) c.features--;
  c.flags = bbs::kFlagSumsOut | (c.flags & bbs::kFlagDense);
  tb::Layer layer = tb::random_layer(random, c);
  tb::Chain chain(tb::random_bytes(random, (size_t)c.tiles * c.features * bbs::kCols));
  // Padding with a weight: what no packer writes. The expected outputs leave it out.
  if (read_padding) std::replace(layer.weights.begin(), layer.weights.end(), 0, 1);
  chain.add(layer);
  chain.close();
  return chain;
}

uint64_t digest(tb::Chain& chain) {
  uint64_t sum = 0xcbf29ce484222325u;  // FNV-1a, by words
  const tb::Registers r = chain.run(chain.first_command, 1);
  TB_EXPECT(r.status, bbs::kStatusOk, "status");
  for (const uint64_t word : chain.memory()) sum = (sum ^ word) * 0x100000001b3u;
  return sum;
}

}  // namespace

int main() {
  tb::Random random(16);
  uint64_t honest = 0, probed = 0;
  const int count = 200;
  for (int i = 0; i < count; i++) {
    tb::Chain chain = padded_layer(random, false);
    honest ^= digest(chain) + i;
    chain.expect_outputs("padded layer");
    tb::Chain probe = padded_layer(random, true);
    probed ^= digest(probe) + i;
  }
  std::printf("outputs %016" PRIx64 "\nprobe %016" PRIx64 "\n", honest, probed);
  return tb::finish("poison_tb", count, "layers");
}
