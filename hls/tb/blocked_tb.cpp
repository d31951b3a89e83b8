// SPDX-License-Identifier: Apache-2.0
// The watchdog itself: a region that cannot go on ends, and says which stream it waits for.
#ifndef BBS_THREADED
#error "compile with -DBBS_THREADED"
#endif

#include "testbench.hpp"
#include "unpack.hpp"

namespace {

using Small = bbs::Stream<int, 4>;

void expect_blocked(const char* name, const char* wanted) {
  std::string& blocked = bbs::Watchdog::instance().blocked;
  std::printf("%s: %s\n", name, blocked.empty() ? "nothing blocked" : blocked.c_str());
  TB_EXPECT(blocked.empty(), wanted[0] == '\0', "%s: whether a stream is named", name);
  TB_EXPECT(blocked.find(wanted) != std::string::npos, true, "%s: '%s' is named", name, wanted);
  blocked.clear();
}

// `count` values, all to `a` first, then all to `b`.
void fork(int count, Small& a, Small& b) {
  for (int i = 0; i < count; i++) a.write(i);
  for (int i = 0; i < count; i++) b.write(i);
}

// Takes them in turn, as where branches rejoin.
void rejoin(int count, Small& a, Small& b) {
  for (int i = 0; i < count; i++) TB_EXPECT(a.read(), b.read(), "value %d", i);
}

void fork_and_rejoin(int written, int read) {
  Small a("branch_a"), b("branch_b");
  BBS_REGION;
  BBS_PROCESS(fork(written, a, b));
  BBS_PROCESS(rejoin(read, a, b));
}

// Two stages of the engine over a weight burst of `words` port words for a visit that needs 6.
void fetch_and_unpack(uint32_t words) {
  const bbs::word_t memory[6 * bbs::kLaneWords] = {};
  bbs::Command c = {};
  c.flags = bbs::kFlagDense;
  c.keep = 2;
  bbs::BurstStream bursts("bursts");
  bbs::VisitStream visits("visits");
  bbs::WordStream weight_words("weight_words"), index_words("index_words");
  bbs::WeightStream csb_words("csb_words");
  bbs::Visit visit = {};
  visit.rows = 3;
  visit.row_words = 2;
  visit.final = true;
  visits.write(visit);
  bbs::Burst burst = bbs::no_burst();
  burst.count = words * bbs::kLaneWords;
  burst.times = 1;
  burst.final = true;
  bursts.write(burst);
  bbs::UnpackCommandStream commands("commands");
  commands.write(bbs::unpack_command(c));
  commands.write(bbs::end_mark<bbs::UnpackCommand>());
  BBS_REGION;
  BBS_PROCESS(bbs::fetch(memory, bursts, weight_words));
  BBS_PROCESS(bbs::unpack(commands, visits, weight_words, index_words, csb_words));
}

}  // namespace

int main() {
  bbs::Watchdog::instance().patience = std::chrono::milliseconds(300);
  fork_and_rejoin(5, 5);
  expect_blocked("as deep as needed", "");
  fork_and_rejoin(6, 6);  // the reader holds one more
  expect_blocked("a branch too shallow", "branch_a is full");
  fork_and_rejoin(3, 4);
  expect_blocked("one value short", "branch_a is empty");
  fetch_and_unpack(6);
  expect_blocked("words that suffice", "");
  fetch_and_unpack(5);
  expect_blocked("a burst one word short", "weight_words is empty");
  return tb::finish("blocked_tb", 5, "regions");
}
