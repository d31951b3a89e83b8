// SPDX-License-Identifier: Apache-2.0
// A memory block with an engine at it: chains of layers, and the registers by name.
#pragma once

#include "layer.hpp"

namespace tb {

struct Registers {
  uint32_t status, completed, version, lanes, cols, requant_units;
  uint32_t vector_words, block_words, block_rows, sum_words;
};

inline Registers run_engine(uint64_t* block, uint32_t words, uint32_t first, uint32_t count) {
  Registers r;
  std::memset(&r, 0xff, sizeof(r));
  bbs_engine(block, block, block, block, block, words, first, count, &r.status, &r.completed,
             &r.version, &r.lanes, &r.cols, &r.requant_units, &r.vector_words, &r.block_words,
             &r.block_rows, &r.sum_words);
  return r;
}

// Layers one after the other, each reading what the one before wrote.
class Chain {
 public:
  // The first layer's input tensor.
  explicit Chain(const std::vector<int8_t>& x) : x_(x) {
    input_ = 0;
    append_bytes(memory_, x);
  }

  void add(Layer layer) {
    place(layer, memory_);
    bbs::Command& c = layer.command;
    c.input = input_;
    c.output = (uint32_t)memory_.size();
    expected_.push_back(expected_output(layer, x_));
    memory_.resize(memory_.size() + expected_.back().size(), 0x5555555555555555u);
    input_ = c.output;
    x_.clear();
    for (const uint64_t word : expected_.back())
      for (int b = 0; b < 8; b++) x_.push_back((int8_t)(uint8_t)(word >> (8 * b)));
    commands_.push_back(c);
  }

  // Puts the commands behind everything else; the block is complete then.
  void close() {
    first_command = (uint32_t)memory_.size();
    for (const bbs::Command& c : commands_) {
      memory_.resize(memory_.size() + bbs::kCommandWords);
      encode_command(c, &memory_[memory_.size() - bbs::kCommandWords]);
    }
  }

  void expect_outputs(const char* name) const {
    for (size_t layer = 0; layer < commands_.size(); layer++)
      for (size_t i = 0; i < expected_[layer].size(); i++)
        TB_EXPECT(memory_[commands_[layer].output + i], expected_[layer][i],
                  "%s: layer %zu, output word %zu", name, layer, i);
  }

  Registers run(uint32_t first, uint32_t count) {
    return run_engine(memory_.data(), (uint32_t)memory_.size(), first, count);
  }

  Words& memory() { return memory_; }
  const std::vector<bbs::Command>& commands() const { return commands_; }
  uint32_t first_command = 0;

 private:
  Words memory_;
  std::vector<int8_t> x_;
  uint32_t input_ = 0;
  std::vector<Words> expected_;
  std::vector<bbs::Command> commands_;
};

}  // namespace tb
