// SPDX-License-Identifier: Apache-2.0
// Multiply and add, or take the largest: several fillings of the vector buffer, one half filled
// at its pace while the other is worked on; blocks that meet many tiles, stay for the next
// command, or are longer than their buffer.
#include "multiply.hpp"

#include <deque>

#include "commands.hpp"

namespace {

struct Streams {
  bbs::VectorWriteStream writes{"writes"};
  bbs::VisitStream visits{"visits"};
  bbs::WeightStream words{"words"};
  bbs::SumStream sums{"sums"};
};

struct Write {
  uint32_t place;
  bbs::ActWord word;
};

// The writes of one filling: lane by lane in any order, up to kTaps neighbouring lanes at once.
void write_filling(tb::Random& random, const bbs::Command& c, uint32_t stride, const tb::Tensor& x,
                   bbs::VectorWriteStream& writes) {
  std::deque<Write> lanes[bbs::kLanes];
  size_t left = 0;
  const uint32_t step = std::min<uint32_t>(c.bank_size, bbs::kPack);  // features of a bank's word
  for (uint32_t tile = 0; tile < x.tiles; tile++) {
    for (uint32_t f = 0; f < x.features; f += step, left++) {
      const uint32_t bank = f / c.bank_size;
      Write write;
      write.place =
          tile * stride + bank / bbs::kLanes * tb::bank_room(c) + f % c.bank_size;
      for (uint32_t i = 0; i < bbs::kWordActs; i++)
        write.word.v[i] = i < step * bbs::kCols ? x.column(tile, f)[i] : random.byte();
      lanes[bank % bbs::kLanes].push_back(write);
    }
  }
  for (uint32_t lane = 0; left > 0; lane = (lane + 1) % bbs::kLanes) {
    if (lanes[lane].empty()) continue;
    bbs::VectorWrite out = {};
    out.lane = (uint8_t)lane;
    for (uint32_t i = 0; i < bbs::kTaps; i++) {
      std::deque<Write>& from = lanes[(lane + i) % bbs::kLanes];
      out.place[i] = (uint16_t)random.bits();
      if (from.empty() || (i > 0 && random.once_in(2))) continue;
      out.place[i] = (uint16_t)from.front().place;
      out.word[i] = from.front().word;
      out.taps |= (uint8_t)(1u << i);
      from.pop_front();
      left--;
    }
    out.last = left == 0;
    writes.write(out);
  }
}

// The words of one block, and the features that they meet.
struct Block {
  std::vector<bbs::WeightWord> words;
  std::vector<uint32_t> features;  // [word][row][lane]
};

Block random_block(tb::Random& random, const bbs::Command& c, const bbs::Visit& visit,
                   uint32_t features) {
  Block block;
  for (uint32_t i = 0; i < visit.rows * visit.row_words; i++) {
    bbs::WeightWord word;
    for (uint32_t at = 0; at < bbs::kRows * bbs::kLanes; at++) {
      word.index[at] = (uint8_t)random.between(0, c.bank_size - 1);
      const uint32_t group = i % visit.row_words / c.keep;
      const uint32_t f = tb::feature_of(c, group, at % bbs::kLanes, word.index[at]);
      const bool zero = f >= features || random.once_in(8);
      word.weight[at] = zero ? 0 : random.once_in(3) ? -128 : random.byte();
      block.features.push_back(f >= features ? 0 : f);
    }
    block.words.push_back(word);
  }
  return block;
}

void append_sums(const bbs::Command& c, const bbs::Visit& visit, const Block& block,
                 const tb::Tensor& x, std::vector<int32_t>& expected) {
  const bool maximum = tb::has(c, bbs::kFlagMaximum);
  const uint32_t slices = bbs::kRows * bbs::kLanes;
  for (uint32_t tile = 0; tile < visit.tiles; tile++) {
    for (uint32_t group = 0; group < visit.rows; group++) {
      std::vector<int32_t> sums(bbs::kWide, maximum ? -128 : 0);
      for (uint32_t i = group * visit.row_words; i < (group + 1) * visit.row_words; i++) {
        for (uint32_t at = 0; at < slices; at++) {
          const int8_t weight = block.words[i].weight[at];
          if (weight == 0) continue;
          const int8_t* column = x.column(tile, block.features[i * slices + at]);
          int32_t* sum = &sums[at / bbs::kLanes * bbs::kCols];
          for (int col = 0; col < bbs::kCols; col++)
            sum[col] = maximum ? std::max<int32_t>(sum[col], column[col])
                               : sum[col] + weight * column[col];
        }
      }
      expected.insert(expected.end(), sums.begin(), sums.end());
    }
  }
}

void expect_sums(const bbs::Command& c, const std::vector<int32_t>& expected, Streams& streams) {
  for (size_t i = 0; i < expected.size(); i += bbs::kWide) {
    const bbs::SumWord sum = streams.sums.read();
    for (int col = 0; col < bbs::kWide; col++)
      TB_EXPECT(sum.v[col], expected[i + col], "bank size %u, keep %u: sum %zu, column %d",
                c.bank_size, c.keep, i / bbs::kWide, col);
  }
  TB_EXPECT(tb::drained(streams.visits), true, "visits left over");
  TB_EXPECT(tb::drained(streams.words), true, "CSB words left over");
  TB_EXPECT(tb::drained(streams.sums), true, "sums too many");
  bbs::VectorWrite mark = {}, next;
  mark.place[0] = 4711;
  streams.writes.write(mark);
  next = streams.writes.read();
  TB_EXPECT(next.place[0], 4711, "writes left over");
}

bbs::WeightWord lasting[bbs::kBlockWords];

bbs::Command random_command(tb::Random& random) {
  bbs::Command c = {};
  const int most = (1 << bbs::kIndexBits) / bbs::kPack;
  c.bank_size = bbs::kPack * random.between(1, random.once_in(2) ? most : std::min(most, 16));
  if (random.once_in(4))
    for (c.bank_size = bbs::kPack; c.bank_size > 1 && random.once_in(2);) c.bank_size /= 2;
  c.keep = random.between(1, std::min<int>(c.bank_size, 12));
  c.flags = random.once_in(3) ? bbs::kFlagMaximum & bbs::kBuiltFlags : 0u;
  c.pace = random.once_in(4) ? random.between(1, 500) : random.between(1, 4);
  return c;
}

// One command: fillings, each with the visits that use it. `again` gets what a second run takes
// that has the weights that the first run left.
bbs::Shape append_command(tb::Random& random, const bbs::Command& c, bool long_block,
                          Streams& streams, Streams& again, std::vector<int32_t>& expected) {
  const bool kept = bbs::has(c, bbs::kFlagKeepWeights);
  const int fit = bbs::kVectorWords / tb::bank_room(c);
  bbs::Shape shape = {};
  shape.fills = random.between(1, 3);
  uint32_t base = 0;
  // Of kept weights there is room for those of all visits.
  const int room = kept ? bbs::kBlockWords / (3 * 3) : bbs::kBlockWords;
  for (uint32_t f = 0; f < shape.fills; f++) {
    const int groups = random.between(1, std::min(fit, kept ? 2 : 6));
    bbs::Visit visit = {};
    visit.tiles = long_block ? 1 : random.between(1, std::min(fit / groups, 4));
    visit.row_words = groups * c.keep;
    visit.stride = groups * tb::bank_room(c);
    const uint32_t space = groups * bbs::kLanes * c.bank_size / bbs::kPack;
    const tb::Tensor x =
        tb::random_tensor(random, visit.tiles, random.between(1, space) * bbs::kPack);
    write_filling(random, c, visit.stride, x, streams.writes);
    if (kept) write_filling(random, c, visit.stride, x, again.writes);
    const int visits = long_block ? 1 : random.between(1, 3);
    for (int v = 0; v < visits; v++) {
      const int most_rows = room / visit.row_words;
      visit.rows = long_block ? most_rows + random.between(1, 9)
                              : random.between(1, std::min(most_rows, 12));
      if (!kept && random.once_in(16)) visit.rows = most_rows;  // the whole buffer
      visit.block = kept ? base : 0;
      visit.fill_end = v + 1 == visits;
      visit.final = visit.fill_end && f + 1 == shape.fills;
      base += visit.rows * visit.row_words;
      const Block block = random_block(random, c, visit, x.features);
      for (const bbs::WeightWord& word : block.words) streams.words.write(word);
      streams.visits.write(visit);
      if (kept) again.visits.write(visit);
      append_sums(c, visit, block, x, expected);
    }
  }
  return shape;
}

int64_t run(tb::Random& random, bool long_block, bool kept) {
  bbs::Command c = random_command(random);
  if (kept) c.flags |= bbs::kFlagKeepWeights;
  Streams streams, again;
  std::vector<int32_t> expected;
  const bbs::Shape shape = append_command(random, c, long_block, streams, again, expected);
  bbs::MultiplyCommandStream commands("commands");
  tb::tell(commands, bbs::multiply_command(c, shape));
  bbs::multiply(commands, streams.writes, streams.visits, streams.words, lasting, streams.sums);
  expect_sums(c, expected, streams);
  if (!kept) return (int64_t)expected.size();
  c.flags ^= bbs::kFlagKeepWeights | bbs::kFlagResidentWeights;
  tb::tell(commands, bbs::multiply_command(c, shape));
  bbs::multiply(commands, again.writes, again.visits, again.words, lasting, again.sums);
  expect_sums(c, expected, again);
  return 2 * (int64_t)expected.size();
}

// Commands that follow each other, whose writes are there early or late: beside the last filling of
// one the first filling of the next one is taken.
int64_t run_following(tb::Random& random) {
  Streams streams, again;
  bbs::MultiplyCommandStream commands("commands");
  std::vector<int32_t> expected;
  bbs::Command c = {};
  for (int n = random.between(2, 4); n > 0; n--) {
    c = random_command(random);
    const bbs::Shape shape =
        append_command(random, c, random.once_in(8), streams, again, expected);
    commands.write(bbs::multiply_command(c, shape));
  }
  commands.write(bbs::end_mark<bbs::MultiplyCommand>());
  bbs::multiply(commands, streams.writes, streams.visits, streams.words, lasting, streams.sums);
  expect_sums(c, expected, streams);
  return (int64_t)expected.size();
}

// A block that meets filling after filling, a lone tile at times, and comes for the first alone.
int64_t run_staying(tb::Random& random) {
  const bbs::Command c = random_command(random);
  const int fit = bbs::kVectorWords / tb::bank_room(c);
  const int groups = random.between(1, std::min(fit, 6));
  const uint32_t space = groups * bbs::kLanes * c.bank_size / bbs::kPack;
  const uint32_t features = random.between(1, space) * bbs::kPack;
  Streams streams;
  std::vector<int32_t> expected;
  bbs::Shape shape = {};
  shape.fills = random.between(2, 5);
  shape.stays = true;
  bbs::Visit visit = {};
  visit.row_words = groups * c.keep;
  visit.stride = groups * tb::bank_room(c);
  visit.rows = random.between(1, std::min<int>(bbs::kBlockWords / visit.row_words, 12));
  visit.fill_end = true;
  const Block block = random_block(random, c, visit, features);
  for (const bbs::WeightWord& word : block.words) streams.words.write(word);
  for (uint32_t f = 0; f < shape.fills; f++) {
    visit.tiles = random.between(1, std::min(fit / groups, 3));
    visit.again = f > 0;
    visit.final = f + 1 == shape.fills;
    streams.visits.write(visit);
    const tb::Tensor x = tb::random_tensor(random, visit.tiles, features);
    write_filling(random, c, visit.stride, x, streams.writes);
    append_sums(c, visit, block, x, expected);
  }
  bbs::MultiplyCommandStream commands("commands");
  tb::tell(commands, bbs::multiply_command(c, shape));
  bbs::multiply(commands, streams.writes, streams.visits, streams.words, lasting, streams.sums);
  expect_sums(c, expected, streams);
  return (int64_t)expected.size();
}

}  // namespace

int main() {
  tb::Random random(4);
  int64_t count = 0;
  for (int i = 0; i < tb::cases(400); i++) count += run(random, i % 16 == 0, i % 4 == 1);
  for (int i = 0; i < tb::cases(100); i++) count += run_staying(random) + run_following(random);
  return tb::finish("multiply_tb", count, "sums");
}
