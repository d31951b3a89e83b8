// SPDX-License-Identifier: Apache-2.0
// Commands decode as they were encoded, every status is reached, and a good command passes in a
// memory of just its size and in none smaller.
#include "commands.hpp"

namespace {

using bbs::Command;
using Change = void (*)(Command&);

// A good command that one change spoils.
Command good_command() {
  Command c = {};
  c.op = bbs::kOpMatrix, c.signature = bbs::kSignature, c.flags = bbs::kFlagToMemory;
  c.bank_size = 16, c.keep = 4, c.index_bits = 4;
  c.features = c.input_stride = 3 * 16 * bbs::kLanes - 8, c.groups = 3;
  c.rows = c.output_stride = 6 * bbs::kRowStep, c.tiles = 3;
  c.groups_per_pass = 2, c.rows_per_block = 4 * bbs::kRowStep, c.tiles_per_block = 2;
  c.pace = c.load_pace = 1, c.last_columns = bbs::kCols;
  tb::set_quotients(c);
  return c;
}

struct Spoiled {
  const char* what;
  bbs::Status wanted;
  Change change;
};

const Spoiled kSpoiled[] = {
    {"nothing", bbs::kStatusOk, [](Command&) {}},
    {"signature", bbs::kStatusBadSignature, [](Command& c) { c.signature++; }},
    {"op", bbs::kStatusBadOp, [](Command& c) { c.op = 2; }},
    {"unknown flag", bbs::kStatusBadOp, [](Command& c) { c.flags |= 2u * bbs::kFlagFollows; }},
    {"no output", bbs::kStatusBadOp, [](Command& c) { c.flags = 0; }},
    {"table and sums", bbs::kStatusBadOp,
     [](Command& c) { c.flags |= bbs::kFlagTable | bbs::kFlagSumsOut; }},
    {"sums to the chain", bbs::kStatusBadOp,
     [](Command& c) { c.flags |= bbs::kFlagSumsOut | bbs::kFlagToChain; }},
    {"sums and residual", bbs::kStatusBadOp,
     [](Command& c) { c.flags |= bbs::kFlagSumsOut | bbs::kFlagResidual; }},
    {"product without residual", bbs::kStatusBadOp,
     [](Command& c) { c.flags |= bbs::kFlagProduct; }},
    {"shift", bbs::kStatusBadOp, [](Command& c) { c.flags |= bbs::kFlagResidual, c.shift = 48; }},
    {"two inputs", bbs::kStatusBadOp,
     [](Command& c) {
       c.flags |= bbs::kFlagFromChain | bbs::kFlagResidentInput;
     }},
    {"resident features", bbs::kStatusBadOp,
     [](Command& c) { c.flags |= bbs::kFlagResidentInput; }},
    {"weights kept and resident", bbs::kStatusBadOp,
     [](Command& c) { c.flags |= bbs::kFlagKeepWeights | bbs::kFlagResidentWeights; }},
    {"bank size 0", bbs::kStatusBadBank, [](Command& c) { c.bank_size = 0; }},
    {"bank size 257", bbs::kStatusBadBank, [](Command& c) { c.bank_size = 257; }},
    {"bank beyond the build's index", bbs::kStatusBadBank,
     [](Command& c) { c.bank_size = (1 << bbs::kIndexBits) + 8, c.index_bits = 8; }},
    {"keep 0", bbs::kStatusBadBank, [](Command& c) { c.keep = 0; }},
    {"keep beyond bank", bbs::kStatusBadBank, [](Command& c) { c.keep = 17; }},
    {"index bits 5", bbs::kStatusBadBank, [](Command& c) { c.index_bits = 5; }},
    {"index bits too few", bbs::kStatusBadBank, [](Command& c) { c.bank_size = 24; }},
    {"dense with indices", bbs::kStatusBadBank,
     [](Command& c) { c.flags |= bbs::kFlagDense, c.keep = 16; }},
    {"dense that skips", bbs::kStatusBadBank,
     [](Command& c) { c.flags |= bbs::kFlagDense, c.index_bits = 0; }},
    {"no features", bbs::kStatusBadShape, [](Command& c) { c.features = 0; }},
    {"no rows", bbs::kStatusBadShape, [](Command& c) { c.rows = 0; }},
    {"no tiles", bbs::kStatusBadShape, [](Command& c) { c.tiles = 0; }},
    {"empty tile group", bbs::kStatusBadShape, [](Command& c) { c.tiles_per_block = 0; }},
    {"empty block", bbs::kStatusBadShape, [](Command& c) { c.rows_per_block = 0; }},
    {"empty pass", bbs::kStatusBadShape, [](Command& c) { c.groups_per_pass = 0; }},
    {"pass too long", bbs::kStatusBadShape, [](Command& c) { c.groups_per_pass = 4; }},
    {"groups", bbs::kStatusBadShape, [](Command& c) { c.groups = 4; }},
    {"no parts", bbs::kStatusBadShape, [](Command& c) { c.parts = 0; }},
    {"parts of features", bbs::kStatusBadShape, [](Command& c) { c.parts = 2, c.part_rows /= 2; }},
    {"pace", bbs::kStatusBadShape, [](Command& c) { c.pace = 0; }},
    {"no last column", bbs::kStatusBadShape, [](Command& c) { c.last_columns = 0; }},
    {"columns too many", bbs::kStatusBadShape,
     [](Command& c) { c.last_columns = bbs::kCols + 1; }},
    {"input stride", bbs::kStatusBadShape, [](Command& c) { c.input_stride -= 8; }},
    {"output stride", bbs::kStatusBadShape, [](Command& c) { c.output_stride -= bbs::kRowStep; }},
    {"vector buffer", bbs::kStatusVectorOverflow,
     [](Command& c) { c.tiles_per_block = bbs::kVectorWords / 32 + 1; }},
    {"block buffer", bbs::kStatusBlockOverflow,
     [](Command& c) { c.rows_per_block = tb::round_up(bbs::kBlockWords * bbs::kRows / 8 + 1, 8); }},
    {"row buffer", bbs::kStatusBlockOverflow,
     [](Command& c) {
       c.tiles_per_block = 1;
       c.rows_per_block = bbs::kBlockRows * bbs::kRows + bbs::kRowStep;
     }},
    {"kept weights of two passes", bbs::kStatusBlockOverflow,
     [](Command& c) { c.flags |= bbs::kFlagKeepWeights; }},
    {"place of kept weights", bbs::kStatusBlockOverflow,
     [](Command& c) {
       c.flags |= bbs::kFlagKeepWeights, c.groups_per_pass = 3, c.tiles_per_block = 1;
       c.block_base = bbs::kBlockWords - tb::block_size(c) + 1;
     }},
    {"place of resident weights", bbs::kStatusBlockOverflow,
     [](Command& c) {
       c.flags |= bbs::kFlagResidentWeights, c.groups_per_pass = 3, c.tiles_per_block = 1;
       c.block_base = 0xffff;
     }},
    {"sum buffer", bbs::kStatusSumOverflow,
     [](Command& c) {
       c.bank_size = 8, c.keep = 1;
       c.groups = tb::quotient_up(c.features, 8 * bbs::kLanes);
       c.groups_per_pass = 1;
       c.tiles_per_block = bbs::kVectorWords / 8;
       const uint32_t groups = bbs::kSumWords / c.tiles_per_block + 1;
       c.rows_per_block = tb::round_up(groups * bbs::kRows, bbs::kRowStep);
     }},
    {"input from an empty chain", bbs::kStatusChainOverflow,
     [](Command& c) { c.flags |= bbs::kFlagFromChain; }},
    {"output beyond the chain", bbs::kStatusChainOverflow,
     [](Command& c) {
       c.flags = bbs::kFlagToChain;
       c.tiles = bbs::kChainWords, c.tiles_per_block = 1;
     }},
    {"order of blocks in the chain", bbs::kStatusBadShape,
     [](Command& c) { c.flags |= bbs::kFlagToChain; }},
};

// What only narrow tiles and row groups must have.
const Spoiled kUneven[] = {
    {"bank of part of a word", bbs::kStatusBadBank, [](Command& c) { c.bank_size = 15; }},
    {"features of part of a word", bbs::kStatusBadShape, [](Command& c) { c.features--; }},
    {"input stride of part of a word", bbs::kStatusBadShape, [](Command& c) { c.input_stride++; }},
    {"output stride of part of a word", bbs::kStatusBadShape,
     [](Command& c) { c.output_stride++; }},
};

// A small image that has room anywhere.
Command good_image() {
  Command c = good_command();
  c.flags |= bbs::kFlagImage;
  c.bank_size = 4, c.keep = 2;
  c.height = 5, c.width = 7, c.channels = 6, c.input_stride = 8;
  c.kernel_height = 3, c.kernel_width = 2;
  c.stride_y = c.stride_x = c.dilation_y = c.dilation_x = 1;
  c.out_height = 4, c.out_width = 6;
  c.features = 3 * 2 * 2 * 4;
  c.groups = c.groups_per_pass = tb::quotient_up(c.features, 4 * bbs::kLanes);
  c.tiles = tb::quotient_up(c.out_height * c.out_width, bbs::kCols);
  c.tiles_per_block = 1;
  c.image_words = tb::whole_image_words(c);
  tb::set_quotients(c);
  return c;
}

// The same features, three channels for each half of the rows.
void cut_in_two(Command& c) {
  c.parts = 2, c.part_rows = c.rows / 2, c.part_channels = 3;
  c.features = 3 * 2 * 4;
  c.groups = c.groups_per_pass = tb::quotient_up(c.features, 4 * bbs::kLanes);
}

const Spoiled kSpoiledImages[] = {
    {"nothing of an image", bbs::kStatusOk, [](Command&) {}},
    {"height", bbs::kStatusBadImage, [](Command& c) { c.height = 0; }},
    {"width", bbs::kStatusBadImage, [](Command& c) { c.width = 0; }},
    {"channels", bbs::kStatusBadImage, [](Command& c) { c.channels = 0; }},
    {"height too large", bbs::kStatusBadImage, [](Command& c) { c.height = 4097; }},
    {"width too large", bbs::kStatusBadImage, [](Command& c) { c.width = 4097; }},
    {"load pace", bbs::kStatusBadImage, [](Command& c) { c.load_pace = 0; }},
    {"output height", bbs::kStatusBadImage, [](Command& c) { c.out_height = 0; }},
    {"output width", bbs::kStatusBadImage, [](Command& c) { c.out_width = 0; }},
    {"rows beyond 16 bits", bbs::kStatusBadImage,
     [](Command& c) { c.out_height = 8193, c.out_width = 1, c.tiles = 8193; }},
    {"columns beyond 16 bits", bbs::kStatusBadImage,
     [](Command& c) { c.out_height = 1, c.out_width = 8193, c.tiles = 8193; }},
    {"kernel height", bbs::kStatusBadImage, [](Command& c) { c.kernel_height = 0; }},
    {"kernel width", bbs::kStatusBadImage, [](Command& c) { c.kernel_width = 0; }},
    {"stride y", bbs::kStatusBadImage, [](Command& c) { c.stride_y = 0; }},
    {"stride x", bbs::kStatusBadImage, [](Command& c) { c.stride_x = 0; }},
    {"dilation y", bbs::kStatusBadImage, [](Command& c) { c.dilation_y = 0; }},
    {"dilation x", bbs::kStatusBadImage, [](Command& c) { c.dilation_x = 0; }},
    {"pixels beyond the tiles", bbs::kStatusBadImage, [](Command& c) { c.out_height = 400; }},
    {"stride of the input", bbs::kStatusBadImage, [](Command& c) { c.input_stride = 5; }},
    {"ring without room", bbs::kStatusBadImage, [](Command& c) { c.image_words = 0; }},
    {"ring too long", bbs::kStatusBadImage,
     [](Command& c) { c.image_words = bbs::kImageWords / 6 + 1; }},
    {"place of the ring", bbs::kStatusBadImage, [](Command& c) { c.image_base = 0xffff; }},
    {"features", bbs::kStatusBadImage, [](Command& c) { c.features--; }},
    {"nothing of two parts", bbs::kStatusOk, cut_in_two},
    {"rows of a part", bbs::kStatusBadShape,
     [](Command& c) { cut_in_two(c), c.part_rows -= bbs::kRowStep; }},
    {"channels of a part", bbs::kStatusBadImage,
     [](Command& c) { cut_in_two(c), c.part_channels++; }},
    {"order of parts in the chain", bbs::kStatusBadShape,
     [](Command& c) {
       cut_in_two(c), c.flags |= bbs::kFlagToChain, c.tiles_per_block = 2;
     }},
};

void expect_spoiled(const Command& good, const Spoiled& spoiled, bbs::Status wanted) {
  Command c = good;
  spoiled.change(c);
  tb::set_quotients(c);
  bbs::Shape s;
  TB_EXPECT(bbs::check_command(c, UINT32_MAX, 0, s), wanted, "status with %s spoiled",
            spoiled.what);
}

// One more and one less than each quotient, 0, and what a field holds at most.
void wrong_quotients() {
  struct Quotient {
    const char* name;
    uint32_t Command::*field;
    int bits;
    bbs::Status wanted;
  };
  const Quotient quotients[] = {
      {"groups", &Command::groups, 16, bbs::kStatusBadShape},
      {"passes", &Command::passes, 16, bbs::kStatusBadShape},
      {"tile_groups", &Command::tile_groups, 24, bbs::kStatusBadShape},
      {"blocks", &Command::blocks, 24, bbs::kStatusBadShape},
      {"channel_blocks", &Command::channel_blocks, 16, bbs::kStatusBadImage},
  };
  for (const Quotient& quotient : quotients) {
    const bool of_image = quotient.wanted == bbs::kStatusBadImage;
    if (of_image && bbs::kImageWords == 0) continue;
    const Command good = of_image ? good_image() : good_command();
    const uint32_t right = good.*quotient.field;
    for (const uint32_t wrong : {right - 1, right + 1, 0u, (1u << quotient.bits) - 1}) {
      Command c = good;
      bbs::Shape s;
      c.*quotient.field = wrong;
      TB_EXPECT(bbs::check_command(c, UINT32_MAX, 0, s), quotient.wanted, "status with %u %s",
                wrong, quotient.name);
    }
  }
}

// A product tells whether a quotient is right, for all that the fields can hold.
void quotients_by_products(tb::Random& random) {
  const uint32_t total = (uint32_t)(random.bits() >> random.between(40, 63));
  const uint32_t step = random.between(1, (1 << random.between(1, 17)) - 1);
  const uint32_t right = tb::quotient_up(total, step);
  const uint32_t other = (uint32_t)(random.bits() >> random.between(40, 63));
  for (const uint32_t count : {right - 1, right, right + 1, other}) {
    if (count >= 1u << 24) continue;
    const int64_t last = bbs::last_piece(total, step, bbs::short_times(count, step));
    TB_EXPECT(bbs::is_piece(last, step), count == right, "%u pieces of %u in %u", count, step,
              total);
  }
}

// A step of a cell that stores its states.
void make_step(Command& c) {
  c.flags |= bbs::kFlagLstm | bbs::kFlagStateOut;
  c.rows = c.output_stride = 4 * tb::row_step(c), c.rows_per_block = tb::row_step(c);
  c.state_words = 1;
  tb::set_quotients(c);
}

void every_status() {
  for (const Spoiled& spoiled : kSpoiled) expect_spoiled(good_command(), spoiled, spoiled.wanted);
  if (bbs::kPack > 1)
    for (const Spoiled& spoiled : kUneven) expect_spoiled(good_command(), spoiled, spoiled.wanted);
  if (bbs::kRowStep > 1) {
    const Spoiled rows = {"rows", bbs::kStatusBadShape, [](Command& c) { c.rows--; }};
    const Spoiled block = {"rows of a block", bbs::kStatusBadShape,
                           [](Command& c) { c.rows_per_block--; }};
    expect_spoiled(good_command(), rows, rows.wanted);
    expect_spoiled(good_command(), block, block.wanted);
  }
  if (bbs::kImageWords > 0)
    for (const Spoiled& spoiled : kSpoiledImages)
      expect_spoiled(good_image(), spoiled, spoiled.wanted);
  else if (4 % bbs::kPack == 0)
    expect_spoiled(good_image(), kSpoiledImages[0], bbs::kStatusBadImage);
  for (uint32_t flag = 1; flag <= bbs::kFlagFollows; flag *= 2) {  // that the build has not
    if (bbs::kBuiltFlags & flag) continue;
    Command c = good_command();
    bbs::Shape s;
    c.flags |= flag;
    const bbs::Status wanted =
        flag == bbs::kFlagImage ? bbs::kStatusBadImage : bbs::kStatusBadOp;
    TB_EXPECT(bbs::check_command(c, UINT32_MAX, 0, s), wanted, "status with flag %u", flag);
  }
  for (size_t plane = 0; plane < 8; plane++) {
    Command c = good_command();
    bbs::Shape s;
    const uint32_t residual = bbs::kBuiltFlags & bbs::kFlagResidual;
    if ((plane == 6 && !residual) || (plane == 7 && bbs::kCellWords == 0)) continue;
    c.flags |= bbs::kFlagTable;
    if (plane < 7)
      c.flags |= residual;
    else
      make_step(c);
    *tb::plane_offsets(c)[plane] = UINT32_MAX;
    TB_EXPECT(bbs::check_command(c, 1u << 20, 0, s), bbs::kStatusOutOfMemoryRange,
              "status with plane %zu far away", plane);
  }
}

// The chain holds the whole input, and has room for the output beside it.
void chain_levels() {
  Command c = good_command();
  c.flags |= bbs::kFlagFromChain;
  c.bank_size = 8, c.keep = 2;
  c.features = c.input_stride = 8 * bbs::kLanes, c.groups = c.groups_per_pass = 1, c.tiles = 1;
  tb::set_quotients(c);
  bbs::Shape s;
  const uint32_t input = c.features / bbs::kPack, output = c.rows / bbs::kPack;
  TB_EXPECT(bbs::check_command(c, UINT32_MAX, input, s), bbs::kStatusOk, "input in the chain");
  TB_EXPECT(bbs::check_command(c, UINT32_MAX, input - 1, s), bbs::kStatusChainOverflow,
            "input not all in the chain");
  c.flags = bbs::kFlagToChain;
  c.tiles_per_block = 1;
  tb::set_quotients(c);
  const uint32_t room = bbs::kChainWords - output;
  TB_EXPECT(bbs::check_command(c, UINT32_MAX, room, s), bbs::kStatusOk, "output fits the chain");
  TB_EXPECT(bbs::check_command(c, UINT32_MAX, room + 1, s), bbs::kStatusChainOverflow,
            "output does not fit the chain");
  Command passes = good_command();
  passes.flags |= bbs::kFlagFromChain;
  TB_EXPECT(bbs::check_command(passes, UINT32_MAX, UINT32_MAX / 2, s), bbs::kStatusChainOverflow,
            "features of the chain in two passes");
}

void same_after_encoding(tb::Random& random) {
  uint64_t words[bbs::kCommandWords], again[bbs::kCommandWords];
  for (uint64_t& word : words) word = random.bits();
  tb::encode_command(bbs::decode_command(words), again);
  // Only the bits of fields are kept.
  const uint64_t all = ~0ull;
  const uint64_t claimed[bbs::kCommandWords] = {
      0xffffffff00ffffffu, all, all, all, 0x00ffffffffffffffu, 0xffffffff00ffffffu,
      0xffffffffff3fffffu, all, all, all, all, 0xffffffff3fffffffu, all, 0x00ffffffffffffffu,
      0x00ffffff00ffffffu, all, 0xffffffff00ffffffu};
  for (int i = 0; i < bbs::kCommandWords; i++)
    TB_EXPECT(again[i], words[i] & claimed[i], "word %d, decoded and encoded", i);
}

// Sets every offset by `place`, and returns where the last plane ends.
template <typename Place>
uint64_t place_planes(Command& c, Place place) {
  const std::vector<uint64_t> sizes = tb::plane_sizes(c);
  uint64_t end = 0;
  for (size_t i = 0; i < sizes.size(); i++) {
    uint32_t& offset = *tb::plane_offsets(c)[i];
    offset = sizes[i] ? place() : 0;
    end = std::max(end, offset + sizes[i]);
  }
  return end;
}

void memory_of_its_size(tb::Random& random) {
  Command c = tb::random_command(random, {1 << 14, 1 << 8, 1 << 14});
  const uint64_t end =
      place_planes(c, [&] { return (uint32_t)random.between(0, 1 << 20); });
  bbs::Shape s;
  TB_EXPECT(bbs::check_command(c, (uint32_t)end, 0, s), bbs::kStatusOk, "status with just enough");
  TB_EXPECT(bbs::check_command(c, (uint32_t)end - 1, 0, s), bbs::kStatusOutOfMemoryRange,
            "status with a word too few, at %u", (uint32_t)end);
}

uint32_t log_uniform(tb::Random& random) {
  return (uint32_t)random.between(1, 1 << random.between(0, 23));
}

// Fields as large as a command can hold: sizes beyond 32 bits are not taken for small ones.
int64_t sizes_beyond_memory(tb::Random& random) {
  Command c = good_command();
  c.bank_size = tb::round_up(random.between(1, 16), bbs::kPack);
  c.keep = random.between(1, c.bank_size);
  const uint32_t most = (1 << 24) - bbs::kRowStep;
  c.rows = std::min(tb::round_up(log_uniform(random), bbs::kRowStep), most);
  c.tiles = log_uniform(random);
  c.features = std::min(tb::round_up(log_uniform(random), bbs::kPack),
                        0xffffu * bbs::kLanes * c.bank_size);
  c.output_stride = random.once_in(2) ? c.rows : most;
  c.input_stride = random.once_in(2) ? c.features : most;
  if (random.once_in(3)) c.flags |= bbs::kFlagSumsOut;
  c.groups = tb::quotient_up(c.features, bbs::kLanes * c.bank_size);
  c.groups_per_pass = std::min<uint32_t>(c.groups, bbs::kVectorWords / c.bank_size);
  c.tiles_per_block = 1, c.rows_per_block = bbs::kRowStep;
  tb::set_quotients(c);
  const uint32_t words = (uint32_t)(random.bits() >> random.between(32, 40));
  const uint64_t end = place_planes(
      c, [&] { return (uint32_t)(random.bits() >> random.between(32, 63)); });
  bbs::Shape s;
  const bool fits = end <= words;
  const uint64_t passes = tb::pass_count(c), blocks = c.rows / bbs::kRowStep;
  const bool countable = passes == 1 || c.tiles * blocks <= UINT32_MAX / passes;
  const bbs::Status wanted = !fits       ? bbs::kStatusOutOfMemoryRange
                             : countable ? bbs::kStatusOk
                                         : bbs::kStatusBadShape;
  TB_EXPECT(bbs::check_command(c, words, 0, s), wanted, "planes end at %" PRIu64, end);
  return fits;
}

}  // namespace

int main() {
  tb::Random random(11);
  every_status();
  wrong_quotients();
  chain_levels();
  const int count = tb::cases(100000);
  int64_t fitting = 0;
  for (int i = 0; i < count; i++) {
    same_after_encoding(random);
    quotients_by_products(random);
    memory_of_its_size(random);
    fitting += sizes_beyond_memory(random);
  }
  TB_EXPECT(fitting > count / 20 && fitting < count, true, "large planes that fit, and others");
  return tb::finish("check_tb", count, "commands");
}
