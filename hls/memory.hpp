// SPDX-License-Identifier: Apache-2.0
// Fetch and deliver: the only stages that touch memory, in bursts whose length is known first.
#pragma once

#include "dataflow.hpp"
#include "sequence.hpp"
#include "types.hpp"

namespace bbs {

// One burst of port words in flight between a port and its stage.
constexpr int kPortDepth = 64;
using WordStream = Stream<word_t, kPortDepth>;
// Outputs that the next command takes as its input, without memory in between. A build without a
// chain has the smallest stream there is.
using ChainStream = Stream<ActWord, (kChainWords > 2 ? kChainWords : 2)>;

// The words of the next command.
using CommandStream = Stream<word_t, kCommandWords>;

inline void fetch(const word_t* port, BurstStream& bursts, WordStream& words) {
#pragma HLS INLINE off
  bool final = false;
bursts:
  while (!final) {
    const Burst burst = bursts.read();
    uint32_t offset = burst.offset;
  runs:
    for (uint32_t t = 0; t < burst.times; t++) {
    words:
      for (uint32_t i = 0; i < burst.count; i++) {
#pragma HLS PIPELINE II=1
        words.write(port[offset + i]);
      }
      offset += burst.step;
    }
    final = burst.final;
  }
}

// Where a command lies, if there is one, and what it will find.
struct Next {
  uint32_t offset;
  bool exists;
  uint32_t memory_words;
  uint32_t chain_level;
};

// The port of the residuals, which are wanted last: before them it brings the next command, so that
// none but the first is waited for.
inline void fetch_residuals(const word_t* port, BurstStream& bursts, const Next next,
                            WordStream& words, CommandStream& command) {
#pragma HLS INLINE off
command_words:
  for (uint32_t i = 0; i < (next.exists ? kCommandWords : 0); i++) {
#pragma HLS PIPELINE II=1
    command.write(port[next.offset + i]);
  }
  fetch(port, bursts, words);
}

// Collects port words to activation words.
struct Collector {
  ActWord word;
  uint32_t part;
};

// Whether `collector.word` is complete with this port word, the last of `words`.
inline bool collect(Collector& collector, word_t bits, uint32_t words) {
#pragma HLS INLINE
bytes:
  for (int b = 0; b < kPortBytes; b++) {
#pragma HLS UNROLL
    collector.word.v[collector.part * kPortBytes + b] = (int8_t)(uint8_t)(bits >> (8 * b));
  }
  if (++collector.part < words) return false;
  collector.part = 0;
  return true;
}

// What is delivered: of cells what they make of the outputs.
inline word_t next_output(const Command& c, WordStream& outputs, WordStream& hidden) {
#pragma HLS INLINE
  return is_cell(c) ? hidden.read() : outputs.read();
}

// Outputs go to memory, to the chain, or to both.
inline void deliver(const Command c, const Shape s, word_t* port, BurstStream& bursts,
                    WordStream& outputs, WordStream& hidden, ChainStream& chain) {
#pragma HLS INLINE off
  const bool to_chain = has(c, kFlagToChain);
  const bool to_memory = has(c, kFlagToMemory);
  Collector collector = {};
  bool final = !to_memory;
bursts:
  while (!final) {
    const Burst burst = bursts.read();
    uint32_t offset = burst.offset;
  runs:
    for (uint32_t t = 0; t < burst.times; t++) {
    stores:
      for (uint32_t i = 0; i < burst.count; i++) {
#pragma HLS PIPELINE II=1
        const word_t word = next_output(c, outputs, hidden);
        port[offset + i] = word;
        if (to_chain && collect(collector, word, kPortWords)) chain.write(collector.word);
      }
      offset += burst.step;
    }
    final = burst.final;
  }
  // A loop of its own, because a condition around the write would end the burst.
  uint32_t left = to_memory ? 0 : s.links;
links:
  while (left > 0) {
#pragma HLS PIPELINE II=1
    const uint32_t words = left > s.last_links ? kPortWords : s.last_words;
    if (collect(collector, next_output(c, outputs, hidden), words)) {
      chain.write(collector.word);
      collector.word = ActWord();  // columns whose words are left out are 0
      left--;
    }
  }
}

}  // namespace bbs
