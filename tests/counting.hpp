// SPDX-License-Identifier: Apache-2.0
// Stands in for hls/dataflow.hpp in a counting build: counts the trips of every pipelined loop,
// and keeps which stream each trip read or wrote, so that the run can be replayed in time.
//
// Counts and traces do not depend on timing, because a process only ever blocks on a stream
// (it cannot ask whether one is empty). So they are taken from a run of one process after
// another, and `bbs_counting_replay` finds out afterwards what would have happened when.
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
constexpr int kMostLoops = 32;
constexpr uint8_t kOutsideLoops = 255;
constexpr uint8_t kCall = 254;  // a process that is called again and again: here it was
constexpr int kPortBytes = 8;

// One trip of a pipelined loop, or what happens between two loops.
struct Record {
  uint32_t streams;  // bit set: what it reads and writes
  uint8_t loop;
  bool first;  // first trip of a run of the loop
};

struct Link {
  std::string name;
  int depth;
  int writer;
  int reader;
};

struct Recorder {
  bool tracing = false;
  int process = 0;
  bool begun = false;   // before the first trip of a loop
  bool inside = false;  // of a pipelined loop
  uint64_t trips[kMostProcesses][kMostLoops] = {};
  std::vector<Record> trace[kMostProcesses];
  std::vector<Link> links;
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
inline void enter(int process) {
  Recorder& r = recorder();
  r.process = process;
  if (r.tracing) r.trace[process].push_back({0, kCall, false});
}

// These stand before a pipelined loop, first in its body, and behind it.
inline void begin() { recorder().begun = true; }

inline void trip(int loop) {
  Recorder& r = recorder();
  r.trips[r.process][loop]++;
  if (r.tracing) r.trace[r.process].push_back({0, static_cast<uint8_t>(loop), r.begun});
  r.begun = false;
  r.inside = true;
}

inline void end() { recorder().inside = false; }

inline int link_of(const char* name, int depth) {
  std::vector<Link>& links = recorder().links;
  for (size_t i = 0; i < links.size(); i++)
    if (links[i].name == name) return static_cast<int>(i);
  if (links.size() == 32) fail("more streams than a record has bits");
  links.push_back({name, depth, -1, -1});
  return static_cast<int>(links.size()) - 1;
}

inline void touch(int link, int Link::*side) {
  Recorder& r = recorder();
  int& owner = r.links[link].*side;
  if (owner < 0) owner = r.process;
  if (owner != r.process) fail("stream " + r.links[link].name + " has two processes at one end");
  if (!r.tracing) return;
  std::vector<Record>& trace = r.trace[r.process];
  if (!r.inside) trace.push_back({0, kOutsideLoops, false});
  const uint32_t bit = 1u << link;
  if (trace.back().streams & bit)
    fail("stream " + r.links[link].name + " moves twice in a trip that takes one cycle");
  trace.back().streams |= bit;
}

}  // namespace counting

template <typename T, int kDepth>
class Stream {
 public:
  explicit Stream(const char* name) : link_(counting::link_of(name, kDepth)) {}
  ~Stream() {
    if (!values_.empty())
      counting::fail("something is left in stream " + counting::recorder().links[link_].name);
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

#define BBS_REGION
#define BBS_PROCESS(call) call
