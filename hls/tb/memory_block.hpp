// SPDX-License-Identifier: Apache-2.0
// A memory block with an engine at it: programs, what memory must hold behind them, and the
// registers by name.
#pragma once

#include <deque>
#include <string>

#include "commands.hpp"

namespace tb {

struct Registers {
  uint32_t status, completed, version, lanes, rows, cols, requant_units, taps;
  uint32_t vector_words, block_words, queue_words, block_rows, sum_words, image_words;
  uint32_t chain_words, fabric_lanes, index_bits, cell_words;
};

inline Registers run_engine(uint64_t* block, uint32_t words, uint32_t first, uint32_t count) {
  Registers r;
  std::memset(&r, 0xff, sizeof(r));
  bbs_engine(block, block, block, block, block, block, words, first, count, &r.status,
             &r.completed, &r.version, &r.lanes, &r.rows, &r.cols, &r.requant_units, &r.taps,
             &r.vector_words, &r.block_words, &r.queue_words, &r.block_rows, &r.sum_words,
             &r.image_words, &r.chain_words, &r.fabric_lanes, &r.index_bits, &r.cell_words);
  return r;
}

// An image that lies in the image memory as a whole.
struct StoredImage {
  bbs::Command command;
  Tensor tensor;
};

// Weights that lie in the block buffer.
struct StoredBlock {
  Layer layer;
  uint32_t from, to;
};

// A tensor in memory.
struct StoredTensor {
  Tensor tensor;
  uint32_t offset, stride;
};

// Commands, all that they touch, and what must be in memory when they have run. What lies in the
// chain, in the image memory, in the block buffer and in the cell memory is followed as the commands
// are added.
class Program {
 public:
  explicit Program(Random& random)
      : random_(random), cells_(2 * bbs::kCellDepth), known_(bbs::kCellDepth) {}

  // A tensor somewhere in memory, `stride` features from one tile to the next.
  uint32_t put(const Tensor& x, uint32_t stride) {
    std::vector<int8_t> bytes;
    for (uint32_t tile = 0; tile < x.tiles; tile++) {
      const int8_t* from = x.bytes.data() + (size_t)tile * x.features * bbs::kCols;
      bytes.insert(bytes.end(), from, from + (size_t)x.features * bbs::kCols);
      if (tile + 1 == x.tiles) break;
      for (uint32_t i = 0; i < (stride - x.features) * bbs::kCols; i++)
        bytes.push_back(random_.byte());
    }
    const uint32_t offset = (uint32_t)expected_.size();
    append_bytes(expected_, bytes);
    memory_.insert(memory_.end(), expected_.begin() + offset, expected_.end());
    return offset;
  }

  // Adds a layer whose input comes from where its flags say: of memory, a new random tensor.
  void add(const Layer& layer) {
    const bbs::Command& c = layer.command;
    const bool loads = !has(c, bbs::kFlagFromChain) && !has(c, bbs::kFlagResidentInput);
    const Tensor x = loads ? random_input(random_, c) : Tensor();
    add(layer, {x, loads ? put(x, c.input_stride) : somewhere(), c.input_stride});
  }

  // Adds a layer with its input at a given place in memory.
  void add(Layer layer, StoredTensor input) {
    bbs::Command& c = layer.command;
    c.input = input.offset;
    Tensor x = input.tensor;
    if (has(c, bbs::kFlagFromChain)) {
      x = chain_.front();
      chain_.pop_front();
    }
    if (has(c, bbs::kFlagResidentInput)) x = image_.tensor;
    place(layer);
    set_order(c);
    if (of_cell(c)) prepare_cell(c);
    const Tensor y = expected_output(layer, x, cells_);
    if (has(c, bbs::kFlagToMemory)) {
      const uint32_t factor = has(c, bbs::kFlagSumsOut) ? 4 : 1;
      c.output = expect(y, factor * c.output_stride);
      outputs.push_back({y, c.output, factor * c.output_stride});
    } else {
      c.output = somewhere();
    }
    if (has(c, bbs::kFlagStateOut)) c.state = expect(states_of(c), bbs::kPack);
    if (has(c, bbs::kFlagToChain)) chain_.push_back(y);
    if (has(c, bbs::kFlagImage) && !has(c, bbs::kFlagResidentInput)) image_ = {c, x};
    follow_blocks(layer);
    commands.push_back(c);
    alone_.push_back(chain_.empty());
  }

