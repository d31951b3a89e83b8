// SPDX-License-Identifier: Apache-2.0
// A command is checked before anything moves: a refused one leaves memory as it was.
#pragma once

#include "command.hpp"
#include "types.hpp"

namespace bbs {

// Counts that several stages need; worked out once a command, so that what one stage writes and
// the next one reads cannot differ.
struct Shape {
  uint32_t passes;          // fillings of the vector buffer that cover the features
  uint32_t last_groups;     // groups of the last pass
  uint32_t tile_groups;     // groups of tiles_per_block column tiles
  uint32_t row_groups;      // groups of ROWS rows
  uint32_t part_rows;       // row groups of a part
  uint32_t block_rows;      // row groups of a weight block
  uint32_t blocks;          // weight blocks of a part
  uint32_t fills;           // fillings of the vector buffer in all
  uint32_t image_tiles;     // column tiles of the image
  uint32_t channel_blocks;  // banks that the channels of a part take at each tap
  uint32_t totals;          // row groups of all tiles
  uint32_t chain_change;    // words in the chain afterwards less those before, modulo 2^32
};

// A divider takes 32 cycles and as many LUTs as a process: a function of its own, so that all
// quotients share one (ALLOCATION). They are worked out while another command runs.
inline uint32_t divide_up(uint32_t a, uint32_t b) {
#pragma HLS INLINE off
  return a == 0 ? 0 : (a - 1) / b + 1;
}

// Column tiles of so many columns: a constant divides with less.
inline uint32_t tiles_of(uint32_t columns) {
#pragma HLS INLINE
  return columns == 0 ? 0 : (columns - 1) / kCols + 1;
}

// Counts and offsets are products of two dozen pairs a command, three or four DSPs each where they
// are written plainly. A function of its own lets its callers share a few (ALLOCATION).
inline uint64_t times(uint32_t a, uint32_t b) {
#pragma HLS INLINE off
  return (uint64_t)a * b;
}

// Times a field of four bits, as strides and dilations are: a few additions.
inline uint32_t scaled(uint32_t value, uint32_t factor) {
#pragma HLS INLINE
  const uint32_t product = value * (factor & 15);
#pragma HLS BIND_OP variable=product op=mul impl=fabric
  return product;
}

// Flags that this build has something for. A maximum and sums of columns are for the windows of an
// image; tensors are combined in networks of images and in recurrent ones. Matrices alone do not
// pay for any.
constexpr uint32_t kKnownFlags = 2 * (uint32_t)kFlagStateOut - 1;
constexpr uint32_t kImageFlags = kFlagImage | kFlagMaximum | kFlagSumColumns | kFlagResidentInput;
constexpr uint32_t kCellFlags = kFlagStateZero | kFlagStateIn | kFlagStateOut;
constexpr uint32_t kBuiltFlags =
    kKnownFlags & ~(kImageWords == 0 ? kImageFlags : 0u) & ~(kCellWords == 0 ? kCellFlags : 0u) &
    ~(kImageWords == 0 && kCellWords == 0 ? (uint32_t)kFlagResidual : 0u);

// A constant where the build has nothing for the flag, so that nothing is built; a command that
// asks for it is refused.
inline bool has(const Command& c, Flag flag) {
#pragma HLS INLINE
  return (c.flags & kBuiltFlags & flag) != 0;
}

// What runs before the first command: every process ends at once. No command in memory has it.
constexpr uint32_t kNoOp = 0xffffffff;

inline bool is_nothing(const Command& c) {
#pragma HLS INLINE
  return c.op == kNoOp;
}

// Whether the weights outlive the command in the block buffer.
inline bool keeps_block(const Command& c) {
#pragma HLS INLINE
  return has(c, kFlagKeepWeights) || has(c, kFlagResidentWeights);
}

// An LSTM or GRU step: a unit has kGates rows and one output.
inline bool is_cell(const Command& c) {
#pragma HLS INLINE
  return kCellWords > 0 && (has(c, kFlagLstm) || has(c, kFlagGru));
}

// Parts of the channels that do not see each other; only images have more than one.
inline uint32_t parts_of(const Command& c) {
#pragma HLS INLINE
  return kImageWords == 0 ? 1 : c.parts;
}

// Features of the output that `rows` rows give.
inline uint32_t output_features(const Command& c, uint32_t rows) {
#pragma HLS INLINE
  return is_cell(c) ? rows / kGates : rows;
}

inline uint32_t weight_bits(const Command& c) {
#pragma HLS INLINE
  return has(c, kFlagInt4) ? 4 : 8;
}

// Features that a bank takes in the vector buffer: whole words.
inline uint32_t bank_space(const Command& c) {
#pragma HLS INLINE
  return c.bank_size < kPack ? kPack : c.bank_size;
}

// Port words of `features` features of a column tile; whole words only.
inline uint32_t tensor_words(uint32_t features) {
#pragma HLS INLINE
  return kPack == 1 ? features * kPortWords : features / kPack;
}

// Port words of `features` features of one tile of the output.
inline uint32_t output_words(const Command& c, uint32_t features) {
#pragma HLS INLINE
  return has(c, kFlagSumsOut) ? 4 * tensor_words(features) : tensor_words(features);
}

// Whether outputs come in the order in which a tensor lies: every tile's rows at once.
inline bool in_order(const Command& c, const Shape& s) {
#pragma HLS INLINE
  return c.tiles_per_block == 1 || (s.blocks == 1 && parts_of(c) == 1);
}

// Port words that a plane of `bits` bits a lane takes for one row group of `words` CSB words; a
// row group starts on a whole word.
inline uint32_t plane_row_words(uint32_t words, uint32_t bits) {
#pragma HLS INLINE off
  // Four bits hold every width, so a few additions do.
  const uint64_t plane_bits = (uint64_t)words * (kRows * kLanes) * (bits & 15);
#pragma HLS BIND_OP variable=plane_bits op=mul impl=fabric
  return (uint32_t)((plane_bits + 63) / 64);
}

// Port words of a whole plane: all passes of all rows.
inline uint64_t plane_words(const Command& c, const Shape& s, uint32_t bits) {
#pragma HLS INLINE
  const uint32_t full = plane_row_words((uint32_t)times(c.groups_per_pass, c.keep), bits);
  const uint32_t last = plane_row_words((uint32_t)times(s.last_groups, c.keep), bits);
  // Below 2^16 groups x 2^8 kept, ROWS x LANES bytes each: fits 32 bits.
  const uint32_t row_words = (uint32_t)times(s.passes - 1, full) + last;
  return times(s.row_groups, row_words);
}

inline Shape derive_shape(const Command& c) {
#pragma HLS INLINE
  Shape s;
  s.passes = divide_up(c.groups, c.groups_per_pass);
  s.last_groups = c.groups - (uint32_t)times(s.passes - 1, c.groups_per_pass);
  s.tile_groups = divide_up(c.tiles, c.tiles_per_block);
  s.row_groups = c.rows / kRows;
  s.part_rows = c.part_rows / kRows;
  s.block_rows = c.rows_per_block / kRows;
  s.blocks = divide_up(s.part_rows, s.block_rows);
  // With one pass the features of a part stay while its rows go by; with more, every visit loads
  // its own.
  const uint32_t part_fills = (uint32_t)times(s.tile_groups, parts_of(c));
  const uint32_t meetings = (uint32_t)times(part_fills, s.blocks);
  s.fills = s.passes == 1 ? part_fills : (uint32_t)times(meetings, s.passes);
  s.image_tiles = tiles_of((uint32_t)times(c.height, c.width));
  s.channel_blocks = divide_up(c.part_channels, c.bank_size);
  s.totals = (uint32_t)times(s.row_groups, c.tiles);
  s.chain_change = 0;
  return s;
}

inline Status check_cell_flags(const Command& c) {
#pragma HLS INLINE
  const bool in = has(c, kFlagStateIn), out = has(c, kFlagStateOut), zero = has(c, kFlagStateZero);
  if (!has(c, kFlagLstm) && !has(c, kFlagGru)) return in || out || zero ? kStatusBadOp : kStatusOk;
  if (has(c, kFlagLstm) && has(c, kFlagGru)) return kStatusBadOp;
  if (has(c, kFlagSumsOut) || has(c, kFlagResidual) || has(c, kFlagSumColumns)) return kStatusBadOp;
  if (has(c, kFlagGru) && c.shift > 8) return kStatusBadOp;
  if (in && zero) return kStatusBadOp;
  // States go where outputs go, so the chain must not take them for activations.
  if (out && has(c, kFlagToChain)) return kStatusBadOp;
  return kCellWords == 0 ? kStatusCellOverflow : kStatusOk;
}

inline Status check_flags(const Command& c) {
#pragma HLS INLINE
  if (kImageWords == 0 && (c.flags & kFlagImage)) return kStatusBadImage;
  if (c.op != kOpMatrix || (c.flags & ~kBuiltFlags)) return kStatusBadOp;
  const bool sums = has(c, kFlagSumsOut);
  if (sums && (has(c, kFlagTable) || has(c, kFlagToChain) || has(c, kFlagResidual)))
    return kStatusBadOp;
  if (has(c, kFlagProduct) && !has(c, kFlagResidual)) return kStatusBadOp;
  if (has(c, kFlagResidual) && c.shift > 47) return kStatusBadOp;
  if (has(c, kFlagFromChain) && has(c, kFlagResidentInput)) return kStatusBadOp;
  if (has(c, kFlagResidentInput) && !has(c, kFlagImage)) return kStatusBadOp;
  if (has(c, kFlagKeepWeights) && has(c, kFlagResidentWeights)) return kStatusBadOp;
  if (!has(c, kFlagToMemory) && !has(c, kFlagToChain)) return kStatusBadOp;
  return check_cell_flags(c);
}

inline Status check_bank(const Command& c) {
#pragma HLS INLINE
  if (c.bank_size < 1 || c.bank_size > 256 || c.keep < 1 || c.keep > c.bank_size)
    return kStatusBadBank;
  const bool halves = (c.bank_size & (c.bank_size - 1)) == 0;  // and kPack is a power of two
  // Banks fill whole activation words, or words fill whole banks.
  const bool nested = c.bank_size < kPack ? halves : c.bank_size % kPack == 0;
  if (!nested || c.bank_size > (1u << kIndexBits)) return kStatusBadBank;
  if (has(c, kFlagDense))
    return c.keep == c.bank_size && c.index_bits == 0 ? kStatusOk : kStatusBadBank;
  if (c.index_bits != 4 && c.index_bits != 6 && c.index_bits != 8) return kStatusBadBank;
  return c.bank_size <= (1u << c.index_bits) ? kStatusOk : kStatusBadBank;
}

inline Status check_shape(const Command& c) {
#pragma HLS INLINE
  if (c.features == 0 || c.rows == 0 || c.tiles == 0) return kStatusBadShape;
  if (c.features % kPack != 0 || c.input_stride % kPack != 0) return kStatusBadShape;
  if (c.rows % kRowStep != 0 || c.output_stride % kPack != 0) return kStatusBadShape;
  if (c.tiles_per_block == 0 || c.rows_per_block == 0 || c.pace == 0) return kStatusBadShape;
  if (c.rows_per_block % kRowStep != 0) return kStatusBadShape;
  if (c.groups_per_pass == 0 || c.groups_per_pass > c.groups) return kStatusBadShape;
  if (c.groups != divide_up(c.features, c.bank_size * kLanes)) return kStatusBadShape;
  if (c.output_stride < output_features(c, c.rows)) return kStatusBadShape;
  if (c.part_rows % kRowStep != 0 || times(c.parts, c.part_rows) != c.rows) return kStatusBadShape;
  if (c.parts > 1 && (!has(c, kFlagImage) || is_cell(c))) return kStatusBadShape;
  // The hidden values of a block must fill whole words.
  const uint32_t cell_step = kGates * kPack;
  if (is_cell(c) && (c.rows % cell_step != 0 || c.rows_per_block % cell_step != 0))
    return kStatusBadShape;
  // A step at which no column runs any more changes nothing.
  if (c.last_columns == 0 && !is_cell(c)) return kStatusBadShape;
  return c.last_columns <= kCols ? kStatusOk : kStatusBadShape;
}

// What the gathering of windows counts on; anything else about an image is masked there.
inline Status check_image(const Command& c, const Shape& s) {
#pragma HLS INLINE
  if (!has(c, kFlagImage)) return c.input_stride < c.features ? kStatusBadShape : kStatusOk;
  if (kImageWords == 0) return kStatusBadImage;
  if (c.height == 0 || c.width == 0 || c.channels == 0 || c.load_pace == 0) return kStatusBadImage;
  if (c.out_height == 0 || c.out_width == 0) return kStatusBadImage;
  if (c.kernel_height == 0 || c.kernel_width == 0) return kStatusBadImage;
  if (c.stride_y == 0 || c.stride_x == 0) return kStatusBadImage;
  if (c.dilation_y == 0 || c.dilation_x == 0) return kStatusBadImage;
  // Coordinates are 16 bits, with room for padding and strides.
  if (c.height > 4096 || c.width > 4096) return kStatusBadImage;
  if (scaled(c.out_height, c.stride_y) > 8192 || scaled(c.out_width, c.stride_x) > 8192)
    return kStatusBadImage;
  if (times(c.out_height, c.out_width) > (uint64_t)c.tiles * kCols) return kStatusBadImage;
  if (c.input_stride < c.channels || c.image_words == 0) return kStatusBadImage;
  if (times(c.parts, c.part_channels) != c.channels) return kStatusBadImage;
  if (c.image_base + times(c.channels, c.image_words) > kImageWords) return kStatusBadImage;
  const uint32_t taps = scaled(c.kernel_height, c.kernel_width);
  const uint32_t banks = (uint32_t)times(taps, s.channel_blocks);  // 8 bits and 16
  return c.features == times(banks, c.bank_size) ? kStatusOk : kStatusBadImage;
}

inline Status check_buffers(const Command& c, const Shape& s) {
#pragma HLS INLINE
  const uint32_t stride = (uint32_t)times(c.groups_per_pass, bank_space(c));  // 16 bits and 9
  if (times(stride, c.tiles_per_block) > kVectorWords) return kStatusVectorOverflow;
  const uint32_t row_words = (uint32_t)times(c.groups_per_pass, c.keep);
  const uint64_t block = times(row_words, s.block_rows);
  if (s.block_rows > kBlockRows) return kStatusBlockOverflow;
  if (keeps_block(c)) {
    const uint64_t all = times((uint32_t)times(c.groups, c.keep), s.row_groups);
    if (s.passes > 1 || c.block_base + all > kBlockWords) return kStatusBlockOverflow;
  }
  // A single tile streams its weights past the block buffer.
  if (c.tiles_per_block > 1 && block > kBlockWords) return kStatusBlockOverflow;
  if (s.passes > 1 && times(s.block_rows, c.tiles_per_block) > kSumWords) return kStatusSumOverflow;
  return kStatusOk;
}

// A port word of gates belongs to one word of states: both hold two columns of a unit.
inline Status check_cell(const Command& c) {
#pragma HLS INLINE
  if (!is_cell(c)) return kStatusOk;
  const bool moves = has(c, kFlagStateIn) || has(c, kFlagStateOut);
  const uint64_t worked = times(c.tiles, tensor_words(c.rows));
  const uint64_t moved = moves ? 2 * (uint64_t)c.state_words : 0;
  const uint64_t words = worked > moved ? worked : moved;
  return c.cell_base + words > kCellWords ? kStatusCellOverflow : kStatusOk;
}

inline bool reaches(uint32_t offset, uint64_t words, uint32_t memory_words) {
#pragma HLS INLINE
  return offset + words > memory_words;
}

// Port words from the first tile of a tensor to the end of its last one.
inline uint64_t tensor_span(uint32_t tiles, uint32_t stride, uint64_t last) {
#pragma HLS INLINE
  return times(tiles - 1, stride) + last;
}

inline Status check_memory(const Command& c, const Shape& s, uint32_t memory_words) {
#pragma HLS INLINE
  const uint32_t stride = tensor_words(c.input_stride);
  const uint64_t input = has(c, kFlagImage)
                             ? tensor_span(s.image_tiles, stride, tensor_words(c.channels))
                             : tensor_span(c.tiles, stride, tensor_words(c.features));
  const uint64_t outputs =
      tensor_span(c.tiles, output_words(c, c.output_stride),
                  output_words(c, output_features(c, c.rows)));
  const bool loads = !has(c, kFlagFromChain) && !has(c, kFlagResidentInput);
  const bool weights = !has(c, kFlagResidentWeights);
  const bool outside =
      (loads && reaches(c.input, input, memory_words)) ||
      (has(c, kFlagToMemory) && reaches(c.output, outputs, memory_words)) ||
      (has(c, kFlagResidual) && reaches(c.residual, outputs, memory_words)) ||
      (has(c, kFlagStateIn) && reaches(c.residual, c.state_words, memory_words)) ||
      (has(c, kFlagStateOut) && reaches(c.state, c.state_words, memory_words)) ||
      (weights && reaches(c.weights, plane_words(c, s, weight_bits(c)), memory_words)) ||
      (weights && reaches(c.indices, plane_words(c, s, c.index_bits), memory_words)) ||
      reaches(c.parameters, c.rows, memory_words) ||
      (has(c, kFlagTable) && reaches(c.table, kTableWords, memory_words));
  return outside ? kStatusOutOfMemoryRange : kStatusOk;
}

// Activation words that a command takes from the chain.
inline uint64_t chain_input(const Command& c, const Shape& s) {
#pragma HLS INLINE
  if (!has(c, kFlagFromChain)) return 0;
  return has(c, kFlagImage) ? times(s.image_tiles, c.channels)
                            : times(c.tiles, c.features / kPack);
}

inline uint64_t chain_output(const Command& c) {
#pragma HLS INLINE
  return has(c, kFlagToChain) ? times(c.tiles, output_features(c, c.rows) / kPack) : 0;
}

// The chain may never be waited for: its input is there, and its output has room beside that.
inline Status check_chain(const Command& c, uint32_t chain_level, Shape& s) {
#pragma HLS INLINE
  const uint64_t input = chain_input(c, s);
  const uint64_t output = chain_output(c);
  s.chain_change = (uint32_t)(output - input);
  if (has(c, kFlagFromChain)) {
    if (input > chain_level) return kStatusChainOverflow;
    // What is taken from the chain is gone, so it cannot be loaded twice.
    if (!has(c, kFlagImage) && s.passes > 1) return kStatusChainOverflow;
  }
  if (has(c, kFlagToChain) && !in_order(c, s)) return kStatusBadShape;
  return chain_level + output > kChainWords ? kStatusChainOverflow : kStatusOk;
}

// Returns the first thing that is wrong; `s` is valid only where that is kStatusOk.
// `chain_level` is how many words the chain holds.
inline Status check_command(const Command& c, uint32_t memory_words, uint32_t chain_level,
                            Shape& s) {
#pragma HLS INLINE off
#pragma HLS ALLOCATION function instances=times limit=1
#pragma HLS ALLOCATION function instances=divide_up limit=1
#pragma HLS ALLOCATION function instances=plane_row_words limit=1
  if (c.signature != kSignature) return kStatusBadSignature;
  Status status = check_flags(c);
  if (status != kStatusOk) return status;
  status = check_bank(c);
  if (status != kStatusOk) return status;
  status = check_shape(c);
  if (status != kStatusOk) return status;
  s = derive_shape(c);
  status = check_image(c, s);
  if (status != kStatusOk) return status;
  status = check_buffers(c, s);
  if (status != kStatusOk) return status;
  status = check_cell(c);
  if (status != kStatusOk) return status;
  status = check_memory(c, s, memory_words);
  if (status != kStatusOk) return status;
  // Fillings of the vector buffer are counted in 32 bits, and so are visits of a pass.
  const uint64_t part_fills = times(s.tile_groups, parts_of(c));
  const uint64_t meetings = times((uint32_t)part_fills, s.blocks);
  const bool many = part_fills > 0xffffffffu || meetings > 0xffffffffu ||
                    times((uint32_t)meetings, s.passes) > 0xffffffffu;
  if (many) return kStatusBadShape;
  return check_chain(c, chain_level, s);
}

}  // namespace bbs
