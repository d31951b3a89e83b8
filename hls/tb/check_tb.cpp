// SPDX-License-Identifier: Apache-2.0
// Commands decode as they were encoded, every status is reached, and a good command passes in a
// memory of just its size and in none smaller.
#include "layer.hpp"

namespace {

using bbs::Command;
using Change = void (*)(Command&);

// A good command that one change spoils.
Command good_command() {
  Command c = {};
  c.op = bbs::kOpLinear, c.signature = bbs::kSignature;
  c.bank_size = 16, c.keep = 4, c.index_bits = 4;
  c.features = 3 * 16 * bbs::kLanes - 5, c.groups = 3, c.rows = 6, c.tiles = 3;
  c.groups_per_pass = 2, c.rows_per_block = 4, c.tiles_per_block = 2;
  return c;
}

const struct {
  const char* what;
  bbs::Status wanted;
  Change change;
} kSpoiled[] = {
    {"nothing", bbs::kStatusOk, [](Command&) {}},
    {"signature", bbs::kStatusBadSignature, [](Command& c) { c.signature++; }},
    {"op", bbs::kStatusBadOp, [](Command& c) { c.op = 2; }},
    {"unknown flag", bbs::kStatusBadOp, [](Command& c) { c.flags = 16; }},
    {"table and sums", bbs::kStatusBadOp, [](Command& c) { c.flags = 6; }},
    {"bank size 1", bbs::kStatusBadBank, [](Command& c) { c.bank_size = c.keep = 1; }},
    {"bank size 257", bbs::kStatusBadBank, [](Command& c) { c.bank_size = 257; }},
    {"keep 0", bbs::kStatusBadBank, [](Command& c) { c.keep = 0; }},
    {"keep beyond bank", bbs::kStatusBadBank, [](Command& c) { c.keep = 17; }},
    {"index bits 5", bbs::kStatusBadBank, [](Command& c) { c.index_bits = 5; }},
    {"index bits too few", bbs::kStatusBadBank, [](Command& c) { c.bank_size = 17; }},
    {"dense with indices", bbs::kStatusBadBank, [](Command& c) { c.flags = 1, c.keep = 16; }},
    {"dense that skips", bbs::kStatusBadBank, [](Command& c) { c.flags = 1, c.index_bits = 0; }},
    {"no features", bbs::kStatusBadShape, [](Command& c) { c.features = 0; }},
    {"no rows", bbs::kStatusBadShape, [](Command& c) { c.rows = 0; }},
    {"no tiles", bbs::kStatusBadShape, [](Command& c) { c.tiles = 0; }},
    {"empty tile group", bbs::kStatusBadShape, [](Command& c) { c.tiles_per_block = 0; }},
    {"empty block", bbs::kStatusBadShape, [](Command& c) { c.rows_per_block = 0; }},
    {"empty pass", bbs::kStatusBadShape, [](Command& c) { c.groups_per_pass = 0; }},
    {"pass too long", bbs::kStatusBadShape, [](Command& c) { c.groups_per_pass = 4; }},
    {"groups", bbs::kStatusBadShape, [](Command& c) { c.groups = 4; }},
    {"vector buffer", bbs::kStatusVectorOverflow,
     [](Command& c) { c.tiles_per_block = bbs::kVectorWords / 32 + 1; }},
    {"block buffer", bbs::kStatusBlockOverflow,
     [](Command& c) { c.rows_per_block = bbs::kBlockWords / 8 + 1; }},
    {"row buffer", bbs::kStatusBlockOverflow,
     [](Command& c) { c.tiles_per_block = 1, c.rows_per_block = bbs::kBlockRows + 1; }},
    {"sum buffer", bbs::kStatusSumOverflow,
     [](Command& c) {
       c.bank_size = 2, c.keep = 1;
       c.groups = bbs::divide_up(c.features, 2 * bbs::kLanes);
       c.groups_per_pass = c.groups / 2;
       c.tiles_per_block = std::min(bbs::kVectorWords / (2 * c.groups_per_pass), 255u);
       c.rows_per_block = bbs::kSumWords / c.tiles_per_block + 1;
     }},
};

void every_status() {
  for (const auto& spoiled : kSpoiled) {
    Command c = good_command();
    spoiled.change(c);
    bbs::Shape s;
    TB_EXPECT(bbs::check_command(c, UINT32_MAX, s), spoiled.wanted, "status with %s spoiled",
              spoiled.what);
  }
  for (size_t plane = 0; plane < 6; plane++) {
    Command c = good_command();
    bbs::Shape s;
    c.flags = bbs::kFlagTable;
    *tb::plane_offsets(c)[plane] = UINT32_MAX;
    TB_EXPECT(bbs::check_command(c, 1u << 20, s), bbs::kStatusOutOfMemoryRange,
              "status with plane %zu far away", plane);
  }
}

void same_after_encoding(tb::Random& random) {
  uint64_t words[bbs::kCommandWords], again[bbs::kCommandWords];
  for (uint64_t& word : words) word = random.bits();
  tb::encode_command(bbs::decode_command(words), again);
  // Only the bits of fields are kept.
  const uint64_t claimed[] = {~0ull, ~0ull, ~0ull, 0x00ffffffffffffffu, 0xffffffff00ffffffu,
                              0xffffffffff3fffffu, 0xffffu, 0xffffffff00000000u};
  for (int i = 0; i < bbs::kCommandWords; i++)
    TB_EXPECT(again[i], words[i] & claimed[i], "word %d, decoded and encoded", i);
}

void memory_of_its_size(tb::Random& random) {
  Command c = tb::random_command(random, 1 << 14, 1 << 8, 64);
  const std::vector<uint64_t> sizes = tb::plane_sizes(c);
  uint64_t end = 0;
  for (size_t i = 0; i < sizes.size(); i++) {
    *tb::plane_offsets(c)[i] = sizes[i] ? random.between(0, 1 << 20) : 0;
    end = std::max(end, *tb::plane_offsets(c)[i] + sizes[i]);
  }
  bbs::Shape s;
  TB_EXPECT(bbs::check_command(c, (uint32_t)end, s), bbs::kStatusOk, "status with just enough");
  TB_EXPECT(bbs::check_command(c, (uint32_t)end - 1, s), bbs::kStatusOutOfMemoryRange,
            "status with a word too few, at %u", (uint32_t)end);
}

uint32_t log_uniform(tb::Random& random) {
  return (uint32_t)random.between(1, 1 << random.between(0, 23));
}

// Fields as large as a command can hold: sizes beyond 32 bits are not taken for small ones.
int64_t sizes_beyond_memory(tb::Random& random) {
  Command c = good_command();
  c.bank_size = random.between(2, 16);
  c.keep = random.between(1, c.bank_size);
  c.rows = log_uniform(random), c.tiles = log_uniform(random);
  c.features = std::min(log_uniform(random), 0xffffu * bbs::kLanes * c.bank_size);
  c.groups = bbs::divide_up(c.features, bbs::kLanes * c.bank_size);
  c.groups_per_pass = std::min<uint32_t>(c.groups, bbs::kVectorWords / c.bank_size);
  c.tiles_per_block = c.rows_per_block = 1;
  const std::vector<uint64_t> sizes = tb::plane_sizes(c);
  const uint32_t words = (uint32_t)(random.bits() >> random.between(32, 40));
  uint64_t end = 0;
  for (size_t i = 0; i < sizes.size(); i++) {
    uint32_t& offset = *tb::plane_offsets(c)[i];
    offset = (uint32_t)(random.bits() >> random.between(32, 63));
    if (sizes[i] > 0) end = std::max(end, offset + sizes[i]);
  }
  bbs::Shape s;
  const bool fits = end <= words;
  const uint64_t passes = bbs::divide_up(c.groups, c.groups_per_pass);
  const bool countable = passes == 1 || (uint64_t)c.tiles * c.rows <= UINT32_MAX / passes;
  const bbs::Status wanted = !fits       ? bbs::kStatusOutOfMemoryRange
                             : countable ? bbs::kStatusOk
                                         : bbs::kStatusBadShape;
  TB_EXPECT(bbs::check_command(c, words, s), wanted, "planes end at %" PRIu64, end);
  return fits;
}

}  // namespace

int main() {
  tb::Random random(11);
  every_status();
  const int count = 200000 / tb::kShare;
  int64_t fitting = 0;
  for (int i = 0; i < count; i++) {
    same_after_encoding(random);
    memory_of_its_size(random);
    fitting += sizes_beyond_memory(random);
  }
  TB_EXPECT(fitting > count / 10 && fitting < count, true, "large planes that fit, and others");
  return tb::finish("check_tb", count, "commands");
}
