// SPDX-License-Identifier: Apache-2.0
// Cells against docs/recurrent.md in floating point that is exact here; the stage over several
// steps, with states that stay, are loaded and are stored; commands that it must refuse.
#include "cell.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "layer.hpp"

namespace {

constexpr uint32_t kRowsStep = bbs::kGates * bbs::kPack * bbs::kRows;

// A byte or a state, often at its ends or near zero.
int32_t corner(tb::Random& random, int32_t largest) {
  if (!random.once_in(3)) return random.between(-largest - 1, largest);
  const int32_t ends[] = {-largest - 1, -largest, -1, 0, 1, largest - 1, largest};
  return ends[random.between(0, 6)];
}

int64_t tanh_table() {
  for (int k = 0; k < 256; k++) {
    TB_EXPECT(bbs::kTanhKnots[k], tb::tanh_knot(k), "knot %d", k);
    TB_EXPECT(bbs::kTanhSlopes[k], tb::tanh_knot(k + 1) - tb::tanh_knot(k), "slope %d", k);
  }
  for (int x = -32768; x <= 32767; x++) {
    TB_EXPECT(bbs::fixed_tanh(x), tb::tanh_line(x), "tanh of %d", x);
    const double error = bbs::fixed_tanh(x) / 32768.0 - std::tanh(x / 2048.0);
    TB_EXPECT(std::fabs(error) < 0.00012, true, "error of tanh of %d", x);
  }
  return 65536;
}

// Single cells, gates laid as a lone unit lies in its words.
int64_t cells(tb::Random& random) {
  const int count = 400000 / tb::kShare;
  for (int i = 0; i < count; i++) {
    bbs::Command c = {};
    c.flags = random.once_in(2) ? bbs::kFlagLstm : bbs::kFlagGru;
    c.shift = random.between(0, 8);
    int8_t gates[4];
    for (int8_t& gate : gates) gate = (int8_t)corner(random, 127);
    int16_t state = (int16_t)corner(random, 32767);
    const tb::Result want = tb::unit(c, gates, state);
    bbs::UnitGates words = {};
    for (uint32_t g = 0; g < 4; g++) {
      const uint32_t at = g * bbs::kCols - bbs::first_word_of(g) * bbs::kPortBytes;
      words[1][g][0] = (bbs::word_t)(uint8_t)gates[g] << (8 * at);
    }
    const bbs::CellCommand told = bbs::cell_command(c, {});
    TB_EXPECT(bbs::cell_one(told, words, 1, 0, state), want.hidden, "hidden value, flags %u",
              c.flags);
    TB_EXPECT(state, want.state, "state, flags %u", c.flags);
  }
  return count;
}

// A layer whose steps go through the stage one after another.
struct Layer {
  bbs::Command c = {};
  uint32_t units = 0;
  std::vector<int32_t> states;  // [tile][unit][column]

