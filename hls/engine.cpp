// SPDX-License-Identifier: Apache-2.0
// The engine: fetches commands from memory, checks each, and runs it through the data path.
#include "engine.hpp"

#include "requantise.hpp"

namespace bbs {
namespace {

// One command at a time. Called from a loop outside, never looped over here: overlapping two
// commands would let a layer read what the one before has not yet written. Command and shape go
// to the processes by value: scalars may have several readers in a region, memories may not.
void run_command(const Command c, const Shape s, const word_t* program, const word_t* weights,
                 const word_t* indices, const word_t* activations, word_t* results) {
#pragma HLS INLINE off
#pragma HLS DATAFLOW
  BurstStream weight_bursts("weight_bursts");
  BurstStream index_bursts("index_bursts");
  BurstStream row_bursts("row_bursts");
  BurstStream act_bursts("act_bursts");
  BurstStream store_bursts("store_bursts");
  FillStream fills("fills");
  VisitStream unpack_visits("unpack_visits");
  VisitStream multiply_visits("multiply_visits");
  VisitStream accumulate_visits("accumulate_visits");
  WordStream weight_words("weight_words");
  WordStream index_words("index_words");
  WordStream row_words("row_words");
  WordStream feature_words("feature_words");
  WeightStream csb_words("csb_words");
  SumStream sums("sums");
  TableStream table_words("table_words");
  TotalStream totals("totals");
  WordStream outputs("outputs");
  BBS_REGION;
  BBS_PROCESS(sequence(c, s, weight_bursts, index_bursts, row_bursts, act_bursts, store_bursts,
                       fills, unpack_visits, multiply_visits, accumulate_visits));
  BBS_PROCESS(fetch(weights, weight_bursts, weight_words));
  BBS_PROCESS(fetch(indices, index_bursts, index_words));
  BBS_PROCESS(fetch(program, row_bursts, row_words));
  BBS_PROCESS(fetch(activations, act_bursts, feature_words));
  BBS_PROCESS(unpack(c, unpack_visits, weight_words, index_words, csb_words));
  BBS_PROCESS(multiply(c, s, fills, feature_words, multiply_visits, csb_words, sums));
  BBS_PROCESS(accumulate(c, accumulate_visits, row_words, sums, table_words, totals));
  BBS_PROCESS(requantise(c, s, table_words, totals, outputs));
  BBS_PROCESS(store(results, store_bursts, outputs));
}

}  // namespace
}  // namespace bbs

void bbs_engine(const uint64_t* program, const uint64_t* weights, const uint64_t* indices,
                const uint64_t* activations, uint64_t* results, uint32_t memory_words,
                uint32_t first_command, uint32_t command_count, uint32_t* status,
                uint32_t* completed, uint32_t* version, uint32_t* lanes, uint32_t* cols,
                uint32_t* requant_units, uint32_t* vector_words, uint32_t* block_words,
                uint32_t* block_rows, uint32_t* sum_words) {
#include "ports.hpp"
  *version = bbs::kVersion;
  *lanes = bbs::kLanes;
  *cols = bbs::kCols;
  *requant_units = bbs::kRequantUnits;
  *vector_words = bbs::kVectorWords;
  *block_words = bbs::kBlockWords;
  *block_rows = bbs::kBlockRows;
  *sum_words = bbs::kSumWords;

  uint32_t result = bbs::kStatusOk;
  uint32_t done = 0;
commands:
  while (done < command_count && result == bbs::kStatusOk) {
    bbs::word_t words[bbs::kCommandWords];
    const uint64_t offset = first_command + (uint64_t)done * bbs::kCommandWords;
    if (offset + bbs::kCommandWords > memory_words) {
      result = bbs::kStatusOutOfMemoryRange;
    } else {
    command_words:
      for (int i = 0; i < bbs::kCommandWords; i++) {
#pragma HLS PIPELINE II=1
        words[i] = program[offset + i];
      }
      const bbs::Command command = bbs::decode_command(words);
      bbs::Shape shape = {};
      result = bbs::check_command(command, memory_words, shape);
      if (result == bbs::kStatusOk) {
        bbs::run_command(command, shape, program, weights, indices, activations, results);
        done++;
      }
    }
  }
  *status = result;
  *completed = done;
}
