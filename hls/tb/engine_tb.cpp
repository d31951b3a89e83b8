// SPDX-License-Identifier: Apache-2.0
// The whole engine: programs of layers of every kind against the definition, refusals in the
// middle, registers.
#include "programs.hpp"

namespace {

void expect_registers(const tb::Registers& r, uint32_t status, uint32_t completed,
                      const char* name) {
  TB_EXPECT(r.status, status, "%s: status", name);
  TB_EXPECT(r.completed, completed, "%s: completed", name);
  TB_EXPECT(r.version, bbs::kVersion, "%s: version", name);
  TB_EXPECT(r.lanes, bbs::kLanes, "%s: lanes", name);
  TB_EXPECT(r.rows, bbs::kRows, "%s: rows", name);
  TB_EXPECT(r.cols, bbs::kCols, "%s: cols", name);
  TB_EXPECT(r.requant_units, bbs::kRequantUnits, "%s: requant_units", name);
  TB_EXPECT(r.taps, bbs::kTaps, "%s: taps", name);
  TB_EXPECT(r.vector_words, bbs::kVectorWords, "%s: vector_words", name);
  TB_EXPECT(r.block_words, bbs::kBlockWords, "%s: block_words", name);
  TB_EXPECT(r.queue_words, bbs::kQueueWords, "%s: queue_words", name);
  TB_EXPECT(r.block_rows, bbs::kBlockRows, "%s: block_rows", name);
  TB_EXPECT(r.sum_words, bbs::kSumWords, "%s: sum_words", name);
  TB_EXPECT(r.image_words, bbs::kImageWords, "%s: image_words", name);
  TB_EXPECT(r.chain_words, bbs::kChainWords, "%s: chain_words", name);
  TB_EXPECT(r.fabric_lanes, bbs::kFabricLanes, "%s: fabric_lanes", name);
  TB_EXPECT(r.index_bits, bbs::kIndexBits, "%s: index_bits", name);
  TB_EXPECT(r.cell_words, bbs::kCellWords, "%s: cell_words", name);
}

// What the programs were made of: a kind that never came up would prove nothing.
struct Kinds {
  int64_t flags[32] = {};
  int64_t layers = 0, rings = 0, depthwise = 0, passes = 0, strides[5] = {};
  int64_t continued = 0, narrow = 0, staying = 0;

