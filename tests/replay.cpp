// SPDX-License-Identifier: Apache-2.0
// Replays the traces of commands that follow each other cycle by cycle, as the data path would run
// them.
//
// Every process takes one step a cycle: a trip of a pipelined loop, or one move outside of loops.
// It waits where a stream that the step reads is empty and, in a step that moves a word of memory,
// until the memory has the bytes. What a trip writes leaves the pipeline `fill` cycles later; where
// the stream is full, the whole pipeline stands still. Behind a loop the process waits until the
// pipeline is empty.
//
// A trip that asked for a word takes it if one is there, and the later trip that took it when
// commands ran one after the other is left out.
#include "counting.hpp"

#include <algorithm>

namespace bbs {
namespace counting {
namespace {

constexpr double kBurstBytes = 64 * kPortBytes;

// What is not seen in a trace. Loops are bit sets.
struct Model {
  double bytes_per_cycle;
  uint32_t fill;
  uint64_t memory_loops;   // that move a word of memory in every trip
  uint64_t region_loops;      // that go on from command to command
  int check_loop;          // takes the words of a command
  uint64_t check_cycles;   // until it is checked
};

using Steps = std::vector<Record>;

uint64_t bit(int link) { return uint64_t(1) << link; }
bool ends_in(const std::string& name, const std::string& end) {
  return name.size() >= end.size() && name.compare(name.size() - end.size(), end.size(), end) == 0;
}

// Streams whose last value of a region is what ends the stage that reads it.
uint64_t streams_with_end_marks() {
  uint64_t streams = 0;
  for (size_t i = 0; i < recorder().links.size(); i++) {
    const std::string& name = recorder().links[i].name;
    const bool told = ends_in(name, "_commands") || ends_in(name, "_bursts");
    if (told && name != "store_bursts") streams |= bit((int)i);
  }
  return streams;
}

// The steps of one process for commands `first` to `last`, as if nothing had ended between them.
class Joined {
 public:
  Joined(int process, uint32_t first, uint32_t last, const Model& model)
      : process_(process), model_(model) {
    const std::vector<Trace>& commands = recorder().commands;
    for (uint32_t i = first; i <= last; i++) {
      add(commands[i], i > first, true, i == last);
      ends.push_back(steps.size());
    }
    // The command behind them is checked before the region ends.
    if (last + 1 < commands.size()) add(commands[last + 1], true, false, true);
  }

  Steps steps;
  std::vector<size_t> ends;  // of each command

 private:
  // The steps that take the words of the command, all others, or both.
  void add(const Trace& trace, bool check, bool others, bool with_ends) {
    uint64_t marks = with_ends ? 0 : streams_with_end_marks();
    const size_t begin = steps.size();
    const Steps& source = trace.of[process_];
    for (size_t i = source.size(); i-- > 0;) {  // backwards: the end marks come last
      Record record = source[i];
      if (record.streams & marks) {
        marks &= ~record.streams;
        continue;
      }
      const bool of_check = record.loop == model_.check_loop;
      if (of_check ? !check : !others) continue;
      const bool of_run = record.loop < kMostLoops && (model_.region_loops >> record.loop & 1);
      if (of_run && begin > 0) record.first = false;
      steps.push_back(record);
    }
    std::reverse(steps.begin() + begin, steps.end());
  }

  int process_;
  const Model& model_;
};

struct Write {
  uint64_t due;
  uint64_t streams;
};

struct Process {
  size_t at = 0;
  uint64_t clock = 0;  // cycles in which the pipeline moved
  uint64_t ready = 0;  // for the next step, by that clock
  size_t taken_from = 0;  // steps that are left out, because their words were taken before
  size_t taken_to = 0;
  std::deque<Write> pipeline;
};

class Replay {
 public:
  Replay(uint32_t first, uint32_t last, const Model& model)
      : model_(model), held_(recorder().commands[first].held) {
    for (int p = 0; p < kMostProcesses; p++) joined_.emplace_back(p, first, last, model);
    held_.resize(recorder().links.size(), 0);  // a stream is known from its first command on
    // The first command was checked in the region before.
    for (const Steps& steps : recorder().commands[first].of)
      for (const Record& record : steps)
        if (record.loop == model.check_loop) held_[lowest(record.streams)] = 0;
  }

