// SPDX-License-Identifier: Apache-2.0
// What each stage needs of a command: fields of Command and Shape by the same names. `sequence`
// tells every stage in a stream of its own, so that each begins with a command when it is ready.
#pragma once

#include "check.hpp"
#include "dataflow.hpp"

namespace bbs {

// `end` comes behind the last command of a region, and ends the stage.
struct UnpackCommand {
  uint32_t flags;
  uint16_t keep;
  uint8_t index_bits;
  bool end;
};

struct ColumnsCommand {
  uint32_t fills;
  uint32_t image_tiles;
  uint16_t height;
  uint16_t width;
  uint16_t out_height;
  uint16_t out_width;
  uint16_t image_words;
  uint8_t kernel_height;
  uint8_t stride_y;
  uint8_t stride_x;
  uint8_t dilation_y;
  uint8_t pad_top;
  uint8_t pad_left;
  bool end;
};

struct GatherCommand {
  uint32_t flags;
  uint32_t fills;
  uint32_t image_tiles;
  uint16_t bank_size;
  uint16_t part_channels;
  uint16_t channels;
  uint16_t load_pace;
  uint16_t image_base;
  uint16_t image_words;
  uint16_t height;
  uint16_t width;
  uint8_t kernel_height;
  uint8_t kernel_width;
  uint8_t stride_x;
  uint8_t dilation_y;
  uint8_t dilation_x;
  int8_t pad_value;
  bool end;
};

struct MultiplyCommand {
  uint32_t flags;
  uint32_t fills;
  uint16_t keep;
  uint16_t bank_size;
  uint16_t pace;
  bool stays;
  bool end;
};

struct FinishCommand {
  uint32_t flags;
  uint32_t state_words;
  int32_t a_scale;
  int32_t b_scale;
  int8_t zero_point;
  int8_t a_zero;
  int8_t b_zero;
  int8_t out_zero;
  int8_t low;
  int8_t high;
  uint8_t shift;
  uint8_t last_columns;
  uint8_t last_words;
  bool end;
};

struct CellCommand {
  uint32_t flags;
  uint32_t rows;
  uint32_t state_words;
  uint32_t visits;
  uint16_t cell_base;
  uint8_t shift;
  uint8_t last_columns;
  bool end;
};

struct DeliverCommand {
  uint32_t flags;
  uint32_t links;
  uint32_t last_links;
  uint8_t last_words;
  bool end;
};

// One that is worked on, and the next one.
constexpr int kStageDepth = 2;
using UnpackCommandStream = Stream<UnpackCommand, kStageDepth>;
using ColumnsCommandStream = Stream<ColumnsCommand, kStageDepth>;
using GatherCommandStream = Stream<GatherCommand, kStageDepth>;
using MultiplyCommandStream = Stream<MultiplyCommand, kStageDepth>;
using FinishCommandStream = Stream<FinishCommand, kStageDepth>;
using CellCommandStream = Stream<CellCommand, kStageDepth>;
using DeliverCommandStream = Stream<DeliverCommand, kStageDepth>;

inline UnpackCommand unpack_command(const Command& c) {
#pragma HLS INLINE
  UnpackCommand told = {};
  told.flags = c.flags;
  told.keep = (uint16_t)c.keep;
  told.index_bits = (uint8_t)c.index_bits;
  return told;
}

inline ColumnsCommand columns_command(const Command& c, const Shape& s) {
#pragma HLS INLINE
  ColumnsCommand told = {};
  told.fills = s.fills;
  told.image_tiles = s.image_tiles;
  told.height = (uint16_t)c.height;
  told.width = (uint16_t)c.width;
  told.out_height = (uint16_t)c.out_height;
  told.out_width = (uint16_t)c.out_width;
  told.image_words = (uint16_t)c.image_words;
  told.kernel_height = (uint8_t)c.kernel_height;
  told.stride_y = (uint8_t)c.stride_y;
  told.stride_x = (uint8_t)c.stride_x;
  told.dilation_y = (uint8_t)c.dilation_y;
  told.pad_top = (uint8_t)c.pad_top;
  told.pad_left = (uint8_t)c.pad_left;
  return told;
}

inline GatherCommand gather_command(const Command& c, const Shape& s) {
#pragma HLS INLINE
  GatherCommand told = {};
  told.flags = c.flags;
  told.fills = s.fills;
  told.image_tiles = s.image_tiles;
  told.bank_size = (uint16_t)c.bank_size;
  told.part_channels = (uint16_t)c.part_channels;
  told.channels = (uint16_t)c.channels;
  told.load_pace = (uint16_t)c.load_pace;
  told.image_base = (uint16_t)c.image_base;
  told.image_words = (uint16_t)c.image_words;
  told.height = (uint16_t)c.height;
  told.width = (uint16_t)c.width;
  told.kernel_height = (uint8_t)c.kernel_height;
  told.kernel_width = (uint8_t)c.kernel_width;
  told.stride_x = (uint8_t)c.stride_x;
  told.dilation_y = (uint8_t)c.dilation_y;
  told.dilation_x = (uint8_t)c.dilation_x;
  told.pad_value = (int8_t)c.pad_value;
  return told;
}

inline MultiplyCommand multiply_command(const Command& c, const Shape& s) {
#pragma HLS INLINE
  MultiplyCommand told = {};
  told.flags = c.flags;
  told.fills = s.fills;
  told.keep = (uint16_t)c.keep;
  told.bank_size = (uint16_t)c.bank_size;
  told.pace = (uint16_t)c.pace;
  told.stays = s.stays;
  return told;
}

inline FinishCommand finish_command(const Command& c, const Shape& s) {
#pragma HLS INLINE
  FinishCommand told = {};
  told.flags = c.flags;
  told.state_words = c.state_words;
  told.a_scale = c.a_scale;
  told.b_scale = c.b_scale;
  told.zero_point = (int8_t)c.zero_point;
  told.a_zero = (int8_t)c.a_zero;
  told.b_zero = (int8_t)c.b_zero;
  told.out_zero = (int8_t)c.out_zero;
  told.low = (int8_t)c.low;
  told.high = (int8_t)c.high;
  told.shift = (uint8_t)c.shift;
  told.last_columns = (uint8_t)c.last_columns;
  told.last_words = (uint8_t)s.last_words;
  return told;
}

inline CellCommand cell_command(const Command& c, const Shape& s) {
#pragma HLS INLINE
  CellCommand told = {};
  told.flags = c.flags;
  told.rows = c.rows;
  told.state_words = c.state_words;
  told.visits = s.visits;
  told.cell_base = (uint16_t)c.cell_base;
  told.shift = (uint8_t)c.shift;
  told.last_columns = (uint8_t)c.last_columns;
  return told;
}

inline DeliverCommand deliver_command(const Command& c, const Shape& s) {
#pragma HLS INLINE
  DeliverCommand told = {};
  told.flags = c.flags;
  told.links = s.links;
  told.last_links = s.last_links;
  told.last_words = (uint8_t)s.last_words;
  return told;
}

// A command of the stage that only ends it.
template <typename C>
inline C end_mark() {
#pragma HLS INLINE
  C told = {};
  told.end = true;
  return told;
}

}  // namespace bbs