  void count(const bbs::Command& c) {
    layers++;
    for (int bit = 0; bit < 32; bit++) flags[bit] += c.flags >> bit & 1;
    passes += tb::pass_count(c) > 1;
    staying += tb::weights_stay(c);
    narrow += c.bank_size < bbs::kPack;
    continued += tb::of_cell(c) && !tb::has(c, bbs::kFlagStateZero | bbs::kFlagStateIn);
    if (!tb::has(c, bbs::kFlagImage)) return;
    rings += c.image_words < tb::whole_image_words(c);
    depthwise += c.keep == 1 && c.bank_size >= c.part_channels && c.channels > 1;
    if (c.stride_x < 5) strides[c.stride_x]++;
  }
  void expect_all(int64_t least) const {
    for (int bit = 0; 1u << bit <= bbs::kFlagStateOut; bit++) {
      if (!(bbs::kBuiltFlags >> bit & 1)) continue;
      if (bbs::kCellWords == 0 && 1u << bit >= bbs::kFlagLstm) continue;
      if (1u << bit == bbs::kFlagProduct && !(bbs::kBuiltFlags & bbs::kFlagResidual)) continue;
      TB_EXPECT(flags[bit] >= least, true, "%" PRId64 " layers with flag %d", flags[bit], bit);
    }
    TB_EXPECT(passes >= least, true, "%" PRId64 " layers of several passes", passes);
    TB_EXPECT(staying >= least, true, "%" PRId64 " layers whose block stays", staying);
    if (bbs::kCellWords > 0)
      TB_EXPECT(continued >= least, true, "%" PRId64 " cells that go on", continued);
    if (bbs::kPack > 1) TB_EXPECT(narrow >= least, true, "%" PRId64 " narrow banks", narrow);
    if (bbs::kImageWords == 0) return;
    TB_EXPECT(rings >= least, true, "%" PRId64 " images larger than their ring", rings);
    TB_EXPECT(depthwise >= least, true, "%" PRId64 " depthwise layers", depthwise);
    for (int s = 1; s < 5; s++)
      TB_EXPECT(strides[s] >= least, true, "%" PRId64 " images of stride %d", strides[s], s);
  }
};

// Runs a program in one start, or in several where the chain is empty between them.
void run_program(tb::Random& random, tb::Program& program, const char* name) {
  const uint32_t count = (uint32_t)program.commands.size();
  const bool at_once = random.once_in(2);
  uint32_t done = 0;
  for (uint32_t i = 0; i < count; i++) {
    if (i + 1 < count && (at_once || !program.may_stop_after(i))) continue;
    const uint32_t first = program.first_command + done * bbs::kCommandWords;
    expect_registers(program.run(first, i + 1 - done), bbs::kStatusOk, i + 1 - done, name);
    done = i + 1;
  }
  program.expect_outputs(name);
}

int64_t programs(tb::Random& random) {
  Kinds kinds;
  const int count = tb::cases(600);
  for (int i = 0; i < count; i++) {
    tb::Program program = tb::random_program(random, {24, 6, 500}, random.between(1, 5));
    for (const bbs::Command& c : program.commands) kinds.count(c);
    run_program(random, program, "program");
    if (i % 16) continue;
    run_program(random, program, "the same again");
  }
  kinds.expect_all(count / 50);
  return kinds.layers;
}

// More features than the vector buffer holds, more rows than the row buffer.
int64_t large(tb::Random& random) {
  const int count = tb::kShare == 1 ? 6 : 2;
  for (int i = 0; i < count; i++) {
    const tb::Limits limits = {i % 2 ? 30 : bbs::kBlockRows + 70, 5, 1 << 20};
    const uint32_t features = i % 2 ? 2 * bbs::kVectorWords * bbs::kLanes + 8 * i : 40;
    tb::Program program(random);
    program.add(tb::random_layer(random, tb::random_linear(random, limits, 5, features)));
    program.close();
    run_program(random, program, "large");
  }
  return count;
}

// A bad command in the middle: those before it ran, it is named, and the next start works.
void refusal(tb::Random& random) {
  tb::Program program(random);
  for (int i = 0; i < 4; i++)
    program.add(tb::random_layer(random, tb::random_command(random, {12, 3, 100})));
  program.close();
  const uint32_t first = program.first_command;
  expect_registers(program.run(first, 0), bbs::kStatusOk, 0, "zero commands");
  expect_registers(program.run(UINT32_MAX, 0), bbs::kStatusOk, 0, "zero commands, nowhere");
  const uint32_t words = (uint32_t)program.memory().size();
  expect_registers(program.run(words - 7, 1), bbs::kStatusOutOfMemoryRange, 0, "cut command");
  expect_registers(program.run(first, 5), bbs::kStatusOutOfMemoryRange, 4, "command past the end");
  expect_registers(program.run(UINT32_MAX, 2), bbs::kStatusOutOfMemoryRange, 0, "offset wraps");
  uint64_t& spoiled = program.memory()[first + 3 * bbs::kCommandWords - 1];
  const uint64_t signature = spoiled;
  spoiled = 0;
  uint64_t& untouched = program.memory()[program.commands[3].output];
  untouched = 42;
  expect_registers(program.run(first, 4), bbs::kStatusBadSignature, 2, "refusal");
  TB_EXPECT(untouched, 42, "nothing runs behind a refused command");
  spoiled = signature;
  expect_registers(program.run(first + 2 * bbs::kCommandWords, 2), bbs::kStatusOk, 2,
                   "next start");
  program.expect_outputs("after a refusal");
}

// A dense layer of one tile with every column, and no more than its flags say.
bbs::Command dense(bbs::Command c, uint32_t flags) {
  c.flags = bbs::kFlagDense | flags;
  c.keep = c.bank_size, c.index_bits = 0;
  c.output_stride = c.rows, c.last_columns = bbs::kCols, c.tiles_per_block = 1;
  tb::fit_loops(c);
  return c;
}

// What a run leaves in the chain is gone when the next one starts.
void chain_between_runs(tb::Random& random) {
  tb::Program program(random);
  const bbs::Command c =
      dense(tb::random_linear(random, {8, 1, 8}, 1, 8), bbs::kFlagToChain);
  program.add(tb::random_layer(random, c));
  bbs::Command next = tb::random_linear(random, {8, 1, 8}, 1, c.rows);
  next.bank_size = bbs::kPack * tb::quotient_up(c.rows, bbs::kPack * bbs::kLanes);
  next.groups_per_pass = 1;
  next = dense(next, bbs::kFlagFromChain | bbs::kFlagToMemory);
  program.add(tb::random_layer(random, next));
  program.close();
  const uint32_t second = program.first_command + bbs::kCommandWords;
  expect_registers(program.run(program.first_command, 1), bbs::kStatusOk, 1, "to the chain");
  expect_registers(program.run(second, 1), bbs::kStatusChainOverflow, 0, "from an empty chain");
  expect_registers(program.run(program.first_command, 2), bbs::kStatusOk, 2, "both");
  program.expect_outputs("through the chain");
}

}  // namespace

int main() {
  tb::Random random(14);
  int64_t count = programs(random) + large(random);
  for (int i = 0; i < 20; i++) refusal(random);
  for (int i = 0; i < 20; i++) chain_between_runs(random);
  return tb::finish("engine_tb", count, "layers");
}
