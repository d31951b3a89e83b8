// SPDX-License-Identifier: Apache-2.0
// Random programs: commands that take their input from memory, from the chain or from the image
// memory, and their weights from memory or from the block buffer.
#pragma once

#include "memory_block.hpp"

namespace tb {

// Of an input of `tiles` x `features`, an image or plain features.
inline bool command_for(Random& random, const Limits& limits, uint32_t tiles, uint32_t features,
                        bbs::Command& c) {
  if (random.once_in(3)) {
    c = random_linear(random, limits, tiles, features);
    return true;
  }
  for (int i = 0; i < 8; i++) {
    const int most = tiles * bbs::kCols;
    const int pixels = random.between(most - bbs::kCols + 1, most);
    const int width = random.between(1, std::min(pixels, 24));
    const int height = pixels / width;
    if (quotient_up(height * width, bbs::kCols) != tiles) continue;
    if (random_image(random, limits, height, width, features, c)) return true;
  }
  return false;
}

// Takes the input from the chain. Plain features come once, so they must fit one pass.
inline bool take_from_chain(Random& random, const Limits& limits, const Program& program,
                            bbs::Command& c) {
  const Tensor& front = program.chain().front();
  for (int i = 0; i < 12; i++) {
    if (!command_for(random, limits, front.tiles, front.features, c)) continue;
    c.flags |= bbs::kFlagFromChain;
    if (has(c, bbs::kFlagImage)) return true;
    c.groups_per_pass = c.groups;
    fit_loops(c);
    if (pass_count(c) == 1) return true;
  }
  return false;
}

// The output as it was read from memory, by a command of the same tensor.
inline bool take_output(Random& random, const Limits& limits, const Program& program,
                        bbs::Command& c) {
  const StoredTensor& y = program.outputs.back();
  if (!command_for(random, limits, y.tensor.tiles, y.tensor.features, c)) return false;
  c.input_stride = y.stride;
  return true;
}

// Other windows of the image that lies in the image memory.
inline bool take_resident_image(Random& random, const Limits& limits, const Program& program,
                                bbs::Command& c) {
  const bbs::Command& stored = program.image().command;
  if (stored.image_words < std::max(1u, whole_image_words(stored))) return false;
  for (int i = 0; i < 8; i++) {
    if (!random_image(random, limits, stored.height, stored.width, stored.channels, c)) continue;
    c.image_base = stored.image_base;
    c.image_words = stored.image_words;
    c.flags |= bbs::kFlagResidentInput;
    return true;
  }
  return false;
}

// Leaves its output in the chain. Rows must come tile by tile, so that a tile meets all of them
// before the next one, and there must be room.
inline void leave_in_chain(Random& random, const Program& program, bbs::Command& c) {
  if (has(c, bbs::kFlagSumsOut)) return;
  const uint32_t level = program.chain_level() + c.tiles * (output_rows(c) / bbs::kPack);
  if (level > bbs::kChainWords) return;
  if ((c.parts > 1 || c.rows > c.rows_per_block) && c.tiles_per_block > 1) return;
  c.flags &= ~bbs::kFlagStateOut;  // states would follow into the chain
  c.flags |= bbs::kFlagToChain;
  if (random.once_in(2)) c.flags &= ~bbs::kFlagToMemory;
}

// Leaves its weights in the block buffer, where they fit.
inline void leave_weights(Random& random, bbs::Command& c) {
  bbs::Command fitted = c;
  fitted.groups_per_pass = c.groups;
  fit_loops(fitted);
  const int room = bbs::kBlockWords - (int)block_size(c);
  // An image was placed for as many tiles a block as it has.
  const bool fits = pass_count(fitted) == 1 && fitted.tiles_per_block == c.tiles_per_block;
  if (!fits || room < 0) return;
  c = fitted;
  c.flags |= bbs::kFlagKeepWeights;
  c.block_base = random.between(0, room);
}

// A layer with the weights of an earlier one, for new inputs from memory.
inline Layer with_resident_weights(Random& random, const StoredBlock& block) {
  Layer layer = block.layer;
  bbs::Command& c = layer.command;
  c.flags &= ~(bbs::kFlagKeepWeights | bbs::kFlagFromChain | bbs::kFlagResidentInput |
               bbs::kFlagToChain);
  c.flags |= bbs::kFlagResidentWeights | bbs::kFlagToMemory;
  if (!has(c, bbs::kFlagImage)) {
    c.tiles = random.between(1, 4);
    while (of_cell(c) && c.cell_base + cell_size(c) > bbs::kCellWords) c.tiles--;
    c.state_words = cell_size(c) / 2;
    c.tiles_per_block = random.between(1, c.tiles);
    fit_loops(c);
  }
  if (has(c, bbs::kFlagResidual)) layer.residual = random_tensor(random, c.tiles, c.rows);
  layer.bias.clear();
  layer.multipliers.clear();
  random_parameters(random, layer);
  return layer;
}

// A step with the states that the last cell has left, of as many tiles or fewer.
inline bool take_step(Random& random, const Limits& limits, const Program& program,
                      bbs::Command& c) {
  for (size_t i = program.commands.size(); i-- > 0;) {
    const bbs::Command& before = program.commands[i];
    if (!of_cell(before)) continue;
    const uint32_t tiles = random.between(1, before.tiles);
    const uint32_t features = round_up(random.between(1, limits.features), bbs::kPack);
    c = random_linear(random, limits, tiles, features);
    const uint32_t cells = bbs::kFlagLstm | bbs::kFlagGru;
    c.flags = (before.flags & (cells | bbs::kFlagTable)) | bbs::kFlagToMemory |
              (c.flags & (bbs::kFlagDense | bbs::kFlagInt4 | bbs::kFlagStateOut));
    c.rows = before.rows, c.output_stride = before.output_stride;
    join_parts(c);
    c.cell_base = before.cell_base, c.shift = before.shift;
    c.state_words = cell_size(c) / 2;
    c.last_columns = random.between(0, bbs::kCols);
    cut_loops(random, c);
    return true;
  }
  return false;
}

inline void add_random_layer(Random& random, const Limits& limits, Program& program) {
  if (!program.blocks().empty() && random.once_in(2)) {
    const int last = (int)program.blocks().size() - 1;
    program.add(with_resident_weights(random, program.blocks()[random.between(0, last)]));
    return;
  }
  bbs::Command c;
  bool reads_output = false;
  if (!program.chain().empty() && take_from_chain(random, limits, program, c)) {
  } else if (random.once_in(2) && program.image().tensor.tiles > 0 &&
             take_resident_image(random, limits, program, c)) {
  } else if (random.once_in(2) && take_step(random, limits, program, c)) {
  } else if (!program.outputs.empty() && take_output(random, limits, program, c)) {
    reads_output = true;
  } else {
    c = random_command(random, limits);
  }
  if (random.once_in(3)) leave_weights(random, c);
  if (random.once_in(2)) leave_in_chain(random, program, c);
  const Layer layer = random_layer(random, c);
  if (reads_output)
    program.add(layer, StoredTensor(program.outputs.back()));
  else
    program.add(layer);
}

inline Program random_program(Random& random, const Limits& limits, int layers) {
  Program program(random);
  for (int i = 0; i < layers; i++) add_random_layer(random, limits, program);
  program.close();
  return program;
}

}  // namespace tb
