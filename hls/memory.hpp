// SPDX-License-Identifier: Apache-2.0
// Fetch and deliver: the only stages that touch memory, in bursts whose length is known first.
#pragma once

#include "sequence.hpp"

namespace bbs {

// One burst of port words in flight between a port and its stage.
constexpr int kPortDepth = 64;
using WordStream = Stream<word_t, kPortDepth>;
// Outputs that the next command takes as its input, without memory in between. A build without a
// chain has the smallest stream there is.
using ChainStream = Stream<ActWord, (kChainWords > 2 ? kChainWords : 2)>;

// The words of the next command: all of them, so that the port goes on while this one is sequenced.
using CommandStream = Stream<word_t, kCommandWords>;

inline void fetch_burst(const word_t* port, const Burst& burst, WordStream& words) {
#pragma HLS INLINE
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
}

inline void fetch(const word_t* port, BurstStream& bursts, WordStream& words) {
#pragma HLS INLINE off
  bool final = false;
bursts:
  while (!final) {
    const Burst burst = bursts.read();
    fetch_burst(port, burst, words);
    final = burst.final;
  }
}

// The port of the residuals, which are wanted last: before those of a command it brings the next
// command.
inline void fetch_residuals(const word_t* port, BurstStream& bursts, WordStream& words,
                            CommandStream& command) {
#pragma HLS INLINE off
  bool final = false;
bursts:
  while (!final) {
    const Burst burst = bursts.read();
    if (burst.command) {
    command_words:
      for (uint32_t i = 0; i < kCommandWords; i++) {
#pragma HLS PIPELINE II=1
        command.write(port[burst.offset + i]);
      }
    } else {
      fetch_burst(port, burst, words);
    }
    final = burst.final;
  }
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
inline word_t next_output(const DeliverCommand& c, WordStream& outputs, WordStream& hidden) {
#pragma HLS INLINE
  return is_cell(c) ? hidden.read() : outputs.read();
}

// Outputs go to memory, to the chain, or to both.
inline void deliver_outputs(const DeliverCommand& c, word_t* port, BurstStream& bursts,
                            WordStream& outputs, WordStream& hidden, ChainStream& chain) {
#pragma HLS INLINE
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
  uint32_t left = to_memory ? 0 : c.links;
links:
  while (left > 0) {
#pragma HLS PIPELINE II=1
    const uint32_t words = left > c.last_links ? kPortWords : c.last_words;
    if (collect(collector, next_output(c, outputs, hidden), words)) {
      chain.write(collector.word);
      collector.word = ActWord();  // columns whose words are left out are 0
      left--;
    }
  }
}

inline void deliver(DeliverCommandStream& commands, word_t* port, BurstStream& bursts,
                    WordStream& outputs, WordStream& hidden, ChainStream& chain) {
#pragma HLS INLINE off
  DeliverCommand c = commands.read();
commands:
  while (!c.end) {
    deliver_outputs(c, port, bursts, outputs, hidden, chain);
    c = commands.read();
  }
}

}  // namespace bbs
