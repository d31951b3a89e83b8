// SPDX-License-Identifier: Apache-2.0
// The engine: fetches commands from memory, checks each, and runs them through the data path.
#include "engine.hpp"

#include "cell.hpp"
#include "finish.hpp"
#include "run.hpp"

// What lasts from command to command and from run to run lies in the fabric once. In g++ every
// thread that runs engines has a fabric of its own, as every board has.
#ifdef __SYNTHESIS__
#define BBS_LASTING static
#else
#define BBS_LASTING static thread_local
#endif

namespace bbs {
namespace {

// A command, and all that follow it. What the end of a region waits for, the write responses
// included, is what a command waits for that does not follow: it may read what was written.
void run_commands(const Job now, const Run run, const word_t* program, const word_t* weights,
                  const word_t* indices, const word_t* activations, const word_t* residuals,
                  word_t* results, ImageWord image[kImageDepth], WeightWord block[kBlockWords],
                  CellWord cells[kCellDepth], ChainStream& chain, CommandStream& next_words,
                  Job& job) {
#pragma HLS INLINE off
#pragma HLS DATAFLOW
  UnpackCommandStream unpack_commands("unpack_commands");
  ColumnsCommandStream columns_commands("columns_commands");
  GatherCommandStream gather_commands("gather_commands");
  MultiplyCommandStream multiply_commands("multiply_commands");
  FinishCommandStream finish_commands("finish_commands");
  CellCommandStream cell_commands("cell_commands");
  DeliverCommandStream deliver_commands("deliver_commands");
  // Few words, but wide ones: a LUT holds more bits as a memory than as a shift register.
#pragma HLS BIND_STORAGE variable=unpack_commands type=fifo impl=lutram
#pragma HLS BIND_STORAGE variable=columns_commands type=fifo impl=lutram
#pragma HLS BIND_STORAGE variable=gather_commands type=fifo impl=lutram
#pragma HLS BIND_STORAGE variable=multiply_commands type=fifo impl=lutram
#pragma HLS BIND_STORAGE variable=finish_commands type=fifo impl=lutram
#pragma HLS BIND_STORAGE variable=cell_commands type=fifo impl=lutram
#pragma HLS BIND_STORAGE variable=deliver_commands type=fifo impl=lutram
  BurstStream weight_bursts("weight_bursts");
  BurstStream index_bursts("index_bursts");
  BurstStream row_bursts("row_bursts");
  BurstStream act_bursts("act_bursts");
  BurstStream residual_bursts("residual_bursts");
  BurstStream store_bursts("store_bursts");
  FillStream tile_fills("tile_fills");
  FillStream fills("fills");
  VisitStream unpack_visits("unpack_visits");
  VisitStream multiply_visits("multiply_visits");
  VisitStream finish_visits("finish_visits");
  WordStream weight_words("weight_words");
  WordStream index_words("index_words");
  WordStream row_words("row_words");
  WordStream feature_words("feature_words");
  WordStream residual_words("residual_words");
  WordStream outputs("outputs");
  // A block RAM for 64 words each would be nearly empty.
#pragma HLS BIND_STORAGE variable=weight_words type=fifo impl=lutram
#pragma HLS BIND_STORAGE variable=index_words type=fifo impl=lutram
#pragma HLS BIND_STORAGE variable=row_words type=fifo impl=lutram
#pragma HLS BIND_STORAGE variable=feature_words type=fifo impl=lutram
#pragma HLS BIND_STORAGE variable=residual_words type=fifo impl=lutram
#pragma HLS BIND_STORAGE variable=outputs type=fifo impl=lutram
  ColumnsStream tile_columns("tile_columns");
#pragma HLS BIND_STORAGE variable=tile_columns type=fifo impl=lutram
  VectorWriteStream vector_writes("vector_writes");
  WeightStream csb_words("csb_words");
  SumStream sums("sums");
  VisitStream cell_visits("cell_visits");
  WordStream states("states");
  WordStream gates("gates");
  WordStream hidden("hidden");
#pragma HLS BIND_STORAGE variable=states type=fifo impl=lutram
#pragma HLS BIND_STORAGE variable=gates type=fifo impl=lutram
#pragma HLS BIND_STORAGE variable=hidden type=fifo impl=lutram
  BBS_REGION;
  BBS_PROCESS(sequence(now, run, unpack_commands, columns_commands, gather_commands,
                       multiply_commands, finish_commands, cell_commands, deliver_commands,
                       weight_bursts, index_bursts, row_bursts, act_bursts, residual_bursts,
                       store_bursts, tile_fills, fills, unpack_visits, multiply_visits,
                       finish_visits, cell_visits, next_words, job));
  BBS_PROCESS(fetch(weights, weight_bursts, weight_words));
  BBS_PROCESS(fetch(indices, index_bursts, index_words));
  BBS_PROCESS(fetch(program, row_bursts, row_words));
  BBS_PROCESS(fetch(activations, act_bursts, feature_words));
  BBS_PROCESS(fetch_residuals(residuals, residual_bursts, residual_words, next_words));
  BBS_PROCESS(unpack(unpack_commands, unpack_visits, weight_words, index_words, csb_words));
  BBS_PROCESS(columns(columns_commands, tile_fills, tile_columns));
  BBS_PROCESS(gather(gather_commands, fills, tile_columns, feature_words, chain, image,
                     vector_writes));
  BBS_PROCESS(multiply(multiply_commands, vector_writes, multiply_visits, csb_words, block, sums));
  BBS_PROCESS(finish(finish_commands, finish_visits, row_words, sums, residual_words, states,
                     gates, outputs));
  BBS_PROCESS(cell(cell_commands, cell_visits, states, gates, cells, hidden));
  BBS_PROCESS(deliver(deliver_commands, results, store_bursts, outputs, hidden, chain));
}

// Empties the chain, so that a run never meets what another one left.
void drain(ChainStream& chain, uint32_t level) {
#pragma HLS INLINE off
chain_words:
  for (uint32_t i = 0; i < level; i++) {
#pragma HLS PIPELINE II=1
    chain.read();
  }
}

// What the driver holds against the build that it expects.
void report_build(uint32_t* version, uint32_t* lanes, uint32_t* rows, uint32_t* cols,
                  uint32_t* requant_units, uint32_t* taps, uint32_t* vector_words,
                  uint32_t* block_words, uint32_t* queue_words, uint32_t* block_rows,
                  uint32_t* sum_words, uint32_t* image_words, uint32_t* chain_words,
                  uint32_t* fabric_lanes, uint32_t* index_bits, uint32_t* cell_words) {
#pragma HLS INLINE
  *version = kVersion;
  *lanes = kLanes;
  *rows = kRows;
  *cols = kCols;
  *requant_units = kRequantUnits;
  *taps = kTaps;
  *vector_words = kVectorWords;
  *block_words = kBlockWords;
  *queue_words = kQueueWords;
  *block_rows = kBlockRows;
  *sum_words = kSumWords;
  *image_words = kImageWords;
  *chain_words = kChainWords;
  *fabric_lanes = kFabricLanes;
  *index_bits = kIndexBits;
  *cell_words = kCellWords;
}

}  // namespace
}  // namespace bbs

