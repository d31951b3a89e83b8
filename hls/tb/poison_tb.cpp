// SPDX-License-Identifier: Apache-2.0
// What the vector buffer holds before it is filled must never count. Compiled once with every
// variable starting as zero and once with every variable starting as a pattern: the first line
// printed must not differ, the second must, or nothing was poisoned.
#include "memory_block.hpp"

namespace {

// A layer alone, with the features that a group of every pass lacks, or channels that a bank does.
tb::Program padded_layer(tb::Random& random, bool read_padding) {
  bbs::Command c = tb::random_command(random, {12, 3, 300});
  if (!tb::has(c, bbs::kFlagImage) && c.features % (bbs::kLanes * c.bank_size) == 0 &&
      c.features > bbs::kPack)
    c.features -= bbs::kPack;
  c.flags = bbs::kFlagToMemory | bbs::kFlagSumsOut |
            (c.flags & (bbs::kFlagDense | bbs::kFlagImage | bbs::kFlagMaximum));
  c.output_stride = std::max(c.output_stride, c.rows);  // of a cell it may be less
  c.last_columns = std::max(c.last_columns, 1u);
  tb::fit_loops(c);
  tb::Layer layer = tb::random_layer(random, c);
  tb::Program program(random);
  // Padding with a weight: what no packer writes. The expected outputs leave it out.
  if (read_padding) std::replace(layer.weights.begin(), layer.weights.end(), 0, 1);
  program.add(layer);
  program.close();
  return program;
}

uint64_t digest(tb::Program& program) {
  uint64_t sum = 0xcbf29ce484222325u;  // FNV-1a, by words
  const tb::Registers r = program.run(program.first_command, 1);
  TB_EXPECT(r.status, bbs::kStatusOk, "status");
  for (const uint64_t word : program.memory()) sum = (sum ^ word) * 0x100000001b3u;
  return sum;
}

}  // namespace

int main() {
  tb::Random random(16);
  uint64_t honest = 0, probed = 0;
  const int count = 200;
  for (int i = 0; i < count; i++) {
    tb::Program program = padded_layer(random, false);
    honest ^= digest(program) + i;
    program.expect_outputs("padded layer");
    tb::Program probe = padded_layer(random, true);
    probed ^= digest(probe) + i;
  }
  std::printf("outputs %016" PRIx64 "\nprobe %016" PRIx64 "\n", honest, probed);
  return tb::finish("poison_tb", count, "layers");
}
