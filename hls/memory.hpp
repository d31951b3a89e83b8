// SPDX-License-Identifier: Apache-2.0
// Fetch and store: the only stages that touch memory, in bursts whose length is known first.
#pragma once

#include "dataflow.hpp"
#include "sequence.hpp"
#include "types.hpp"

namespace bbs {

// One burst of port words in flight between a port and its stage.
constexpr int kPortDepth = 64;
using WordStream = Stream<word_t, kPortDepth>;

template <int kDepth>
inline void fetch(const word_t* port, BurstStream& bursts, Stream<word_t, kDepth>& words) {
#pragma HLS INLINE off
  bool final = false;
bursts:
  while (!final) {
    const Burst burst = bursts.read();
  words:
    for (uint32_t i = 0; i < burst.count; i++) {
#pragma HLS PIPELINE II=1
      words.write(port[burst.offset + i]);
    }
    final = burst.final;
  }
}

inline void store(word_t* port, BurstStream& bursts, WordStream& words) {
#pragma HLS INLINE off
  bool final = false;
bursts:
  while (!final) {
    const Burst burst = bursts.read();
  words:
    for (uint32_t i = 0; i < burst.count; i++) {
#pragma HLS PIPELINE II=1
      port[burst.offset + i] = words.read();
    }
    final = burst.final;
  }
}

}  // namespace bbs