void bbs_engine(const uint64_t* program, const uint64_t* weights, const uint64_t* indices,
                const uint64_t* activations, const uint64_t* residuals, uint64_t* results,
                uint32_t memory_words, uint32_t first_command, uint32_t command_count,
                uint32_t* status, uint32_t* completed, uint32_t* version, uint32_t* lanes,
                uint32_t* rows, uint32_t* cols, uint32_t* requant_units, uint32_t* taps,
                uint32_t* vector_words, uint32_t* block_words, uint32_t* queue_words,
                uint32_t* block_rows, uint32_t* sum_words, uint32_t* image_words,
                uint32_t* chain_words, uint32_t* fabric_lanes, uint32_t* index_bits,
                uint32_t* cell_words) {
#include "ports.hpp"
  // Each of these belongs to one process of the region: `gather`, `multiply` and `cell`.
  // No reset (config_rtl -reset state): logic would walk through every address, and what lies in
  // these counts only after a command has filled them.
  BBS_LASTING bbs::ImageWord image[bbs::kImageDepth];
#pragma HLS RESET variable=image off
#pragma HLS ARRAY_PARTITION variable=image complete dim=2
#pragma HLS BIND_STORAGE variable=image type=ram_s2p impl=bram
  BBS_LASTING bbs::WeightWord block[bbs::kBlockWords];
#pragma HLS RESET variable=block off
#pragma HLS AGGREGATE variable=block compact=bit
  if (bbs::kBlockInUram) {
#pragma HLS BIND_STORAGE variable=block type=ram_s2p impl=uram
  } else {
#pragma HLS BIND_STORAGE variable=block type=ram_s2p impl=bram
  }
  BBS_LASTING bbs::CellWord cells[bbs::kCellDepth];
#pragma HLS RESET variable=cells off
#pragma HLS AGGREGATE variable=cells compact=bit
#pragma HLS BIND_STORAGE variable=cells type=ram_s2p impl=bram
  bbs::ChainStream chain("chain");
  bbs::CommandStream next_words("next_words");

  bbs::report_build(version, lanes, rows, cols, requant_units, taps, vector_words, block_words,
                    queue_words, block_rows, sum_words, image_words, chain_words, fabric_lanes,
                    index_bits, cell_words);

  // Before the first command comes one that does nothing, but the first is brought and checked
  // behind it: a second place for that would be a second copy of the check.
  const bbs::Run run = {memory_words, first_command, command_count};
  bbs::Job job = bbs::no_job(run);
commands:
  while (job.runs) {
    const bbs::Job now = job;
    bbs::run_commands(now, run, program, weights, indices, activations, residuals, results, image,
                      block, cells, chain, next_words, job);
  }
  bbs::drain(chain, job.chain_level);
  *status = job.status;
  *completed = job.number;
}
