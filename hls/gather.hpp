// SPDX-License-Identifier: Apache-2.0
// Brings activations to the vector buffer: features as they come, or the windows of an image
// (im2col on the fly). The image memory belongs to this stage alone.
//
// Features of an image are ordered [kernel row][channel block][kernel column][channel of the
// block], for each part of the channels by itself. A block is as wide as a bank, so a bank holds
// the channels of one tap, and the taps of a kernel row lie in neighbouring lanes: one read of the
// image memory gives up to kTaps of them, and each is written to a lane of its own.
#pragma once

#include "columns.hpp"
#include "image.hpp"

namespace bbs {

using VectorWriteStream = Stream<VectorWrite, 16>;

// One word of the chain or one port word; whether `source.word` is complete.
inline bool take_activations(bool from_chain, WordStream& port, ChainStream& chain,
                             Collector& source) {
#pragma HLS INLINE
  if (!from_chain) return collect(source, port.read(), kPortWords);
  source.word = chain.read();
  return true;
}

// Banks that share an activation word: more than one where banks are narrower than a word.
inline uint32_t banks_of_word(const GatherCommand& c) {
#pragma HLS INLINE
  // Checked: a power of two there, so that no divider is needed.
  const uint32_t half = kPack >= 2 ? kPack / 2 : 1, quarter = kPack >= 4 ? kPack / 4 : 1;
  if (c.bank_size >= kPack) return 1;
  return c.bank_size == 1 ? kPack : c.bank_size == 2 ? half : quarter;
}

// The features of an activation word, each bank's at the front of a word of its own.
inline void deal_word(const GatherCommand& c, const ActWord& word, VectorWrite& write) {
#pragma HLS INLINE
banks:
  for (uint32_t i = 0; i < kTaps; i++) {
#pragma HLS UNROLL
    const uint32_t first = kPack > 1 ? i * c.bank_size * kCols : 0;
  acts:
    for (uint32_t k = 0; k < kWordActs; k++) {
#pragma HLS UNROLL
      write.word[i].v[k] = word.v[(first + k) % kWordActs];
    }
    if (kPack == 1) break;  // a word is a bank's
  }
}

// A fill of plain features, in the order in which they lie.
inline void gather_features(const GatherCommand& c, const Fill& fill, WordStream& port,
                            ChainStream& chain, Collector& source, VectorWriteStream& writes) {
#pragma HLS INLINE
  const bool from_chain = has(c, kFlagFromChain);
  const uint32_t words = fill.features / kPack;
  const uint32_t banks = banks_of_word(c);
  VectorWrite write;
  write.taps = (uint8_t)((1u << banks) - 1);
  uint32_t tile_base = 0;
  uint32_t group_base = 0;  // where the bank of this group starts
  uint32_t index = 0;       // feature inside its bank
  uint32_t lane = 0;
  uint32_t word = 0;        // of this tile
  uint32_t tile = 0;
feature_words:
  while (tile < fill.tiles) {
#pragma HLS PIPELINE II=1
    if (take_activations(from_chain, port, chain, source)) {
      deal_word(c, source.word, write);
    places:
      for (int i = 0; i < kTaps; i++) {
#pragma HLS UNROLL
        write.place[i] = (uint16_t)(group_base + index);
      }
      write.lane = (uint8_t)lane;
      index += kPack;
      if (index >= c.bank_size) {
        index = 0;
        lane += banks;
        if (lane == kLanes) {
          lane = 0;
          group_base += bank_space(c);
        }
      }
      if (++word == words) {  // the next tile
        word = 0;
        index = 0;
        lane = 0;
        tile_base += fill.stride;
        group_base = tile_base;
        tile++;
      }
      write.last = tile == fill.tiles;
      writes.write(write);
    }
  }
}

// How far the image has come into its memory.
struct Arrival {
  uint32_t tiles;    // that are there
  uint32_t channel;  // of the tile that comes
  uint32_t base;     // where the channel begins, from image_base on
  uint32_t word;     // where that tile begins, within the ring
  uint32_t bank;
};

inline void take_pixels(const GatherCommand& c, WordStream& port, ChainStream& chain,
                        Collector& source, Arrival& arrival, ImageWord* image) {
#pragma HLS INLINE
  if (take_activations(has(c, kFlagFromChain), port, chain, source)) {
    const uint32_t base = c.image_base + arrival.base;
    write_pixels(image, image_place(base, arrival.word, c.image_words),
                 image_place(base, arrival.word + 1, c.image_words), arrival.bank, source.word);
    arrival.base += c.image_words;
    if (++arrival.channel == c.channels) {
      arrival.channel = 0;
      arrival.base = 0;
      arrival.tiles++;
      arrival.bank += kCols;
      if (arrival.bank >= kBanks) {
        arrival.bank -= kBanks;
        if (++arrival.word == c.image_words) arrival.word = 0;
      }
    }
  }
}

// Where a walk over the features of a tile stands.
struct Walk {
  uint32_t kernel_y;
  uint32_t block;     // first channel of the channel block, within the part
  uint32_t kernel_x;
  uint32_t channel;   // of the block
  uint32_t base;        // where the channel lies in the image memory, from image_base on
  uint32_t block_base;  // and the first one of the block
  uint32_t column;      // where the next read begins
  uint32_t lane;        // of the bank of kernel_x
  uint32_t group;
  uint32_t place;       // of the group in the vector buffer, were all groups there
  bool done;
};

inline void start_walk(const Fill& fill, Walk& walk) {
#pragma HLS INLINE
  walk.kernel_y = walk.block = walk.kernel_x = walk.channel = walk.column = 0;
  walk.base = walk.block_base = fill.channel_base;
  walk.lane = walk.group = walk.place = 0;
  walk.done = false;
}

// Taps that a read at `walk` gives.
inline uint32_t taps_at(const GatherCommand& c, const Walk& walk) {
#pragma HLS INLINE
  const uint32_t most = c.dilation_x == 1 ? kTaps : 1;
  const uint32_t rest = c.kernel_width - walk.kernel_x;
  return rest < most ? rest : most;
}

// On to the next channel, and from the last one to the next taps, block and kernel row.
inline void next_channel(const GatherCommand& c, const Fill& fill, uint32_t taps, Walk& walk) {
#pragma HLS INLINE
  walk.column = 0;
  const uint32_t rest = c.part_channels - walk.block;
  const uint32_t next_base = walk.base + c.image_words;
  walk.base = next_base;
  if (++walk.channel < (rest < c.bank_size ? rest : c.bank_size)) return;
  walk.channel = 0;
  walk.base = walk.block_base;
  walk.lane += taps;
  if (walk.lane >= kLanes) {
    walk.lane -= kLanes;
    walk.group++;
    walk.place += c.bank_size;
  }
  walk.kernel_x += taps;
  if (walk.kernel_x < c.kernel_width) return;
  walk.kernel_x = 0;
  walk.block += c.bank_size;
  walk.base = walk.block_base = next_base;
  if (walk.block < c.part_channels) return;
  walk.block = 0;
  walk.base = walk.block_base = fill.channel_base;
  walk.done = ++walk.kernel_y == c.kernel_height;
}

// Place of a pixel in a window, which comes round: of less than four windows.
inline uint32_t turned(uint32_t place) {
#pragma HLS INLINE
  const uint32_t rest = place >= 2 * kBanks ? place - 2 * kBanks : place;
  return rest >= kBanks ? rest - kBanks : rest;
}

// Where the window of column `col` begins in every read that serves it: a fixed place, so that a
// column has few pixels to choose from. Columns of another stride have a read each.
inline uint32_t column_place(uint32_t stride, uint32_t col) {
#pragma HLS INLINE
  return stride == 1 ? col : stride == 2 ? turned(2 * col) : stride == 4 ? turned(4 * col) : 0;
}

// A window over and over, as far as columns 4 pixels apart reach: wires, and where a column's pixel
// is needs no division.
constexpr uint32_t kRounds = 4;
static_assert(4 * (kCols - 1) + kTaps <= kRounds * kBanks, "the last column's taps lie behind");

inline void repeat_window(const Window& window, int8_t rounds[kRounds * kBanks]) {
#pragma HLS INLINE
repeats:
  for (uint32_t r = 0; r < kRounds; r++) {
#pragma HLS UNROLL
  repeated:
    for (uint32_t i = 0; i < kBanks; i++) {
#pragma HLS UNROLL
      rounds[r * kBanks + i] = window.v[i];
    }
  }
}

// Pixel of a window that is tap `tap` of each column, whatever lies there.
inline void pick_pixels(uint32_t stride, const int8_t rounds[kRounds * kBanks], uint32_t tap,
                        int8_t pixels[kCols]) {
#pragma HLS INLINE
  const int8_t* first = rounds + tap;
columns_of_tap:
  for (uint32_t col = 0; col < kCols; col++) {
#pragma HLS UNROLL
    pixels[col] = stride == 1   ? first[col]
                  : stride == 2 ? first[2 * col]
                  : stride == 4 ? first[4 * col]
                                : first[0];
  }
}

// What decides which pixels count, the same for all columns of a tap.
struct Bounds {
  int16_t right;   // from where the window begins
  int16_t down;
  int16_t least_x;
  int16_t end_x;
  int16_t height;
  int16_t begin;   // columns that this read serves
  int16_t end;
  act_t pad;
};

// Pixels into the columns of a word, padding where they lie beside the image. A function of its
// own because g++ works on all columns at once only where it knows that nothing overlaps.
#ifndef __SYNTHESIS__
__attribute__((noinline))
#endif
inline void place_pixels(const int16_t* __restrict window_x, const int16_t* __restrict window_y,
                         const int8_t* __restrict pixels, const Bounds bounds,
                         act_t* __restrict word) {
#pragma HLS INLINE
columns:
  for (int16_t col = 0; col < kCols; col++) {
#pragma HLS UNROLL
    // All within 16 bits (check_image). The sum with `right` is the same for all taps.
    const int16_t x = (int16_t)(window_x[col] + bounds.right);
    const int16_t y = (int16_t)(window_y[col] + bounds.down);
    const act_t pixel = pixels[col];
    const act_t before = word[col];
    const bool inside = (x >= bounds.least_x) & (x < bounds.end_x) & (y >= 0) & (y < bounds.height);
    const bool covered = (col >= bounds.begin) & (col < bounds.end);
    const act_t value = inside ? pixel : bounds.pad;
    word[col] = covered ? value : before;
  }
}

// The pixels of one read, as far as they are taps of its columns.
inline void pick_taps(const GatherCommand& c, const TileColumns& tile, const Walk& walk,
                      const Window& window, uint32_t end, VectorWrite& write) {
#pragma HLS INLINE
  Bounds bounds;
  bounds.right = (int16_t)scaled(walk.kernel_x, c.dilation_x);
  bounds.down = (int16_t)scaled(walk.kernel_y, c.dilation_y);
  bounds.height = (int16_t)c.height;
  bounds.begin = (int16_t)walk.column;
  bounds.end = (int16_t)end;
  bounds.pad = (act_t)c.pad_value;
  int8_t rounds[kRounds * kBanks];
#pragma HLS ARRAY_PARTITION variable=rounds complete
  repeat_window(window, rounds);
taps:
  for (int16_t i = 0; i < kTaps; i++) {
#pragma HLS UNROLL
    int8_t pixels[kCols];
#pragma HLS ARRAY_PARTITION variable=pixels complete
    pick_pixels(c.stride_x, rounds, (uint32_t)i, pixels);
    bounds.least_x = (int16_t)-i;
    bounds.end_x = (int16_t)(c.width - i);
    place_pixels(tile.x, tile.y, pixels, bounds, write.word[i].v);
  }
}

// Reads the window that begins in column `walk.column`, turned so that this column finds its
// pixel at its place, and with it those behind.
inline void read_taps(const GatherCommand& c, const TileColumns& tile, const Walk& walk,
                      const ImageWord* image, Window& window) {
#pragma HLS INLINE
  const uint32_t col = walk.column;
  const int16_t y = (int16_t)(tile.y[col] + (int32_t)scaled(walk.kernel_y, c.dilation_y));
  const int32_t x = tile.x[col] + (int32_t)scaled(walk.kernel_x, c.dilation_x);
  const int32_t pixel = y * (int16_t)c.width + x;
  const uint32_t place = (uint32_t)(pixel + (int32_t)(kFirstWord * kBanks)) & (kPlaces - 1);
  const uint32_t quotient = image_word(place);
  const uint32_t bank = (uint8_t)(place - quotient * kBanks);
  const uint32_t begin = column_place(c.stride_x, col);
  const uint32_t first = bank >= begin ? bank - begin : bank + kBanks - begin;
  // Relative to the ring. A read may begin just before the first word that is needed; what lies
  // further away never counts.
  int32_t turn = (int32_t)(quotient - tile.ring_start);
  if (turn < 0)
    turn += (int32_t)c.image_words;
  else if (turn >= (int32_t)c.image_words)
    turn -= (int32_t)c.image_words;
  const uint32_t word = turn >= 0 && turn < (int32_t)c.image_words ? (uint32_t)turn : 0;
  const uint32_t base = c.image_base + walk.base;
  read_window(image, image_place(base, word, c.image_words),
              image_place(base, word + 1, c.image_words), bank, first, window);
}

// The next word of the vector buffer's writes that `walk` makes.
inline void address_taps(const GatherCommand& c, const Fill& fill, const Walk& walk,
                         uint32_t tile_base, uint32_t pass_place, VectorWrite& write) {
#pragma HLS INLINE
  const uint32_t taps = taps_at(c, walk);
  write.lane = (uint8_t)walk.lane;
  write.taps = 0;
tap_places:
  for (uint32_t i = 0; i < kTaps; i++) {
#pragma HLS UNROLL
    const bool next = walk.lane + i >= kLanes;
    const uint32_t group = walk.group + next - fill.first_group;
    const uint32_t bank = walk.place - pass_place + (next ? c.bank_size : 0);
    write.place[i] = (uint16_t)(tile_base + bank + walk.channel);
    // Taps of other passes are left out; negative groups are large ones, unsigned.
    if (i < taps && group < fill.groups) write.taps |= (uint8_t)(1u << i);
  }
}

inline void clear_taps(const GatherCommand& c, VectorWrite& write) {
#pragma HLS INLINE
taps:
  for (int i = 0; i < kTaps; i++) {
#pragma HLS UNROLL
  columns:
    for (int col = 0; col < kCols; col++) {
#pragma HLS UNROLL
      write.word[i].v[col] = (act_t)c.pad_value;
    }
  }
}

// Pixels count as there when they can be read: so many cycles after they were written.
struct Settling {
  uint32_t tiles[kReuseDistance];
};

inline uint32_t settled(Settling& settling, uint32_t arrived) {
#pragma HLS INLINE
  const uint32_t there = settling.tiles[kReuseDistance - 1];
shift:
  for (int i = kReuseDistance - 1; i > 0; i--) {
#pragma HLS UNROLL
    settling.tiles[i] = settling.tiles[i - 1];
  }
  settling.tiles[0] = arrived;
  return there;
}

inline Arrival no_arrival(const GatherCommand& c) {
#pragma HLS INLINE
  Arrival arrival;
  arrival.tiles = has(c, kFlagResidentInput) ? c.image_tiles : 0;
  arrival.channel = arrival.base = arrival.word = arrival.bank = 0;
  return arrival;
}

// Where the gathering of windows stands.
struct Windows {
  Fill fill;
  TileColumns tile;
  Walk walk;
  uint32_t fills;      // that are still to come
  uint32_t rest;       // tiles of the fill, this one included
  uint32_t tile_base;  // in the vector buffer
  uint32_t pass_place;
  bool fresh;          // the next cycle begins a tile
};

inline void start_windows(const GatherCommand& c, Windows& at) {
#pragma HLS INLINE
  at.fills = c.fills;
  at.rest = at.tile_base = at.pass_place = 0;
  at.fresh = true;
}

inline void begin_tile(const GatherCommand& c, FillStream& fills, ColumnsStream& tiles,
                       Windows& at) {
#pragma HLS INLINE
  if (at.rest == 0) {
    at.fill = fills.read();
    at.fills--;
    at.rest = at.fill.tiles;
    at.tile_base = 0;
    // Where the groups of this pass begin, were all groups there: 16 bits times 9.
    at.pass_place = (at.fill.first_group & 0xffff) * (c.bank_size & 0x1ff);
  }
  at.tile = tiles.read();
  start_walk(at.fill, at.walk);
  at.fresh = false;
}

// One read of a window; with the last column of its tile the taps are complete.
inline void gather_taps(const GatherCommand& c, const ImageWord* image, Windows& at,
                        VectorWrite& write, VectorWriteStream& writes) {
#pragma HLS INLINE
  Window window;
  read_taps(c, at.tile, at.walk, image, window);
  const uint32_t end = at.walk.column + at.tile.run[at.walk.column];
  if (at.walk.column == 0) clear_taps(c, write);
  pick_taps(c, at.tile, at.walk, window, end, write);
  if (end < at.tile.count) {
    at.walk.column = end;
    return;
  }
  address_taps(c, at.fill, at.walk, at.tile_base, at.pass_place, write);
  next_channel(c, at.fill, taps_at(c, at.walk), at.walk);
  write.last = at.walk.done && at.rest == 1;
  writes.write(write);
  if (at.walk.done) {
    at.fresh = true;
    at.rest--;
    at.tile_base += at.fill.stride;
  }
}

// All windows of a command in one loop, so that no pipeline has to empty between tiles. A cycle
// reads a window, or waits for its pixels; beside that it takes a word of the image, always when
// it waits and else every `load_pace` cycles, as long as it overwrites nothing that is needed.
inline void gather_image(const GatherCommand& c, FillStream& fills,
                         ColumnsStream& tiles, WordStream& port, ChainStream& chain,
                         Collector& source, ImageWord* image, VectorWriteStream& writes) {
#pragma HLS INLINE
  Arrival arrival = no_arrival(c);
  Settling settling;
settle:
  for (int i = 0; i < kReuseDistance; i++) {
#pragma HLS UNROLL
    settling.tiles[i] = arrival.tiles;
  }
  Windows at = {};
  start_windows(c, at);
  VectorWrite write = {};
  uint32_t wait = c.load_pace;
windows:
  while (at.fills > 0 || at.rest > 0 || arrival.tiles < c.image_tiles) {
#pragma HLS PIPELINE II=1
    // A pixel is read `kReuseDistance` cycles after it was written, at the earliest.
#pragma HLS DEPENDENCE variable=image inter RAW distance=4 true
    // Whatever was fetched is taken in the end, so that nothing stands in the way of the next
    // command. In the same loop, because each that takes pixels is a copy of the multiplexers.
    const bool ends = at.fills == 0 && at.rest == 0;
    if (at.fresh && !ends) begin_tile(c, fills, tiles, at);
    const uint32_t needed = ends ? c.image_tiles : at.tile.needed[at.walk.kernel_y];
    const bool waits = ends || settled(settling, arrival.tiles) < needed;
    const bool due = --wait == 0;
    if (due) wait = c.load_pace;
    const uint32_t room = ends || at.tile.limit > c.image_tiles ? c.image_tiles : at.tile.limit;
    const uint32_t allowed = room < needed ? needed : room;  // or it would wait for ever
    const uint32_t wanted = waits || due ? allowed : 0;
    if (arrival.tiles < wanted) take_pixels(c, port, chain, source, arrival, image);
    if (!waits) gather_taps(c, image, at, write, writes);
  }
}

inline void gather(GatherCommandStream& commands, FillStream& fills, ColumnsStream& tiles,
                   WordStream& port, ChainStream& chain, ImageWord image[kImageDepth],
                   VectorWriteStream& writes) {
#pragma HLS INLINE off
  Collector source;
  source.part = 0;
  GatherCommand c = commands.read();
commands:
  while (!c.end) {
    // Without an image memory, such a command never gets here, and none of that is built.
    if (kImageWords > 0 && has(c, kFlagImage)) {
      gather_image(c, fills, tiles, port, chain, source, image, writes);
    } else {
    fills:
      for (uint32_t f = 0; f < c.fills; f++) {
        const Fill fill = fills.read();
        gather_features(c, fill, port, chain, source, writes);
      }
    }
    c = commands.read();
  }
}

}  // namespace bbs
