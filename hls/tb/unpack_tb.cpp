// SPDX-License-Identifier: Apache-2.0
// From planes to CSB words: every weight and index width, row groups that start on whole words,
// several visits, and none read where the weights are resident.
#include "unpack.hpp"

#include "commands.hpp"

namespace {

constexpr int kSlices = bbs::kRows * bbs::kLanes;

// Weights and indices of one visit as the planes hold them, and as the stage must deliver them.
struct Planes {
  tb::Words weights, indices;
  std::vector<bbs::WeightWord> words;
};

void append_visit(tb::Random& random, const bbs::Command& c, const bbs::Visit& visit,
                  Planes& planes) {
  const int most_index = (1 << c.index_bits) - 1;
  for (uint32_t group = 0; group < visit.rows; group++) {
    std::vector<int8_t> weights;
    std::vector<uint8_t> indices;
    for (uint32_t i = 0; i < visit.row_words; i++) {
      bbs::WeightWord word;
      for (int lane = 0; lane < kSlices; lane++) {
        word.weight[lane] = (int8_t)(random.byte() >> (8 - tb::weight_width(c)));
        word.index[lane] = (uint8_t)(c.index_bits ? random.between(0, most_index) : i % c.keep);
        weights.push_back(word.weight[lane]);
        indices.push_back(word.index[lane]);
      }
      planes.words.push_back(word);
    }
    tb::append_bits(planes.weights, weights, tb::weight_width(c));
    tb::append_bits(planes.indices, indices, c.index_bits);
  }
}

int64_t run(tb::Random& random, int index_bits, uint32_t int4) {
  const bool resident = random.once_in(8);
  bbs::Command c = {};
  c.index_bits = index_bits;
  c.keep = random.between(1, 9);
  c.flags = (index_bits == 0 ? (uint32_t)bbs::kFlagDense : 0u) | int4 |
            (resident ? (uint32_t)bbs::kFlagResidentWeights : 0u);
  bbs::VisitStream visits("visits");
  bbs::WordStream weight_words("weight_words"), index_words("index_words");
  bbs::WeightStream csb_words("csb_words");
  Planes planes;
  const int visit_count = random.between(1, 4);
  for (int v = 0; v < visit_count; v++) {
    bbs::Visit visit = {};
    visit.rows = random.between(1, 6);
    visit.row_words = c.keep * random.between(1, 5);
    visit.tiles = random.between(1, 4);  // unpacked once, however many tiles follow
    visit.again = v > 0 && random.once_in(4);  // its words are there
    visit.final = v + 1 == visit_count;
    visits.write(visit);
    if (!resident && !visit.again) append_visit(random, c, visit, planes);
  }
  for (const uint64_t word : planes.weights) weight_words.write(word);
  for (const uint64_t word : planes.indices) index_words.write(word);
  bbs::UnpackCommandStream commands("commands");
  tb::tell(commands, bbs::unpack_command(c));
  bbs::unpack(commands, visits, weight_words, index_words, csb_words);
  for (size_t i = 0; i < planes.words.size(); i++) {
    const bbs::WeightWord word = csb_words.read();
    for (int lane = 0; lane < kSlices; lane++) {
      TB_EXPECT(word.weight[lane], planes.words[i].weight[lane],
                "%d bits: weight of word %zu, lane %d", index_bits, i, lane);
      TB_EXPECT(word.index[lane], planes.words[i].index[lane],
                "%d bits: index of word %zu, lane %d", index_bits, i, lane);
    }
  }
  TB_EXPECT(tb::drained(visits), true, "visits left over");
  TB_EXPECT(tb::drained(weight_words), true, "%d bits: weight words left over", index_bits);
  TB_EXPECT(tb::drained(index_words), true, "%d bits: index words left over", index_bits);
  TB_EXPECT(tb::drained(csb_words), true, "%d bits: CSB words too many", index_bits);
  return (int64_t)planes.words.size();
}

}  // namespace

int main() {
  tb::Random random(3);
  int64_t count = 0;
  for (int i = 0; i < tb::cases(4000 * 8 / kSlices); i++)
    for (const int index_bits : {0, 4, 6, 8})
      for (const uint32_t int4 : {0u, (uint32_t)bbs::kFlagInt4})
        count += run(random, index_bits, int4);
  return tb::finish("unpack_tb", count, "CSB words");
}