  int32_t& state(uint32_t tile, uint32_t u, uint32_t col) {
    return states[(tile * units + u) * bbs::kCols + col];
  }
};

bbs::word_t word_at(const std::vector<uint8_t>& bytes, size_t word) {
  bbs::word_t value = 0;
  for (int b = 0; b < bbs::kPortBytes; b++) value |= (bbs::word_t)bytes[8 * word + b] << (8 * b);
  return value;
}

std::vector<uint8_t> state_bytes(const Layer& layer) {
  std::vector<uint8_t> bytes;
  for (const int32_t state : layer.states) {
    bytes.push_back((uint8_t)state);
    bytes.push_back((uint8_t)((uint32_t)state >> 8));
  }
  return bytes;
}

// Gates of one visit into the stream, hidden values as they must come out, states moved on.
void feed(tb::Random& random, Layer& layer, const bbs::Visit& visit, uint32_t first_tile,
          uint32_t first_row, std::vector<uint8_t>& gate_bytes, std::vector<uint8_t>& hidden) {
  const bbs::Command& c = layer.c;
  for (uint32_t t = 0; t < visit.tiles; t++) {
    const bool last = visit.last_group && t + 1 == visit.tiles;
    for (uint32_t row = 0; row < visit.rows * bbs::kRows; row += 4) {
      int8_t gates[bbs::kCols][4];
      for (int g = 0; g < 4; g++) {
        for (int col = 0; col < bbs::kCols; col++) {
          gates[col][g] = (int8_t)corner(random, 127);
          gate_bytes.push_back((uint8_t)gates[col][g]);
        }
      }
      for (uint32_t col = 0; col < bbs::kCols; col++) {
        int32_t& state = layer.state(first_tile + t, (first_row + row) / 4, col);
        const bool zero = bbs::has(c, bbs::kFlagStateZero);
        const tb::Result want = tb::unit(c, gates[col], zero ? 0 : state);
        const bool counts = !last || col < c.last_columns;
        if (counts) state = want.state;
        hidden.push_back((uint8_t)(counts ? want.hidden : 0));
      }
    }
  }
}

// One command: all its visits, in the order in which they are made.
int64_t step(tb::Random& random, Layer& layer, bbs::CellWord* memory) {
  const bbs::Command& c = layer.c;
  const bbs::Shape s = bbs::derive_shape(c, bbs::amounts_of(c));
  bbs::VisitStream visits("visits");
  bbs::WordStream states("states"), words("words"), outputs("outputs");
  if (bbs::has(c, bbs::kFlagStateIn)) {
    for (int32_t& state : layer.states) state = corner(random, 32767);
    const std::vector<uint8_t> bytes = state_bytes(layer);
    for (size_t i = 0; i < bytes.size() / 8; i++) states.write(word_at(bytes, i));
  }
  std::vector<uint8_t> gates, want;
  for (uint32_t tile = 0; tile < c.tiles; tile += c.tiles_per_block) {
    for (uint32_t row = 0; row < c.rows; row += c.rows_per_block) {
      bbs::Visit visit = {};
      visit.tiles = std::min(c.tiles_per_block, c.tiles - tile);
      visit.rows = std::min(c.rows_per_block, c.rows - row) / bbs::kRows;
      visit.last_group = tile + visit.tiles == c.tiles;
      feed(random, layer, visit, tile, row, gates, want);
      visits.write(visit);
    }
  }
  for (size_t i = 0; i < gates.size() / 8; i++) words.write(word_at(gates, i));
  bbs::CellCommandStream commands("commands");
  tb::tell(commands, bbs::cell_command(c, s));
  bbs::cell(commands, visits, states, words, memory, outputs);
  if (bbs::has(c, bbs::kFlagStateOut)) {
    const std::vector<uint8_t> bytes = state_bytes(layer);
    want.insert(want.end(), bytes.begin(), bytes.end());
  }
  for (size_t i = 0; i < want.size() / 8; i++)
    TB_EXPECT(outputs.read(), word_at(want, i), "flags %u: output word %zu", c.flags, i);
  TB_EXPECT(tb::drained(visits), true, "visits left over");
  TB_EXPECT(tb::drained(states), true, "states left over");
  TB_EXPECT(tb::drained(words), true, "gates left over");
  TB_EXPECT(tb::drained(outputs), true, "outputs too many");
  return (int64_t)want.size();
}

Layer random_layer(tb::Random& random, uint32_t base) {
  Layer layer;
  bbs::Command& c = layer.c;
  c.rows = random.between(1, 5) * kRowsStep;
  c.rows_per_block = random.between(1, (int32_t)(c.rows / kRowsStep)) * kRowsStep;
  c.tiles = random.between(1, 5);
  c.tiles_per_block = random.between(1, (int32_t)c.tiles);
  c.groups = c.groups_per_pass = c.bank_size = 1;
  c.shift = random.between(0, 8);
  c.cell_base = base;
  tb::set_quotients(c);
  layer.units = c.rows / 4;
  layer.states.resize(c.tiles * layer.units * bbs::kCols);
  c.state_words = (uint32_t)layer.states.size() / 4;
  return layer;
}

// Two layers that take turns: their states must not disturb each other. Later steps see fewer
// columns, and the states of the others stay.
int64_t sequences(tb::Random& random) {
  std::vector<bbs::CellWord> memory(bbs::kCellDepth);
  for (bbs::CellWord& word : memory) word.v[0] = word.v[1] = (int16_t)random.between(-99, 99);
  Layer layers[2] = {random_layer(random, 3), {}};
  const uint32_t end = 3 + 2 * layers[0].c.state_words;
  layers[1] = random_layer(random, end);
  if (end + 2 * layers[1].c.state_words > bbs::kCellDepth) return 0;
  const uint32_t kinds[2] = {random.once_in(2) ? bbs::kFlagLstm : bbs::kFlagGru,
                             random.once_in(2) ? bbs::kFlagLstm : bbs::kFlagGru};
  const bool zero = random.once_in(2);
  int64_t count = 0;
  for (int t = 0; t < 4; t++) {
    for (int i = 0; i < 2; i++) {
      bbs::Command& c = layers[i].c;
      c.flags = kinds[i];
      if (t == 0) c.flags |= zero ? bbs::kFlagStateZero : bbs::kFlagStateIn;
      if (t == 3) c.flags |= bbs::kFlagStateOut;
      if (t > 0) c.tiles = random.between(1, (int32_t)c.tiles);
      tb::set_quotients(c);
      // Columns that were never worked on have no state 0 of their own.
      c.last_columns = t == 0 && zero ? bbs::kCols : random.between(0, bbs::kCols);
      count += step(random, layers[i], memory.data());
    }
  }
  return count;
}

// A command of one bank that the engine takes.
bbs::Command good() {
  bbs::Command c = {};
  c.op = bbs::kOpMatrix;
  c.signature = bbs::kSignature;
  c.flags = bbs::kFlagLstm | bbs::kFlagToMemory | bbs::kFlagDense;
  c.features = c.input_stride = c.bank_size = c.keep = bbs::kPack;
  c.rows = c.rows_per_block = kRowsStep;
  c.output_stride = kRowsStep / 4;
  c.tiles = c.tiles_per_block = c.groups = c.groups_per_pass = c.pace = c.last_columns = 1;
  c.state_words = bbs::tensor_words(c.rows) / 2;
  tb::set_quotients(c);
  return c;
}

int64_t refused() {
  int64_t count = 0;
  bbs::Shape s = {};
  const auto expect = [&](const bbs::Command& c, bbs::Status want, const char* what) {
    TB_EXPECT(bbs::check_command(c, 1 << 20, 0, s), want, "%s", what);
    count++;
  };
  expect(good(), bbs::kCellWords > 0 ? bbs::kStatusOk : bbs::kStatusCellOverflow, "good");
  bbs::Command c = good();
  c.flags &= ~bbs::kFlagLstm;
  c.output_stride = c.rows;
  expect(c, bbs::kStatusOk, "no cell at all");
  const uint32_t no_flags[] = {bbs::kFlagGru, bbs::kFlagSumsOut, bbs::kFlagResidual,
                               bbs::kFlagSumColumns, bbs::kFlagStateZero | bbs::kFlagStateIn,
                               bbs::kFlagStateOut | bbs::kFlagToChain};
  for (const uint32_t flags : no_flags) {
    c = good();
    c.flags |= flags;
    expect(c, bbs::kStatusBadOp, "flags that contradict each other");
  }
  for (const bbs::Flag flag : {bbs::kFlagStateIn, bbs::kFlagStateOut, bbs::kFlagStateZero}) {
    c = good();
    c.flags = (c.flags & ~bbs::kFlagLstm) | flag;
    c.output_stride = c.rows;
    expect(c, bbs::kStatusBadOp, "states without cells");
  }
  c = good();
  c.flags ^= bbs::kFlagLstm | bbs::kFlagGru;
  c.shift = 9;
  expect(c, bbs::kStatusBadOp, "shift");
  if (bbs::kCellWords == 0) return count;
  c = good();
  c.output_stride = c.rows / 4 - bbs::kPack;
  expect(c, bbs::kStatusBadShape, "output stride");
  c = good();
  c.rows += bbs::kRowStep * (bbs::kRowStep % (4 * bbs::kPack) != 0);
  c.output_stride = c.rows;
  tb::set_quotients(c);
  if (c.rows != kRowsStep) expect(c, bbs::kStatusBadShape, "rows");
  c = good();
  c.last_columns = bbs::kCols + 1;
  expect(c, bbs::kStatusBadShape, "last columns");
  c = good();
  c.last_columns = 0;
  expect(c, bbs::kStatusOk, "a step without columns");
  c.cell_base = bbs::kCellWords - bbs::tensor_words(c.rows);
  expect(c, bbs::kStatusOk, "the end of the cell memory");
  c.cell_base++;
  expect(c, bbs::kStatusCellOverflow, "beyond the cell memory");
  c = good();
  c.flags |= bbs::kFlagStateOut;
  c.state_words = bbs::kCellWords / 2 + 1;
  expect(c, bbs::kStatusCellOverflow, "states beyond the cell memory");
  c = good();
  c.flags |= bbs::kFlagStateOut;
  c.state = (1 << 20) - c.state_words;
  expect(c, bbs::kStatusOk, "states at the end of memory");
  c.state++;
  expect(c, bbs::kStatusOutOfMemoryRange, "states beyond memory");
  c.flags ^= bbs::kFlagStateOut | bbs::kFlagStateIn;
  c.residual = c.state;
  expect(c, bbs::kStatusOutOfMemoryRange, "initial states beyond memory");
  return count;
}

}  // namespace

int main() {
  tb::Random random(31);
  int64_t count = tanh_table() + refused();
  if (bbs::kCellWords > 0) count += cells(random);
  for (int i = 0; bbs::kCellWords > 0 && i < 300 / tb::kShare; i++) count += sequences(random);
  return tb::finish("cell_tb", count, "values");
}
