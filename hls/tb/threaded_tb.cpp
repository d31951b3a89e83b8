// SPDX-License-Identifier: Apache-2.0
// The region as hardware runs it: every process at once (BBS_THREADED), commands that overlap,
// every stream as deep as it is built. Results equal the definition, no stream blocks; prints how
// full each one got.
#ifndef BBS_THREADED
#error "compile with -DBBS_THREADED"
#endif

#include "programs.hpp"

// Longer than any machine takes for a step.
#ifndef BBS_TB_PATIENCE
#define BBS_TB_PATIENCE 30
#endif

namespace {

struct Case {
  const char* name;
  uint32_t flags;
  uint32_t features, rows, tiles;
  uint32_t bank_size, keep, index_bits;
  uint32_t groups_per_pass, tiles_per_block, rows_per_block;
};

constexpr uint32_t kRow = bbs::kLanes;  // features of a group, times the bank size
constexpr uint32_t kHalf = bbs::kVectorWords / 2;
constexpr uint32_t kStep = bbs::kRowStep;

const Case kCases[] = {
    {"dense", bbs::kFlagDense, 2 * 16 * kRow, 40, 2, 16, 16, 0, 2, 2, 20},
    {"sparse, one tile", 0, 4 * 16 * kRow - 3, 60, 1, 16, 2, 4, 4, 1, 60},
    {"sparse, tile groups", 0, 2 * 16 * kRow - 77, 30, 7, 16, 3, 6, 2, 3, 16},
    {"long block of one tile", 0, 4 * 8 * kRow, 400, 1, 8, 2, 4, 4, 1, bbs::kBlockRows},
    {"table", bbs::kFlagTable, 3 * 16 * kRow, 33, 3, 16, 2, 4, 3, 2, 10},
    {"passes", bbs::kFlagTable, 5 * 16 * kRow - 9, 24, 4, 16, 4, 8, 2, 2, 10},
    {"sums", bbs::kFlagSumsOut, 2 * 16 * kRow, 25, 3, 16, 4, 4, 2, 3, 25},
    {"sums of passes", bbs::kFlagSumsOut | bbs::kFlagDense, 7 * 8 * kRow, 19, 5, 8, 8, 0, 2, 4, 7},
    {"residual of many blocks", bbs::kFlagResidual, 2 * 8 * kRow, 90, 6, 8, 3, 4, 2, 3, kStep},
    {"maximum of passes", bbs::kFlagMaximum, 5 * 8 * kRow, 21, 3, 8, 3, 4, 1, 2, 9},
    {"many tiles a block", 0, 8 * kRow, 12, 50, 8, 1, 4, 1, 40, 5},
    {"shortest rows", 0, 8, 70, 33, 8, 1, 4, 1, 32, 1},
    {"whole vector buffer", 0, kHalf * kRow, 9, 2, 16, 3, 6, kHalf / 16, 2, 9},
    {"single tiles of many blocks", 0, 16 * kRow, 90, 3, 16, 8, 6, 1, 1, 3},
    {"many blocks of two groups of tiles", 0, 16 * kRow, 30 * kStep, 4, 16, 2, 4, 1, 2, kStep},
};

// Steps of one layer, one after the other; later ones go on with the states of the first.
const Case kSteps[] = {
    {"first step", bbs::kFlagLstm | bbs::kFlagTable | bbs::kFlagStateIn, 3 * 16 * kRow, 32, 3, 16,
     2, 4, 2, 2, 1},
    {"step of many blocks", bbs::kFlagLstm | bbs::kFlagTable, 2 * 8 * kRow, 32, 3, 8, 3, 4, 2, 1,
     1},
    {"last step", bbs::kFlagGru | bbs::kFlagStateOut, 2 * 8 * kRow, 32, 2, 8, 3, 4, 2, 2, 40},
};

bbs::Command command_of(const Case& k) {
  bbs::Command c = {};
  c.op = bbs::kOpMatrix;
  c.signature = bbs::kSignature;
  c.flags = (k.flags & bbs::kBuiltFlags) | bbs::kFlagToMemory;
  c.features = c.input_stride = tb::round_up(k.features, bbs::kPack);
  c.rows = tb::round_up(k.rows, tb::row_step(c));
  c.output_stride = tb::output_rows(c);
  c.tiles = k.tiles;
  c.last_columns = bbs::kCols;
  c.bank_size = k.bank_size;
  c.keep = k.keep;
  c.index_bits = k.index_bits;
  c.zero_point = 3;
  c.pace = 2;
  c.low = -128, c.high = 127;
  c.a_scale = 40000, c.b_scale = -30000, c.shift = 16;
  c.groups_per_pass = k.groups_per_pass;
  c.tiles_per_block = k.tiles_per_block;
  c.rows_per_block = k.rows_per_block;
  tb::fit_loops(c);
  return c;
}

// A convolution whose image comes round many times, with a block for every few rows.
bool large_image(tb::Random& random, uint32_t stride, bbs::Command& c) {
  for (int i = 0; i < 200; i++) {
    if (!tb::random_image(random, {40, 40, 300}, 32, 40, 5, c) || c.stride_x != stride) continue;
    c.rows_per_block = std::min<uint32_t>(c.rows_per_block, 2 * kStep);
    tb::set_quotients(c);
    return true;
  }
  return false;
}

void expect_run(tb::Program& program, uint32_t first, uint32_t count, uint32_t status,
                uint32_t completed, const char* name) {
  const tb::Registers r = program.run(first, count);
  TB_EXPECT(r.status, status, "%s: status", name);
  TB_EXPECT(r.completed, completed, "%s: completed", name);
  std::string& blocked = bbs::Watchdog::instance().blocked;
  if (!blocked.empty()) {
    std::printf("%s: blocked: %s\n", name, blocked.c_str());
    tb::failures()++;
    blocked.clear();
  }
}

int64_t run(tb::Program& program, const char* name) {
  program.close();
  const uint32_t count = (uint32_t)program.commands.size();
  expect_run(program, program.first_command, count, bbs::kStatusOk, count, name);
  program.expect_outputs(name);
  return count;
}

// A refused command behind two that still run: these are completed, and the rest runs in another
// start.
int64_t refusal(tb::Random& random) {
  tb::Program program(random);
  for (int i = 0; i < 4; i++)
    program.add(tb::random_layer(random, tb::random_command(random, {20, 5, 200})));
  program.close();
  const uint32_t first = program.first_command, words = bbs::kCommandWords;
  uint64_t& spoiled = program.memory()[first + 3 * words - 1];
  const uint64_t signature = spoiled;
  spoiled = 0;
  expect_run(program, first, 4, bbs::kStatusBadSignature, 2, "refusal");
  spoiled = signature;
  expect_run(program, first + 2 * words, 2, bbs::kStatusOk, 2, "behind a refusal");
  program.expect_outputs("after a refusal");
  return 4;
}

int64_t run_layer(tb::Random& random, const bbs::Command& c, const char* name) {
  tb::Program program(random);
  program.add(tb::random_layer(random, c));
  return run(program, name);
}

int64_t run_steps(tb::Random& random) {
  tb::Program program(random);
  for (const Case& k : kSteps) {
    bbs::Command c = command_of(k);
    c.shift = 2;
    c.state_words = tb::cell_size(c) / 2;
    program.add(tb::random_layer(random, c));
  }
  return run(program, "steps");
}

}  // namespace

int main() {
  bbs::Watchdog::instance().patience = std::chrono::seconds(BBS_TB_PATIENCE);  // machines differ
  tb::Random random(15);
  int64_t count = 0;
  for (const Case& k : kCases) count += run_layer(random, command_of(k), k.name);
  if (bbs::kCellWords > 0) count += run_steps(random);
  for (uint32_t stride = 1; stride < 5; stride++) {
    bbs::Command c;
    if (large_image(random, stride, c)) count += run_layer(random, c, "large image");
  }
  for (int i = 0; i < tb::cases(40); i++) {
    tb::Program program(random);
    for (int layers = random.between(1, 4); layers > 0; layers--)
      tb::add_random_layer(random, {20, 5, 200}, program);
    count += run(program, "program");
  }
  for (int i = 0; i < 3; i++) count += refusal(random);
  for (const auto& mark : bbs::Watchdog::instance().high_water)
    std::printf("stream %s %d of %d\n", mark.first.c_str(), mark.second.first,
                mark.second.second);
  return tb::finish("threaded_tb", count, "commands");
}
