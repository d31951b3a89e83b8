// SPDX-License-Identifier: Apache-2.0
// Threads that stay: starting one takes longer than many a layer. They sleep until a caller has
// work; several callers may have some at once.
#pragma once

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace pool {

// What a caller wants done: `run(body)` on each of some threads, all of which take from one list.
struct Job {
  void (*run)(const void* body);
  const void* body;
  size_t wanted;   // helpers that have not begun
  size_t running;  // helpers that have not ended
};

class Pool {
 public:
  // Runs the job here and on up to job.wanted threads of the pool. Whoever has not begun when the
  // caller finds nothing left to do need not: a busy machine's late threads hold up nobody.
  void run(Job& job) {
    const size_t helpers = job.wanted;  // the others may read it with the lock only
    try {
      const std::lock_guard<std::mutex> lock(mutex_);
      jobs_.push_back(&job);
      while (!stopped_ && workers_.size() < helpers) workers_.emplace_back([this] { work(); });
    } catch (const std::exception&) {
      // no memory or no more threads to be had: those there are do the work
    }
    for (size_t i = 0; i < helpers; ++i) wake_.notify_one();
    job.run(job.body);
    std::unique_lock<std::mutex> lock(mutex_);
    const auto at = std::find(jobs_.begin(), jobs_.end(), &job);
    if (at != jobs_.end()) jobs_.erase(at);
    ended_.wait(lock, [&] { return job.running == 0; });
  }

  // Ends the threads. Callers that come later do their work alone.
  void stop() {
    std::vector<std::thread> workers;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopped_ = true;
      workers.swap(workers_);
    }
    wake_.notify_all();
    for (std::thread& worker : workers) worker.join();
  }

 private:
  void work() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return stopped_ || !jobs_.empty(); });
      if (stopped_) return;
      Job& job = *jobs_.front();
      ++job.running;
      if (--job.wanted == 0) jobs_.pop_front();
      lock.unlock();
      job.run(job.body);
      lock.lock();
      if (--job.running == 0) ended_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable ended_;
  std::deque<Job*> jobs_;  // those that want helpers
  std::vector<std::thread> workers_;
  bool stopped_ = false;
};

namespace {

// The process's pool, made at the first use.
std::atomic<Pool*> current{nullptr};

struct Life {
  // A forked child has none of its parent's threads, and perhaps a lock that one of them held: it
  // leaves the parent's pool alone and makes its own.
  Life() {
    pthread_atfork(nullptr, nullptr, [] { current.store(nullptr); });
  }
  // At exit, or where the library is unloaded, whose code the threads must not run then. The pool
  // itself stays, for a caller that is still in it.
  ~Life() {
    if (Pool* pool = current.load()) pool->stop();
  }
} life;

// Throws std::bad_alloc.
Pool& the_pool() {
  Pool* found = current.load();
  if (found != nullptr) return *found;
  Pool* made = new Pool;
  if (current.compare_exchange_strong(found, made)) return *made;
  delete made;
  return *found;
}

// Calls `body`, which must not throw, here and on up to `helpers` threads at once. Throws
// std::bad_alloc before it does anything.
template <typename Body>
void run(size_t helpers, const Body& body) {
  if (helpers == 0) return body();
  Job job{[](const void* b) { (*static_cast<const Body*>(b))(); }, &body, helpers, 0};
  the_pool().run(job);
}

}  // namespace
}  // namespace pool