  // Puts the commands behind everything else; the block is complete then.
  void close() {
    first_command = (uint32_t)memory_.size();
    for (const bbs::Command& c : commands) {
      memory_.resize(memory_.size() + bbs::kCommandWords);
      encode_command(c, &memory_[memory_.size() - bbs::kCommandWords]);
    }
    expected_.insert(expected_.end(), memory_.begin() + first_command, memory_.end());
  }

  void expect_outputs(const char* name) const {
    for (size_t i = 0; i < memory_.size(); i++)
      if (memory_[i] != expected_[i])
        differs((int64_t)memory_[i], (int64_t)expected_[i], "%s: word %zu, %s", name, i,
                owner(i).c_str());
  }

  Registers run(uint32_t first, uint32_t count) {
    return run_engine(memory_.data(), (uint32_t)memory_.size(), first, count);
  }

  // What is in the chain, in the order in which it comes out.
  const std::deque<Tensor>& chain() const { return chain_; }
  uint32_t chain_level() const {
    uint32_t level = 0;
    for (const Tensor& x : chain_) level += x.tiles * (x.features / bbs::kPack);
    return level;
  }
  // The image that a command may find in the image memory; none if it has no tiles.
  const StoredImage& image() const { return image_; }
  const std::vector<StoredBlock>& blocks() const { return blocks_; }
  Words& memory() { return memory_; }
  // Whether another start may follow after command `i`: a run leaves nothing in the chain.
  bool may_stop_after(size_t i) const { return alone_[i]; }

  std::vector<bbs::Command> commands;
  std::vector<StoredTensor> outputs;
  uint32_t first_command = 0;

 private:
  // An offset of what is not touched.
  uint32_t somewhere() { return (uint32_t)random_.bits(); }

  // Room for an output, and what will be there.
  uint32_t expect(const Tensor& y, uint32_t stride) {
    constexpr uint64_t untouched = 0x5555555555555555u;
    const uint32_t offset = (uint32_t)memory_.size();
    const uint32_t tile = y.features * bbs::kCols / bbs::kPortBytes;
    const uint32_t step = stride * bbs::kCols / bbs::kPortBytes;
    Words words;
    append_bytes(words, y.bytes);
    memory_.resize(offset + (y.tiles - 1) * step + tile, untouched);
    expected_.resize(memory_.size(), untouched);
    for (uint32_t t = 0; t < y.tiles; t++)
      std::copy_n(words.begin() + t * tile, tile, expected_.begin() + offset + t * step);
    return offset;
  }

  void place(Layer& layer) {
    bbs::Command& c = layer.command;
    const bool resident = has(c, bbs::kFlagResidentWeights);
    c.weights = resident ? somewhere() : (uint32_t)expected_.size();
    if (!resident) append_plane(expected_, c, layer.weights, weight_width(c));
    c.indices = resident ? somewhere() : (uint32_t)expected_.size();
    if (!resident) append_plane(expected_, c, layer.indices, c.index_bits);
    c.parameters = (uint32_t)expected_.size();
    for (uint32_t row = 0; row < c.rows; row++) expected_.push_back(parameter_word(layer, row));
    c.table = has(c, bbs::kFlagTable) ? (uint32_t)expected_.size() : somewhere();
    if (has(c, bbs::kFlagTable)) append_bytes(expected_, layer.table);
    memory_.insert(memory_.end(), expected_.begin() + memory_.size(), expected_.end());
    c.residual = somewhere();
    if (has(c, bbs::kFlagResidual)) c.residual = put(layer.residual, c.output_stride);
  }

