// SPDX-License-Identifier: Apache-2.0
// The commands of a run: each is fetched and checked while the one before is sequenced, and those
// that follow each other go through the data path in one region, without a stop.
#pragma once

#include "memory.hpp"

namespace bbs {

// Where the commands of a run lie, and the memory that they may touch.
struct Run {
  uint32_t memory_words;
  uint32_t first_command;
  uint32_t command_count;
};

// A command of the run.
struct Job {
  Command command;
  Shape shape;
  Status status;
  bool runs;             // it is there, and nothing that is known is wrong with it
  bool checked;          // if not, its words come
  uint32_t number;       // commands of the run before it
  uint32_t chain_level;  // words that it finds in the chain
};

// What stands before the first command of a run.
inline Job no_job(const Run& run) {
#pragma HLS INLINE
  Job job = {};
  job.command.op = kNoOp;
  job.checked = true;
  job.runs = run.command_count > 0;
  return job;
}

inline uint64_t place_of(const Run& run, const Job& job) {
#pragma HLS INLINE
  return run.first_command + (uint64_t)job.number * kCommandWords;
}

// The command behind `at`, as far as it is known before its words have come.
inline Job job_behind(const Run& run, const Job& at) {
#pragma HLS INLINE
  Job job = {};
  job.number = is_nothing(at.command) ? 0 : at.number + 1;
  job.chain_level = at.chain_level + at.shape.chain_change;
  const bool wanted = job.number < run.command_count;
  const bool inside = place_of(run, job) + kCommandWords <= run.memory_words;
  job.runs = wanted && inside;
  job.status = wanted && !inside ? kStatusOutOfMemoryRange : kStatusOk;
  return job;
}

inline void ask_for(const Run& run, const Job& job, BurstStream& bursts) {
#pragma HLS INLINE
  if (!job.runs) return;
  Burst burst = no_burst();
  burst.offset = (uint32_t)place_of(run, job);
  burst.command = true;
  bursts.write(burst);
}

inline void check_job(const Run& run, CommandStream& words, Job& job) {
#pragma HLS INLINE
  word_t command[kCommandWords] = {};
command_words:
  for (uint32_t i = 0; i < kCommandWords; i++) {
#pragma HLS PIPELINE II=1
    command[i] = words.read();
  }
  job.command = decode_command(command);
  job.status = check_command(job.command, run.memory_words, job.chain_level, job.shape);
  job.runs = job.status == kStatusOk;
  job.checked = true;
}

// Ends every stage that reads memory.
inline void end_ports(BurstStream& weights, BurstStream& indices, BurstStream& rows,
                      BurstStream& activations, BurstStream& residuals) {
#pragma HLS INLINE
  Burst burst = no_burst();
  burst.final = true;
  weights.write(burst);
  indices.write(burst);
  rows.write(burst);
  activations.write(burst);
  residuals.write(burst);
}

// Tells the stages of `now` and of what follows it; leaves in `job` what does not, or was refused:
// the commands before it end as they do before the end of a run. The words of a command come while
// the one before is sequenced.
inline void sequence(const Job now, const Run run, UnpackCommandStream& unpack_commands,
                     ColumnsCommandStream& columns_commands, GatherCommandStream& gather_commands,
                     MultiplyCommandStream& multiply_commands,
                     FinishCommandStream& finish_commands, CellCommandStream& cell_commands,
                     DeliverCommandStream& deliver_commands, BurstStream& weight_bursts,
                     BurstStream& index_bursts, BurstStream& row_bursts, BurstStream& act_bursts,
                     BurstStream& residual_bursts, BurstStream& store_bursts,
                     FillStream& tile_fills, FillStream& fills, VisitStream& unpack_visits,
                     VisitStream& multiply_visits, VisitStream& finish_visits,
                     VisitStream& cell_visits, CommandStream& next_words, Job& job) {
#pragma HLS INLINE off
#pragma HLS ALLOCATION function instances=times limit=1
#pragma HLS ALLOCATION function instances=plane_row_words limit=1
  Job at = now;
  bool first = true;
  bool goes_on = true;
commands:
  while (goes_on) {
    if (!at.checked) check_job(run, next_words, at);
    const bool begins = at.runs && (first || has(at.command, kFlagFollows));
    goes_on = false;
    if (begins) {
      const Job next = job_behind(run, at);
      ask_for(run, next, residual_bursts);
      first = is_nothing(at.command);
      if (!first) {
        const Command& c = at.command;
        unpack_commands.write(unpack_command(c));
        if (has(c, kFlagImage)) columns_commands.write(columns_command(c, at.shape));
        gather_commands.write(gather_command(c, at.shape));
        multiply_commands.write(multiply_command(c, at.shape));
        finish_commands.write(finish_command(c, at.shape));
        if (is_cell(c)) cell_commands.write(cell_command(c, at.shape));
        deliver_commands.write(deliver_command(c, at.shape));
        sequence_command(c, at.shape, weight_bursts, index_bursts, row_bursts, act_bursts,
                         residual_bursts, store_bursts, tile_fills, fills, unpack_visits,
                         multiply_visits, finish_visits, cell_visits);
      }
      at = next;
      goes_on = kCommandsOverlap && next.runs;
    }
  }
  end_ports(weight_bursts, index_bursts, row_bursts, act_bursts, residual_bursts);
  unpack_commands.write(end_mark<UnpackCommand>());
  if (kImageWords > 0) columns_commands.write(end_mark<ColumnsCommand>());
  gather_commands.write(end_mark<GatherCommand>());
  multiply_commands.write(end_mark<MultiplyCommand>());
  finish_commands.write(end_mark<FinishCommand>());
  if (kCellWords > 0) cell_commands.write(end_mark<CellCommand>());
  deliver_commands.write(end_mark<DeliverCommand>());
  job = at;
}

}  // namespace bbs
