// SPDX-License-Identifier: Apache-2.0
// Replays the trace of one command cycle by cycle, as the data path would run it.
//
// Every process takes one step a cycle: a trip of a pipelined loop, or one move outside of loops.
// It waits where a stream that the step reads is empty and, in a step that moves a word of memory,
// until the memory has the bytes. What a trip writes leaves the pipeline `fill` cycles later; where
// the stream is full, the whole pipeline stands still. Behind a loop the process waits until the
// pipeline is empty.
#include "counting.hpp"

#include <algorithm>

namespace bbs {
namespace counting {
namespace {

constexpr double kBurstBytes = 64 * kPortBytes;

struct Write {
  uint64_t due;
  uint64_t streams;
};

struct Process {
  size_t at = 0;
  uint64_t clock = 0;  // cycles in which the pipeline moved
  uint64_t ready = 0;  // for the next step, by that clock
  std::deque<Write> pipeline;
};

class Replay {
 public:
  Replay(const Trace& trace, double bytes_per_cycle, uint32_t fill, uint64_t memory_loops)
      : trace_(trace), rate_(bytes_per_cycle), fill_(fill), memory_loops_(memory_loops),
        held_(trace.held) {
    held_.resize(recorder().links.size(), 0);  // a stream is known from its first command on
  }

  // The end of the last process, where `checker` takes `check` cycles longer than its steps.
  uint64_t run(int checker, uint64_t check) {
    uint64_t last_step = 0;
    uint64_t checked = 0;
    uint64_t now = 0;
    for (; !ended(); now++) {
      // The rate is an average over bursts: what is not taken is kept, up to one burst.
      credit_ = std::min(credit_ + rate_, std::max(rate_, kBurstBytes));
      const int after = last_mover_ + 1;  // the memory serves its ports in turn
      for (int i = 0; i < kMostProcesses; i++)
        if (step((after + i) % kMostProcesses)) last_step = now;
      if (!trace_.of[checker].empty() && checked == 0 && ended(checker)) checked = now + 1 + check;
      if (now - last_step > 1000 + 4 * fill_) fail("the replay is stuck");
    }
    return std::max(now, checked);
  }

 private:
  bool ended(int p) const {
    return processes_[p].at == trace_.of[p].size() && !busy(processes_[p]);
  }

  bool ended() const {
    for (int p = 0; p < kMostProcesses; p++)
      if (!ended(p)) return false;
    return true;
  }

  static int lowest(uint64_t streams) { return __builtin_ctzll(streams); }

  static bool busy(const Process& process) {
    return process.clock < process.ready || !process.pipeline.empty();
  }

  // Whether anything moved.
  bool step(int p) {
    Process& process = processes_[p];
    const std::vector<Record>& trace = trace_.of[p];
    const bool moves = busy(process);
    if (!write(process)) return false;
    process.clock++;
    if (process.clock < process.ready) return moves;
    if (process.at == trace.size()) return moves;
    const Record& record = trace[process.at];
    if (!start(p, record)) return moves;
    process.at++;
    const bool in_loop = record.loop < kMostLoops;
    const bool drains = in_loop && (process.at == trace.size() || trace[process.at].first ||
                                    trace[process.at].loop != record.loop);
    process.ready = process.clock + 1 + (drains ? fill_ : 0);
    return true;
  }

  // False where the pipeline cannot move on.
  bool write(Process& process) {
    if (process.pipeline.empty() || process.pipeline.front().due > process.clock) return true;
    const uint64_t streams = process.pipeline.front().streams;
    for (uint64_t rest = streams; rest != 0; rest &= rest - 1)
      if (held_[lowest(rest)] == recorder().links[lowest(rest)].depth) return false;
    for (uint64_t rest = streams; rest != 0; rest &= rest - 1) held_[lowest(rest)]++;
    process.pipeline.pop_front();
    return true;
  }

  // Begins what the record tells, where its inputs are there.
  bool start(int p, const Record& record) {
    Process& process = processes_[p];
    const bool in_loop = record.loop < kMostLoops;
    const bool in_memory = in_loop && (memory_loops_ >> record.loop & 1);
    if (in_memory && credit_ < kPortBytes) return false;
    uint64_t reads = 0;
    for (uint64_t rest = record.streams; rest != 0; rest &= rest - 1)
      if (recorder().links[lowest(rest)].reader == p) {
        if (held_[lowest(rest)] == 0) return false;
        reads |= rest & -rest;
      }
    for (uint64_t rest = reads; rest != 0; rest &= rest - 1) held_[lowest(rest)]--;
    if (record.streams & ~reads)
      process.pipeline.push_back({process.clock + (in_loop ? fill_ : 0), record.streams & ~reads});
    if (in_memory) {
      credit_ -= kPortBytes;
      last_mover_ = p;
    }
    return true;
  }

  const Trace& trace_;
  double rate_;
  double credit_ = 0;
  int last_mover_ = 0;
  uint32_t fill_;
  uint64_t memory_loops_;
  std::vector<int> held_;  // values in each stream
  Process processes_[kMostProcesses];
};

}  // namespace
}  // namespace counting
}  // namespace bbs

// Forgets all counts and traces.
extern "C" void bbs_counting_reset(int tracing) {
  bbs::counting::Recorder& r = bbs::counting::recorder();
  r = bbs::counting::Recorder();
  r.tracing = tracing != 0;
}

extern "C" uint64_t bbs_counting_trips(int process, int loop) {
  return bbs::counting::recorder().trips[process][loop];
}

// Cycles of one of the commands traced since the last reset. `memory_loops`: bit set of the loops
// that move a word of memory in every trip; process `checker` takes `check` cycles more.
extern "C" uint64_t bbs_counting_replay(uint32_t command, double bytes_per_cycle, uint32_t fill,
                                        uint64_t memory_loops, int checker, uint64_t check) {
  using namespace bbs::counting;
  if (command >= recorder().commands.size()) fail("no such command was traced");
  return Replay(recorder().commands[command], bytes_per_cycle, fill, memory_loops)
      .run(checker, check);
}