  // Whether the command follows: often, where it does not read an output of those that it would
  // follow. Inputs are outputs as a whole; whatever else is read is there from the start.
  void set_order(bbs::Command& c) {
    const bool loads = !has(c, bbs::kFlagFromChain) && !has(c, bbs::kFlagResidentInput);
    const auto made = [&](const StoredTensor& y) { return loads && y.offset == c.input; };
    const bool waits = std::any_of(outputs.begin() + apart_, outputs.end(), made);
    c.flags &= ~bbs::kFlagFollows;
    if (waits || random_.once_in(6))
      apart_ = outputs.size();
    else
      c.flags |= bbs::kFlagFollows;
  }

  // States of a cell that nothing has left start at zero.
  void prepare_cell(bbs::Command& c) {
    const auto first = known_.begin() + c.cell_base, end = first + cell_size(c);
    const bool unknown = std::find(first, end, false) != end;
    if (unknown && !has(c, bbs::kFlagStateIn)) c.flags |= bbs::kFlagStateZero;
    std::fill(first, end, true);
    if (!has(c, bbs::kFlagStateIn)) return;
    const auto states = cells_.begin() + 2 * c.cell_base;
    for (uint32_t i = 0; i < 2 * cell_size(c); i++) states[i] = (int16_t)random_.bits();
    c.residual = put(states_of(c), bbs::kPack);
  }

  // As a tensor whose tiles are words, which lie in memory as they come.
  Tensor states_of(const bbs::Command& c) const {
    Tensor y(c.state_words / bbs::kPortWords, bbs::kPack);
    for (size_t i = 0; i < y.bytes.size(); i++) {
      const uint32_t state = (uint16_t)cells_[2 * c.cell_base + i / 2];
      y.bytes[i] = (int8_t)(uint8_t)(state >> (i % 2 * 8));
    }
    return y;
  }

  void follow_blocks(const Layer& layer) {
    const bbs::Command& c = layer.command;
    uint32_t from = 0, to = 0;
    if (has(c, bbs::kFlagResidentWeights)) return;
    if (has(c, bbs::kFlagKeepWeights)) {
      from = c.block_base;
      to = c.block_base + block_size(c);
    } else if (weights_stay(c)) {
      to = block_size(c);
    } else if (std::min(c.tiles, c.tiles_per_block) > 1) {
      to = c.groups_per_pass * c.keep * (std::min(c.rows, c.rows_per_block) / bbs::kRows);
    }
    const auto gone = [&](const StoredBlock& b) { return b.from < to && from < b.to; };
    blocks_.erase(std::remove_if(blocks_.begin(), blocks_.end(), gone), blocks_.end());
    if (has(c, bbs::kFlagKeepWeights)) blocks_.push_back({layer, from, to});
  }

  std::string owner(size_t word) const {
    for (size_t i = 0; i < outputs.size(); i++)
      if (word >= outputs[i].offset && word < outputs[i].offset + size_of(outputs[i]))
        return "output " + std::to_string(i) + " in memory";
    return "not an output";
  }

  static size_t size_of(const StoredTensor& y) {
    const size_t features = (size_t)(y.tensor.tiles - 1) * y.stride + y.tensor.features;
    return features * bbs::kCols / bbs::kPortBytes;
  }

  Random& random_;
  Words memory_;    // before the run
  Words expected_;  // behind it
  std::deque<Tensor> chain_;
  StoredImage image_;
  std::vector<StoredBlock> blocks_;
  Cells cells_;
  std::vector<bool> known_;  // words of the cell memory, since the program began
  std::vector<bool> alone_;
  size_t apart_ = 0;  // outputs of commands before the last one that does not follow
};

}  // namespace tb