  // The end of the last process; `ends` of each command that of its last output.
  uint64_t run(int last_process, uint64_t* ends) {
    uint64_t last_step = 0;
    uint64_t now = 0;
    size_t command = 0;
    for (; !ended(); now++) {
      // The rate is an average over bursts: what is not taken is kept, up to one burst.
      const double rate = model_.bytes_per_cycle;
      credit_ = std::min(credit_ + rate, std::max(rate, kBurstBytes));
      const int after = last_mover_ + 1;  // the memory serves its ports in turn
      for (int i = 0; i < kMostProcesses; i++)
        if (step((after + i) % kMostProcesses)) last_step = now;
      const Process& process = processes_[last_process];
      const std::vector<size_t>& of = joined_[last_process].ends;
      while (command < of.size() && process.at >= of[command]) ends[command++] = now + model_.fill;
      if (now - last_step > 1000 + 4 * model_.fill) fail("the replay is stuck");
    }
    return now;
  }

 private:
  bool ended(int p) const {
    return processes_[p].at == joined_[p].steps.size() && !busy(processes_[p]);
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
    const Steps& steps = joined_[p].steps;
    const bool moves = busy(process);
    if (!write(process)) return false;
    process.clock++;
    if (process.clock < process.ready) return moves;
    if (process.at == steps.size()) return moves;
    const Record& record = steps[process.at];
    if (!start(p, record)) return moves;
    if (record.asked) take_ahead(p, record.asked);
    process.at++;
    if (process.at == process.taken_from) process.at = process.taken_to;
    const bool in_loop = record.loop < kMostLoops;
    const bool drains = in_loop && (process.at == steps.size() || steps[process.at].first ||
                                    steps[process.at].loop != record.loop);
    process.ready = process.clock + 1 + (drains ? model_.fill : 0);
    if (drains && record.loop == model_.check_loop) process.ready += model_.check_cycles;
    return true;
  }

  // The words asked for are those that the next steps to read the stream take, one after the other.
  void take_ahead(int p, uint64_t asked) {
    Process& process = processes_[p];
    const Steps& steps = joined_[p].steps;
    if (process.taken_to <= process.at) {
      size_t next = process.at;
      while (next < steps.size() && !(steps[next].streams & asked)) next++;
      process.taken_from = process.taken_to = next;
    }
    if (process.taken_to == steps.size() || held_[lowest(asked)] == 0) return;
    if (!(steps[process.taken_to].streams & asked)) return;  // all of the filling
    held_[lowest(asked)]--;
    process.taken_to++;
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
    const bool in_memory = in_loop && (model_.memory_loops >> record.loop & 1);
    if (in_memory && credit_ < kPortBytes) return false;
    uint64_t reads = 0;
    for (uint64_t rest = record.streams; rest != 0; rest &= rest - 1)
      if (recorder().links[lowest(rest)].reader == p) {
        if (held_[lowest(rest)] == 0) return false;
        reads |= rest & -rest;
      }
    for (uint64_t rest = reads; rest != 0; rest &= rest - 1) held_[lowest(rest)]--;
    if (record.streams & ~reads)
      process.pipeline.push_back(
          {process.clock + (in_loop ? model_.fill : 0), record.streams & ~reads});
    if (in_memory) {
      credit_ -= kPortBytes;
      last_mover_ = p;
    }
    return true;
  }

  const Model& model_;
  std::vector<Joined> joined_;
  double credit_ = 0;
  int last_mover_ = 0;
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

// Cycles of commands `first` to `last` traced since the last reset, which follow each other, and in
// `ends` the end of each by `last_process`, which makes the outputs.
extern "C" uint64_t bbs_counting_replay(uint32_t first, uint32_t last, double bytes_per_cycle,
                                        uint32_t fill, uint64_t memory_loops, uint64_t region_loops,
                                        int check_loop, uint64_t check_cycles, int last_process,
                                        uint64_t* ends) {
  using namespace bbs::counting;
  if (first > last || last >= recorder().commands.size()) fail("no such command was traced");
  const Model model = {bytes_per_cycle, fill, memory_loops, region_loops, check_loop, check_cycles};
  return Replay(first, last, model).run(last_process, ends);
}
