// SPDX-License-Identifier: Apache-2.0
// A command is checked before anything moves: a refused one leaves memory as it was.
#pragma once

#include "command.hpp"
#include "types.hpp"

namespace bbs {

// Counts that several stages need; worked out once a command, so that what one stage writes and
// the next one reads cannot differ.
struct Shape {
  uint32_t last_groups;   // groups of the last pass
  uint32_t row_groups;    // groups of ROWS rows
  uint32_t part_rows;     // of them those of a part
  uint32_t block_rows;    // row groups of a weight block
  uint32_t visits;        // weight blocks of all parts of all tile groups
  uint32_t fills;         // fillings of the vector buffer in all
  uint32_t image_tiles;   // column tiles of the image
  uint32_t chain_change;  // words in the chain afterwards less those before, modulo 2^32
  uint32_t links;         // words that go to the chain
  uint32_t last_links;    // of them those of the last tile
  uint32_t last_words;    // port words of an activation word of the last tile that are made
  bool stays;             // weights and row parameters are fetched for the first tile group alone
};

// What a command comes to: products of its fields, all of them worked out before any is compared,
// so that they follow each other through two multipliers and none waits for a comparison. Those of
// a command that is refused may be anything.
struct Amounts {
  // What the last piece has of those that something is cut into.
  int64_t last_features;  // the last group of banks
  int64_t last_groups;    // the last pass
  int64_t last_tiles;     // the last tile group
  int64_t last_rows;      // the last weight block, in row groups
  int64_t last_channels;  // the last bank of a tap
  uint64_t rows;          // of all parts
  uint64_t channels;
  uint64_t features;      // of the windows of a part
  uint64_t image_pixels;
  uint64_t output_pixels;
  uint64_t image_words;   // of the image memory
  uint64_t vector_words;  // of a half of the vector buffer
  uint32_t row_words;     // CSB words of a row group in a pass
  uint32_t last_words;    // in the last pass
  uint64_t block_words;   // in a weight block
  uint64_t pass_words;    // in all row groups of a pass
  uint64_t block_sums;    // sums between passes
  uint64_t cell_words;    // of the cell memory
  uint64_t part_fills;    // parts of all tile groups
  uint64_t visits;        // their weight blocks
  uint64_t pass_visits;   // times passes, where visits have 32 bits
  uint64_t input;         // port words from the first tile to the end of the last one
  uint64_t output;
  uint64_t weights;       // port words of the plane
  uint64_t indices;
  uint64_t from_chain;    // activation words
  uint64_t to_chain;
};

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

// Where `a` has 24 bits and `b` 17, which is one DSP.
inline uint64_t short_times(uint32_t a, uint32_t b) {
#pragma HLS INLINE off
  return (uint64_t)((narrow_t<25>)(a & 0xffffff) * (narrow_t<18>)(b & 0x1ffff));
}

// Of `total`, cut into pieces of `step`, what is left for the last one where all of them would
// cover `covered`. The engine does not divide: who wrote the command did, and the number of pieces
// is total / step, rounded up, exactly if this is a piece.
inline int64_t last_piece(uint32_t total, uint32_t step, uint64_t covered) {
#pragma HLS INLINE
  return (int64_t)total + step - (int64_t)covered;
}

inline bool is_piece(int64_t last, uint32_t step) {
#pragma HLS INLINE
  return last >= 1 && last <= (int64_t)step;
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
constexpr uint32_t kKnownFlags = 2 * (uint32_t)kFlagFollows - 1;
constexpr uint32_t kImageFlags = kFlagImage | kFlagMaximum | kFlagSumColumns | kFlagResidentInput;
constexpr uint32_t kCellFlags = kFlagStateZero | kFlagStateIn | kFlagStateOut;
constexpr uint32_t kBuiltFlags =
    kKnownFlags & ~(kImageWords == 0 ? kImageFlags : 0u) & ~(kCellWords == 0 ? kCellFlags : 0u) &
    ~(kImageWords == 0 && kCellWords == 0 ? (uint32_t)kFlagResidual : 0u);

// A constant where the build has nothing for the flag, so that nothing is built; a command that
// asks for it is refused. Of a command, or of what a stage needs of it.
template <typename C>
inline bool has(const C& c, Flag flag) {
#pragma HLS INLINE
  return (c.flags & kBuiltFlags & flag) != 0;
}

// What stands before the first command. No command in memory has it.
constexpr uint32_t kNoOp = 0xffffffff;

inline bool is_nothing(const Command& c) {
#pragma HLS INLINE
  return c.op == kNoOp;
}

// Whether the weights outlive the command in the block buffer.
template <typename C>
inline bool keeps_block(const C& c) {
#pragma HLS INLINE
  return has(c, kFlagKeepWeights) || has(c, kFlagResidentWeights);
}

// An LSTM or GRU step: a unit has kGates rows and one output.
template <typename C>
inline bool is_cell(const C& c) {
#pragma HLS INLINE
  return kCellWords > 0 && (has(c, kFlagLstm) || has(c, kFlagGru));
}

// Parts of the channels that do not see each other; only images have more than one.
inline uint32_t parts_of(const Command& c) {
#pragma HLS INLINE
  return kImageWords == 0 ? 1 : c.parts;
}

// Whether outputs come in the order in which a tensor lies: every tile's rows at once.
inline bool in_order(const Command& c) {
#pragma HLS INLINE
  return c.tiles_per_block == 1 || (c.blocks == 1 && parts_of(c) == 1);
}

// Whether port words of columns that do not count are left out: where nothing but the chain takes
// the outputs, which fills them up.
template <typename C>
inline bool leaves_out(const C& c) {
#pragma HLS INLINE
  return !has(c, kFlagToMemory) && !has(c, kFlagResidual) && !is_cell(c);
}

// Features of the output that `rows` rows give.
inline uint32_t output_features(const Command& c, uint32_t rows) {
#pragma HLS INLINE
  return is_cell(c) ? rows / kGates : rows;
}

template <typename C>
inline uint32_t weight_bits(const C& c) {
#pragma HLS INLINE
  return has(c, kFlagInt4) ? 4 : 8;
}

// Features that a bank takes in the vector buffer: whole words.
template <typename C>
inline uint32_t bank_space(const C& c) {
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

// Port words that a plane of `bits` bits a lane takes for one row group of `words` CSB words; a
// row group starts on a whole word.
inline uint32_t plane_row_words(uint32_t words, uint32_t bits) {
#pragma HLS INLINE off
  // Four bits hold every width, so a few additions do.
  const uint64_t plane_bits = (uint64_t)words * (kRows * kLanes) * (bits & 15);
#pragma HLS BIND_OP variable=plane_bits op=mul impl=fabric
  return (uint32_t)((plane_bits + 63) / 64);
}

static_assert(256 * kLanes < 1 << 17, "the features of a group are a factor of short_times");

// Pieces, and what lies on chip.
inline void short_amounts(const Command& c, Amounts& a) {
#pragma HLS INLINE
  const uint32_t group = c.bank_size * kLanes;
  const uint32_t block_rows = c.rows_per_block / kRows;
  const uint64_t passes = short_times(c.passes, c.groups_per_pass);
  const uint64_t tile_groups = short_times(c.tile_groups, c.tiles_per_block);
  const uint64_t banks = short_times(c.channel_blocks, c.bank_size);
  a.last_features = last_piece(c.features, group, short_times(c.groups, group));
  a.last_groups = last_piece(c.groups, c.groups_per_pass, passes);
  a.last_tiles = last_piece(c.tiles, c.tiles_per_block, tile_groups);
  a.last_rows = last_piece(c.part_rows / kRows, block_rows, short_times(c.blocks, block_rows));
  a.last_channels = last_piece(c.part_channels, c.bank_size, banks);
  a.rows = short_times(c.part_rows, c.parts);
  a.channels = short_times(c.part_channels, c.parts);
  a.features = short_times(scaled(c.kernel_height, c.kernel_width), (uint32_t)banks);
  a.image_pixels = short_times(c.height, c.width);
  a.output_pixels = short_times(c.out_height, c.out_width);
  a.image_words = short_times(c.channels, c.image_words);
  const uint32_t stride = (uint32_t)short_times(c.groups_per_pass, bank_space(c));
  a.vector_words = short_times(stride, c.tiles_per_block);
  a.block_sums = short_times(block_rows, c.tiles_per_block);
  a.row_words = (uint32_t)short_times(c.groups_per_pass, c.keep);
  a.last_words = (uint32_t)short_times((uint32_t)a.last_groups, c.keep);
  a.block_words = short_times(a.row_words, block_rows);
}

// Port words of both planes: all passes of all rows.
inline void plane_amounts(const Command& c, Amounts& a) {
#pragma HLS INLINE
  const uint32_t row_groups = c.rows / kRows;
  const uint32_t weights = plane_row_words(a.row_words, weight_bits(c));
  const uint32_t indices = plane_row_words(a.row_words, c.index_bits);
  const uint32_t last_weights = plane_row_words(a.last_words, weight_bits(c));
  const uint32_t last_indices = plane_row_words(a.last_words, c.index_bits);
  // Below 2^16 groups x 2^8 kept, ROWS x LANES bytes each: a row group fits 32 bits.
  a.weights = times(row_groups, (uint32_t)times(c.passes - 1, weights) + last_weights);
  a.indices = times(row_groups, (uint32_t)times(c.passes - 1, indices) + last_indices);
}

// Tensors, and what is counted over all of a command.
inline void long_amounts(const Command& c, Amounts& a) {
#pragma HLS INLINE
  const bool image = has(c, kFlagImage);
  const uint32_t row_groups = c.rows / kRows;
  const uint32_t outputs = output_features(c, c.rows);
  const uint32_t tiles = image ? tiles_of((uint32_t)a.image_pixels) : c.tiles;
  const uint32_t features = image ? c.channels : c.features;
  a.part_fills = times(c.tile_groups, parts_of(c));
  a.visits = times((uint32_t)a.part_fills, c.blocks);
  a.pass_visits = times((uint32_t)a.visits, c.passes);
  a.pass_words = times(row_groups, a.row_words);
  a.cell_words = kCellWords > 0 ? times(c.tiles, tensor_words(c.rows)) : 0;
  a.input = times(tiles - 1, tensor_words(c.input_stride)) + tensor_words(features);
  a.output = times(c.tiles - 1, output_words(c, c.output_stride)) + output_words(c, outputs);
  const uint64_t input = times(tiles, features / kPack);  // of an image kPack is 1
  const uint64_t output = times(c.tiles, outputs / kPack);
  a.from_chain = has(c, kFlagFromChain) ? input : 0;
  a.to_chain = has(c, kFlagToChain) ? output : 0;
}

inline Amounts amounts_of(const Command& c) {
#pragma HLS INLINE
  Amounts a;
  short_amounts(c, a);
  plane_amounts(c, a);
  long_amounts(c, a);
  return a;
}

inline Shape derive_shape(const Command& c, const Amounts& a) {
#pragma HLS INLINE
  Shape s;
  s.last_groups = (uint32_t)a.last_groups;
  s.row_groups = c.rows / kRows;
  s.part_rows = c.part_rows / kRows;
  s.block_rows = c.rows_per_block / kRows;
  s.visits = (uint32_t)a.visits;
  // With one pass the features of a part stay while its rows go by; with more, every visit loads
  // its own.
  s.fills = (uint32_t)(c.passes == 1 ? a.part_fills : a.pass_visits);
  s.image_tiles = tiles_of((uint32_t)a.image_pixels);
  s.chain_change = (uint32_t)(a.to_chain - a.from_chain);
  s.links = (uint32_t)a.to_chain;
  s.last_links = output_features(c, c.rows) / kPack;
  const uint32_t counting = (c.last_columns + kPortBytes - 1) / kPortBytes;
  s.last_words = kPortWords > 1 && leaves_out(c) ? counting : kPortWords;
  const bool fits = a.pass_words <= kBlockWords && s.row_groups <= kBlockRows;
  s.stays = c.passes == 1 && c.tile_groups > 1 && fits;
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

// The hidden values of a block must fill whole words.
constexpr uint32_t kCellStep = kGates * kPack;

inline Status check_shape(const Command& c, const Amounts& a) {
#pragma HLS INLINE
  if (c.features == 0 || c.rows == 0 || c.tiles == 0) return kStatusBadShape;
  if (c.features % kPack != 0 || c.input_stride % kPack != 0) return kStatusBadShape;
  if (c.rows % kRowStep != 0 || c.output_stride % kPack != 0) return kStatusBadShape;
  if (c.tiles_per_block == 0 || c.rows_per_block == 0 || c.pace == 0) return kStatusBadShape;
  if (c.rows_per_block % kRowStep != 0) return kStatusBadShape;
  if (c.groups_per_pass == 0 || c.groups_per_pass > c.groups) return kStatusBadShape;
  if (!is_piece(a.last_features, c.bank_size * kLanes)) return kStatusBadShape;
  if (!is_piece(a.last_groups, c.groups_per_pass)) return kStatusBadShape;
  if (!is_piece(a.last_tiles, c.tiles_per_block)) return kStatusBadShape;
  if (!is_piece(a.last_rows, c.rows_per_block / kRows)) return kStatusBadShape;
  if (c.output_stride < output_features(c, c.rows)) return kStatusBadShape;
  if (c.part_rows % kRowStep != 0 || a.rows != c.rows) return kStatusBadShape;
  if (c.parts > 1 && (!has(c, kFlagImage) || is_cell(c))) return kStatusBadShape;
  if (is_cell(c) && (c.rows % kCellStep != 0 || c.rows_per_block % kCellStep != 0))
    return kStatusBadShape;
  // A step at which no column runs any more changes nothing.
  if (c.last_columns == 0 && !is_cell(c)) return kStatusBadShape;
  return c.last_columns <= kCols ? kStatusOk : kStatusBadShape;
}

// What the gathering of windows counts on; anything else about an image is masked there.
inline Status check_image(const Command& c, const Amounts& a) {
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
  if (a.output_pixels > (uint64_t)c.tiles * kCols) return kStatusBadImage;
  if (c.input_stride < c.channels || c.image_words == 0) return kStatusBadImage;
  if (a.channels != c.channels) return kStatusBadImage;
  if (c.image_base + a.image_words > kImageWords) return kStatusBadImage;
  if (!is_piece(a.last_channels, c.bank_size)) return kStatusBadImage;
  return c.features == a.features ? kStatusOk : kStatusBadImage;
}

inline Status check_buffers(const Command& c, const Amounts& a) {
#pragma HLS INLINE
  if (a.vector_words > kVectorWords) return kStatusVectorOverflow;
  if (c.rows_per_block / kRows > kBlockRows) return kStatusBlockOverflow;
  if (keeps_block(c) && (c.passes > 1 || c.block_base + a.pass_words > kBlockWords))
    return kStatusBlockOverflow;
  // A single tile streams its weights past the block buffer.
  if (c.tiles_per_block > 1 && a.block_words > kBlockWords) return kStatusBlockOverflow;
  return c.passes > 1 && a.block_sums > kSumWords ? kStatusSumOverflow : kStatusOk;
}

// A port word of gates belongs to one word of states: both hold two columns of a unit.
inline Status check_cell(const Command& c, const Amounts& a) {
#pragma HLS INLINE
  if (!is_cell(c)) return kStatusOk;
  const bool moves = has(c, kFlagStateIn) || has(c, kFlagStateOut);
  const uint64_t moved = moves ? 2 * (uint64_t)c.state_words : 0;
  const uint64_t words = a.cell_words > moved ? a.cell_words : moved;
  return c.cell_base + words > kCellWords ? kStatusCellOverflow : kStatusOk;
}

inline bool reaches(uint32_t offset, uint64_t words, uint32_t memory_words) {
#pragma HLS INLINE
  return offset + words > memory_words;
}

inline Status check_memory(const Command& c, const Amounts& a, uint32_t memory_words) {
#pragma HLS INLINE
  const bool loads = !has(c, kFlagFromChain) && !has(c, kFlagResidentInput);
  const bool weights = !has(c, kFlagResidentWeights);
  const bool outside =
      (loads && reaches(c.input, a.input, memory_words)) ||
      (has(c, kFlagToMemory) && reaches(c.output, a.output, memory_words)) ||
      (has(c, kFlagResidual) && reaches(c.residual, a.output, memory_words)) ||
      (has(c, kFlagStateIn) && reaches(c.residual, c.state_words, memory_words)) ||
      (has(c, kFlagStateOut) && reaches(c.state, c.state_words, memory_words)) ||
      (weights && reaches(c.weights, a.weights, memory_words)) ||
      (weights && reaches(c.indices, a.indices, memory_words)) ||
      reaches(c.parameters, c.rows, memory_words) ||
      (has(c, kFlagTable) && reaches(c.table, kTableWords, memory_words));
  return outside ? kStatusOutOfMemoryRange : kStatusOk;
}

// Fillings of the vector buffer are counted in 32 bits, and so are visits.
inline Status check_counts(const Amounts& a) {
#pragma HLS INLINE
  const bool many = a.part_fills > 0xffffffffu || a.visits > 0xffffffffu ||
                    a.pass_visits > 0xffffffffu;
  return many ? kStatusBadShape : kStatusOk;
}

// Nobody waits for room in the chain: an output has it beside all that the commands before leave
// there, the input of its own command included. That holds while commands overlap too: with the
// first output of a command the gathering has begun with it, and so has taken all that the commands
// before take. What a command takes comes of commands before it alone, so none waits for itself.
inline Status check_chain(const Command& c, const Amounts& a, uint32_t chain_level) {
#pragma HLS INLINE
  if (has(c, kFlagFromChain)) {
    if (a.from_chain > chain_level) return kStatusChainOverflow;
    // What is taken from the chain is gone, so it cannot be loaded twice.
    if (!has(c, kFlagImage) && c.passes > 1) return kStatusChainOverflow;
  }
  if (has(c, kFlagToChain) && !in_order(c)) return kStatusBadShape;
  return chain_level + a.to_chain > kChainWords ? kStatusChainOverflow : kStatusOk;
}

inline Status first_wrong(Status first, Status second) {
#pragma HLS INLINE
  return first != kStatusOk ? first : second;
}

// Returns the first thing that is wrong; `s` is valid only where that is kStatusOk.
// `chain_level` is how many words the chain holds.
inline Status check_command(const Command& c, uint32_t memory_words, uint32_t chain_level,
                            Shape& s) {
#pragma HLS INLINE off
#pragma HLS ALLOCATION function instances=times limit=1
#pragma HLS ALLOCATION function instances=short_times limit=1
#pragma HLS ALLOCATION function instances=plane_row_words limit=1
  const Amounts a = amounts_of(c);
  s = derive_shape(c, a);
  // No early return: behind a branch there would be a state for each check.
  Status status = c.signature == kSignature ? kStatusOk : kStatusBadSignature;
  status = first_wrong(status, check_flags(c));
  status = first_wrong(status, check_bank(c));
  status = first_wrong(status, check_shape(c, a));
  status = first_wrong(status, check_image(c, a));
  status = first_wrong(status, check_buffers(c, a));
  status = first_wrong(status, check_cell(c, a));
  status = first_wrong(status, check_memory(c, a, memory_words));
  status = first_wrong(status, check_counts(a));
  return first_wrong(status, check_chain(c, a, chain_level));
}

}  // namespace bbs
