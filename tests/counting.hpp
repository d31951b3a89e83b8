// SPDX-License-Identifier: Apache-2.0
// Stands in for hls/dataflow.hpp in a counting build: counts the trips of every pipelined loop,
// and keeps which stream each trip read or wrote, so that the run can be replayed in time.
//
// Commands run one after the other, and one process after the other. Counts and traces of that do not
// depend on timing: a process blocks on a stream, and where one asks whether a stream is empty, it
// always is. `bbs_counting_replay` finds out afterwards what would have happened when, and what
// would have been there for a trip that asked.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <string>
#include <vector>

namespace bbs {
namespace counting {

constexpr int kMostProcesses = 16;
constexpr int kMostLoops = 64;
constexpr int kMostStreams = 64;
constexpr uint8_t kOutsideLoops = 255;
constexpr int kPortBytes = 8;

// One trip of a pipelined loop, or what happens between two loops.
struct Record {
  uint64_t streams;  // bit set: what it reads and writes
  uint64_t asked;    // and what it asks for, which it takes if there is something
  uint8_t loop;
  bool first;  // first trip of a run of the loop
};

struct Link {
  std::string name;
  int depth;
  int writer;
  int reader;
};

// A region, which is one command: what each process does, and how much each stream holds before.
struct Trace {
  std::vector<Record> of[kMostProcesses];
  std::vector<int> held;
};

struct Recorder {
  bool tracing = false;
  int process = 0;      // 0 outside of the region
  bool begun = false;   // before the first trip of a loop
  bool inside = false;  // of a pipelined loop
  uint64_t trips[kMostProcesses][kMostLoops] = {};
  std::vector<Trace> commands;
  std::vector<Link> links;
  std::vector<int> held;  // values in each stream

  // Where the process that runs leaves its records; none where nothing is traced.
  std::vector<Record>* trace() {
    return tracing && process > 0 ? &commands.back().of[process] : nullptr;
  }
};

inline Recorder& recorder() {
  static Recorder instance;
  return instance;
}

[[noreturn]] inline void fail(const std::string& reason) {
  std::fprintf(stderr, "counting build: %s\n", reason.c_str());
  std::abort();
}

// Stands before the call of a process.
inline void enter(int process) { recorder().process = process; }

// From the first process to the end of the last one.
struct Region {
  Region() {
    Recorder& r = recorder();
    if (!r.tracing) return;
    r.commands.emplace_back();
    r.commands.back().held = r.held;
  }
  ~Region() { enter(0); }
};

// These stand before a pipelined loop, first in its body, and behind it.
inline void begin() { recorder().begun = true; }

inline void trip(int loop) {
  Recorder& r = recorder();
  r.trips[r.process][loop]++;
  if (r.trace()) r.trace()->push_back({0, 0, static_cast<uint8_t>(loop), r.begun});
  r.begun = false;
  r.inside = true;
}

inline void end() { recorder().inside = false; }

inline int link_of(const char* name, int depth) {
  std::vector<Link>& links = recorder().links;
  for (size_t i = 0; i < links.size(); i++)
    if (links[i].name == name) return static_cast<int>(i);
  if (links.size() == kMostStreams) fail("more streams than a record has bits");
  links.push_back({name, depth, -1, -1});
  recorder().held.push_back(0);
  return static_cast<int>(links.size()) - 1;
}

inline void touch(int link, int Link::*side) {
  Recorder& r = recorder();
  // Between commands a stream that outlives them may be emptied by anybody.
  if (r.process > 0) {
    int& owner = r.links[link].*side;
    if (owner < 0) owner = r.process;
    if (owner != r.process) fail("stream " + r.links[link].name + " has two processes at one end");
  }
  r.held[link] += side == &Link::writer ? 1 : -1;
  std::vector<Record>* trace = r.trace();
  if (trace == nullptr) return;
  if (!r.inside) trace->push_back({0, 0, kOutsideLoops, false});
  const uint64_t bit = uint64_t(1) << link;
  if (trace->back().streams & bit)
    fail("stream " + r.links[link].name + " moves twice in a trip that takes one cycle");
  trace->back().streams |= bit;
}

inline void ask(int link) {
  std::vector<Record>* trace = recorder().trace();
  if (trace != nullptr) trace->back().asked |= uint64_t(1) << link;
}

}  // namespace counting

constexpr bool kCommandsOverlap = false;

template <typename T, int kDepth>
class Stream {
 public:
  explicit Stream(const char* name) : link_(counting::link_of(name, kDepth)) {}
  ~Stream() {
    if (!values_.empty())
      counting::fail("something is left in stream " + counting::recorder().links[link_].name);
  }
  bool empty() {
    counting::ask(link_);
    return values_.empty();
  }
  void write(const T& value) {
    counting::touch(link_, &counting::Link::writer);
    values_.push_back(value);
  }
  T read() {
    counting::touch(link_, &counting::Link::reader);
    if (values_.empty())
      counting::fail("read of empty stream " + counting::recorder().links[link_].name);
    const T value = values_.front();
    values_.pop_front();
    return value;
  }

 private:
  int link_;
  std::deque<T> values_;
};

}  // namespace bbs

#define BBS_REGION bbs::counting::Region region
#define BBS_PROCESS(call) call
