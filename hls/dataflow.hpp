// SPDX-License-Identifier: Apache-2.0
// Channels and processes of a dataflow region: hls::stream in synthesis, a queue in g++.
//
// Built plainly, g++ runs the processes of a region one after another, each to its end, over
// queues without bound. With BBS_THREADED every process is a thread and every queue has the
// depth it has in hardware, so that a queue too shallow blocks here as it would there; a
// process that waits too long names the stream it waits for (`Watchdog`).
//
// Where processes run one after another, a region takes one command: what a command leaves in the
// chain must be there before the next one reads it. Else it takes all that follow each other.
#pragma once

#ifdef __SYNTHESIS__

#include <hls_stream.h>

namespace bbs {

constexpr bool kCommandsOverlap = true;

template <typename T, int kDepth>
using Stream = hls::stream<T, kDepth>;

}  // namespace bbs

#define BBS_REGION
#define BBS_PROCESS(call) call

#elif !defined(BBS_THREADED)

#include <cassert>
#include <cstddef>
#include <utility>
#include <vector>

namespace bbs {

constexpr bool kCommandsOverlap = false;

template <typename T, int kDepth>
class Stream {
 public:
  explicit Stream(const char* name) : name_(name) {
    if (spares().empty()) return;
    values_ = std::move(spares().back());
    spares().pop_back();
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() {
    if (values_.capacity() * sizeof(T) > kMostSpareBytes) return;
    values_.clear();
    spares().push_back(std::move(values_));
  }
  bool empty() const { return head_ == values_.size(); }
  void write(const T& value) { values_.push_back(value); }
  T read() {
    assert(head_ < values_.size() && name_ != nullptr && "a process read more than was written");
    const T value = values_[head_++];
    if (head_ == values_.size()) {  // empty: start over, so that memory is used again
      values_.clear();
      head_ = 0;
    }
    return value;
  }

 private:
  // Storage outlives the command: fresh pages would cost more than the work on small layers.
  static constexpr size_t kMostSpareBytes = size_t(16) << 20;
  // Hidden, because a linker would merge the storage of all engines of a process, and words of one
  // name are of other sizes in other builds.
  __attribute__((visibility("hidden"))) static std::vector<std::vector<T>>& spares() {
    static thread_local std::vector<std::vector<T>> storage;
    return storage;
  }

  const char* name_;
  std::vector<T> values_;
  size_t head_ = 0;
};

}  // namespace bbs

#define BBS_REGION
#define BBS_PROCESS(call) call

#else

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace bbs {

constexpr bool kCommandsOverlap = true;

// What a bounded run learnt: the fullest each stream has been, and the stream that blocked.
struct Watchdog {
  static Watchdog& instance() {
    static Watchdog watchdog;
    return watchdog;
  }
  std::mutex mutex;
  std::chrono::milliseconds patience{2000};
  std::map<std::string, std::pair<int, int>> high_water;  // name -> (fullest, depth)
  std::string blocked;
};

struct Blocked : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <typename T, int kDepth>
class Stream {
 public:
  explicit Stream(const char* name) : name_(name) {}
  ~Stream() {
    Watchdog& watchdog = Watchdog::instance();
    std::lock_guard<std::mutex> lock(watchdog.mutex);
    auto& mark = watchdog.high_water[name_];
    mark = {fullest_ > mark.first ? fullest_ : mark.first, kDepth};
  }
  bool empty() {
    std::lock_guard<std::mutex> lock(mutex_);
    return values_.empty();
  }
  void write(const T& value) {
    std::unique_lock<std::mutex> lock(mutex_);
    wait(lock, "full", [this] { return values_.size() < static_cast<size_t>(kDepth); });
    values_.push_back(value);
    if (static_cast<int>(values_.size()) > fullest_) fullest_ = static_cast<int>(values_.size());
    changed_.notify_all();
  }
  T read() {
    std::unique_lock<std::mutex> lock(mutex_);
    wait(lock, "empty", [this] { return !values_.empty(); });
    const T value = values_.front();
    values_.pop_front();
    changed_.notify_all();
    return value;
  }

 private:
  template <typename Ready>
  void wait(std::unique_lock<std::mutex>& lock, const char* state, Ready ready) {
    Watchdog& watchdog = Watchdog::instance();
    if (changed_.wait_for(lock, watchdog.patience, ready)) return;
    std::lock_guard<std::mutex> guard(watchdog.mutex);
    watchdog.blocked += std::string(name_) + " is " + state + "; ";
    throw Blocked(name_);
  }

  const char* name_;
  int fullest_ = 0;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<T> values_;
};

// Joins its threads when the region ends.
class Region {
 public:
  ~Region() {
    for (std::thread& thread : threads_) thread.join();
  }
  void start(std::function<void()> process) {
    threads_.emplace_back([process] {
      try {
        process();
      } catch (const Blocked&) {  // noted by the watchdog; the others run into it in turn
      }
    });
  }

 private:
  std::vector<std::thread> threads_;
};

}  // namespace bbs

#define BBS_REGION bbs::Region region
#define BBS_PROCESS(call) region.start([&] { call; })

#endif
