// SPDX-License-Identifier: Apache-2.0
// The region as hardware runs it: every process at once (BBS_THREADED), every stream as deep as
// it is built. Results equal the definition, no stream blocks; prints how full each one got.
#ifndef BBS_THREADED
#error "compile with -DBBS_THREADED"
#endif

#include "memory_block.hpp"

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

const Case kCases[] = {
    {"dense", bbs::kFlagDense, 2 * 16 * kRow, 40, 2, 16, 16, 0, 2, 2, 20},
    {"sparse, one tile", 0, 4 * 32 * kRow - 3, 60, 1, 32, 4, 6, 4, 1, 60},
    {"sparse, tile groups", 0, 2 * 32 * kRow - 77, 30, 7, 32, 4, 6, 2, 3, 16},
    {"long block of one tile", 0, 4 * 8 * kRow, 400, 1, 8, 2, 4, 4, 1, bbs::kBlockRows},
    {"table", bbs::kFlagTable, 3 * 16 * kRow, 33, 3, 16, 2, 4, 3, 2, 10},
    {"passes", bbs::kFlagTable, 5 * 16 * kRow - 9, 24, 4, 16, 4, 8, 2, 2, 10},
    {"sums", bbs::kFlagSumsOut, 2 * 16 * kRow, 25, 3, 16, 4, 4, 2, 3, 25},
    {"sums of passes", bbs::kFlagSumsOut | bbs::kFlagDense, 7 * 4 * kRow, 19, 5, 4, 4, 0, 2, 4, 7},
    {"many tiles a block", 0, 2 * kRow, 12, 50, 2, 1, 4, 1, 40, 5},
    {"shortest rows", 0, 1, 70, 33, 2, 1, 4, 1, 32, 1},
    {"whole vector buffer", 0, kHalf * kRow, 9, 2, 64, 3, 6, kHalf / 64, 2, 9},
    {"single tiles of many blocks", 0, 64 * kRow, 90, 3, 64, 8, 6, 1, 1, 3},
};

bbs::Command command_of(const Case& k) {
  bbs::Command c = {};
  c.op = bbs::kOpLinear;
  c.signature = bbs::kSignature;
  c.flags = k.flags;
  c.features = k.features;
  c.rows = k.rows;
  c.tiles = k.tiles;
  c.bank_size = k.bank_size;
  c.keep = k.keep;
  c.index_bits = k.index_bits;
  c.zero_point = 3;
  c.groups_per_pass = k.groups_per_pass;
  c.tiles_per_block = k.tiles_per_block;
  c.rows_per_block = k.rows_per_block;
  tb::fit_loops(c);
  return c;
}

int64_t run(tb::Random& random, const char* name, const bbs::Command& c) {
  tb::Chain chain(tb::random_bytes(random, (size_t)c.tiles * c.features * bbs::kCols));
  chain.add(tb::random_layer(random, c));
  chain.close();
  const tb::Registers r = chain.run(chain.first_command, 1);
  TB_EXPECT(r.status, bbs::kStatusOk, "%s: status", name);
  std::string& blocked = bbs::Watchdog::instance().blocked;
  if (!blocked.empty()) {
    std::printf("%s: blocked: %s\n", name, blocked.c_str());
    tb::failures()++;
    blocked.clear();
  }
  chain.expect_outputs(name);
  return 1;
}

}  // namespace

int main() {
  bbs::Watchdog::instance().patience = std::chrono::seconds(30);  // machines differ
  tb::Random random(15);
  int64_t count = 0;
  for (const Case& k : kCases) count += run(random, k.name, command_of(k));
  for (int i = 0; i < 40 / tb::kShare; i++)
    count += run(random, "random", tb::random_command(random, 20, 5, 3));
  for (const auto& mark : bbs::Watchdog::instance().high_water)
    std::printf("stream %s %d of %d\n", mark.first.c_str(), mark.second.first,
                mark.second.second);
  return tb::finish("threaded_tb", count, "commands");
}
