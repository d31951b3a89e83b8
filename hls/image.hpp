// SPDX-License-Identifier: Apache-2.0
// The image memory: pixels of a channel one after the other over kBanks memories of bytes, so
// that any kBanks neighbouring pixels are read at once, wherever they begin.
#pragma once

#include "types.hpp"

namespace bbs {

constexpr int kImageDepth = kImageWords > 0 ? kImageWords : 1;
typedef int8_t ImageWord[kBanks];
// Words of an image are counted from here on, so that windows that begin before the image have a
// number too.
constexpr uint32_t kFirstWord = 1u << 14;

// Bits of the place of a pixel in its word.
constexpr uint32_t kTurns = kBanks <= 16 ? 4 : kBanks <= 32 ? 5 : kBanks <= 64 ? 6 : 7;
static_assert(kBanks <= 128, "a pixel's place in its word has 7 bits at most");

// Neighbouring pixels of one channel.
struct Window {
  int8_t v[kBanks];
};

// A channel takes `length` words from `base` on and comes round like a ring.
inline uint32_t image_place(uint32_t base, uint32_t word, uint32_t length) {
#pragma HLS INLINE
  return (base + (word < length ? word : word - length)) & (kImageDepth - 1);
}

// Pixels are counted below this, those beside the image included.
constexpr uint32_t kPlaces = 1u << 26;
constexpr uint32_t kBankEighths = (kBanks + 7) / 8;  // kBanks is 8 times this where images are
constexpr uint32_t kReciprocalBits = 27;
constexpr uint32_t kReciprocal = (1u << kReciprocalBits) / kBankEighths + 1;
// The reciprocal is less than 2^-27 too large, so an eighth of a place times it is less than 1 /
// kBankEighths off.
static_assert(kPlaces / 8 <= (1u << kReciprocalBits) / kBankEighths, "quotients must be exact");

// The word that pixel `place` lies in: HLS would make a divider of 32 stages, though kBanks is a
// constant.
inline uint32_t image_word(uint32_t place) {
#pragma HLS INLINE
  const uint64_t words = (uint64_t)((place & (kPlaces - 1)) / 8) * kReciprocal;
#pragma HLS BIND_OP variable=words op=mul impl=fabric
  return (uint32_t)(words >> kReciprocalBits);
}

// kBanks pixels from pixel `bank` of a word on: banks below `bank` give the next word's pixels.
// They are turned, so that what bank `first` gives comes first.
// As the hardware does it, every bank with an address of its own.
inline void read_window_banked(const ImageWord* image, uint32_t word, uint32_t next,
                               uint32_t bank, uint32_t first, Window& window) {
#pragma HLS INLINE
  int8_t turned[kTurns + 1][kBanks];
#pragma HLS ARRAY_PARTITION variable=turned complete dim=0
banks:
  for (uint32_t b = 0; b < kBanks; b++) {
#pragma HLS UNROLL
    turned[0][b] = image[b < bank ? next : word][b];
  }
  // By 1, 2, 4 and so on places: choosing every pixel among all at once takes three times the LUTs.
turns:
  for (uint32_t t = 0; t < kTurns; t++) {
#pragma HLS UNROLL
  pixels:
    for (uint32_t i = 0; i < kBanks; i++) {
#pragma HLS UNROLL
      turned[t + 1][i] = first >> t & 1 ? turned[t][(i + (1u << t)) % kBanks] : turned[t][i];
    }
  }
window_pixels:
  for (uint32_t i = 0; i < kBanks; i++) {
#pragma HLS UNROLL
    window.v[i] = turned[kTurns][i];
  }
}

// As a processor does it; `image_tb.cpp` compares the two.
inline void read_window(const ImageWord* image, uint32_t word, uint32_t next, uint32_t bank,
                        uint32_t first, Window& window) {
#pragma HLS INLINE
#ifdef __SYNTHESIS__
  read_window_banked(image, word, next, bank, first, window);
#else
  // Twice in a row, so that turning them is a copy of a length that g++ knows.
  int8_t twice[2 * kBanks];
  for (uint32_t i = 0; i < kBanks; i++) twice[i] = i < bank ? image[next][i] : image[word][i];
  for (uint32_t i = 0; i < kBanks; i++) twice[kBanks + i] = twice[i];
  for (uint32_t i = 0; i < kBanks; i++) window.v[i] = twice[first + i];
#endif
}

// COLS pixels from pixel `at` of a word on. That is a multiple of 8, as COLS and kBanks are, so
// that a bank has few pixels to choose from.
inline void write_pixels(ImageWord* image, uint32_t word, uint32_t next, uint32_t at,
                         const ActWord& pixels) {
#pragma HLS INLINE
  const uint32_t bank = at & ~7u;
banks:
  for (uint32_t b = 0; b < kBanks; b++) {
#pragma HLS UNROLL
    const uint32_t i = b < bank ? b + kBanks - bank : b - bank;
    if (i < kCols) image[b < bank ? next : word][b] = (int8_t)pixels.v[i < kCols ? i : 0];
  }
}

}  // namespace bbs
