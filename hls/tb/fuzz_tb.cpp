// SPDX-License-Identifier: Apache-2.0
// Damaged commands at a guarded memory block: whatever the engine accepts stays inside, whatever
// it refuses leaves memory as it was. Under a sanitizer the guards are those of the allocator.
#include <memory>

#include "memory_block.hpp"

namespace {

constexpr size_t kMostWords = 400;  // of one plane: a case must be quick
#ifdef BBS_TB_QUICK
constexpr size_t kGuard = 0;  // sanitised: the allocator guards a block that is all it allocated
#else
constexpr size_t kGuard = 64;  // words before and after the block
#endif
constexpr uint64_t kGuardWord = 0xfedcba9876543210u;

bbs::Command small_command(tb::Random& random) {
  for (;;) {
    const bbs::Command c = tb::random_command(random, 12, 4, 3);
    const std::vector<uint64_t> sizes = tb::plane_sizes(c);
    if (*std::max_element(sizes.begin(), sizes.end()) <= kMostWords) return c;
  }
}

// Flips bits or replaces a byte of an encoded command.
void damage(tb::Random& random, uint64_t words[bbs::kCommandWords]) {
  for (int n = random.between(1, 3); n > 0; n--) {
    uint64_t& word = words[random.between(0, bbs::kCommandWords - 1)];
    const int shift = random.between(0, 63);
    if (random.once_in(2))
      word ^= (uint64_t)1 << shift;
    else
      word ^= (random.bits() & 0xff) << (shift & ~7);
  }
}

// Every burst of an accepted command lies inside the memory: the fetches and stores do no more
// than they are told.
void expect_inside(const bbs::Command& c, const bbs::Shape& s, uint32_t memory_words) {
  tb::SequenceStreams streams;
  streams.run(c, s);
  for (bbs::BurstStream* stream :
       {&streams.weights, &streams.indices, &streams.rows, &streams.acts, &streams.stores}) {
    for (bool final = false; !final;) {
      const bbs::Burst burst = stream->read();
      const uint64_t end = (uint64_t)burst.offset + burst.count;
      if (end > memory_words) tb::differs((int64_t)end, memory_words, "end of a burst");
      final = burst.final;
    }
  }
}

void expect_same(const uint64_t* block, const tb::Words& before, uint64_t from, uint64_t to) {
  if (from >= to || std::memcmp(block + from, &before[from], (to - from) * 8) == 0) return;
  for (uint64_t i = from; i < to; i++)
    TB_EXPECT(block[i], before[i], "word %" PRIu64 " outside the output", i);
}

struct Tally {
  int64_t accepted = 0, refused = 0;
};

void run(tb::Random& random, Tally& tally) {
  bbs::Command c = small_command(random);
  const std::vector<uint64_t> sizes = tb::plane_sizes(c);
  const uint64_t largest = *std::max_element(sizes.begin(), sizes.end());
  const uint32_t words = (uint32_t)largest + random.between(bbs::kCommandWords, 200);
  const std::vector<uint32_t*> offsets = tb::plane_offsets(c);
  for (size_t i = 0; i < sizes.size(); i++)  // often at the very end
    *offsets[i] = random.once_in(2) ? (uint32_t)(words - sizes[i])
                                    : random.between(0, words - sizes[i]);
  uint64_t encoded[bbs::kCommandWords];
  tb::encode_command(c, encoded);
  const bool damaged = !random.once_in(8);
  if (damaged) damage(random, encoded);

  const std::unique_ptr<uint64_t[]> allocated(new uint64_t[words + 2 * kGuard]);
  uint64_t* const block = allocated.get() + kGuard;
  std::fill_n(allocated.get(), kGuard, kGuardWord);
  std::fill_n(block + words, kGuard, kGuardWord);
  for (uint32_t i = 0; i < words; i++) block[i] = random.bits();
  const uint32_t first = random.between(0, words - bbs::kCommandWords);
  std::copy_n(encoded, bbs::kCommandWords, block + first);
  const tb::Words before(block, block + words);

  const tb::Registers r = tb::run_engine(block, words, first, 1);
  const bool accepted = r.status == bbs::kStatusOk;
  TB_EXPECT(r.completed, accepted, "completed, with status %u", r.status);
  if (!damaged) TB_EXPECT(r.status, bbs::kStatusOk, "status of an undamaged command");
  const bbs::Command read = bbs::decode_command(encoded);
  bbs::Shape s;
  TB_EXPECT(bbs::check_command(read, words, s), r.status, "the engine's own check");
  if (accepted) expect_inside(read, s, words);
  const uint64_t outputs = accepted ? (uint64_t)read.rows * read.tiles * s.output_words : 0;
  const uint32_t from = accepted ? read.output : words;
  expect_same(block, before, 0, from);
  expect_same(block, before, from + outputs, words);
  TB_EXPECT(std::count(allocated.get(), block, kGuardWord), kGuard, "guards before the block");
  TB_EXPECT(std::count(block + words, block + words + kGuard, kGuardWord), kGuard,
            "guards after the block");
  (accepted ? tally.accepted : tally.refused)++;
}

}  // namespace

int main() {
  tb::Random random(13);
  Tally tally;
  for (int i = 0; i < 100000; i++) run(random, tally);
  std::printf("fuzz_tb: %" PRId64 " accepted, %" PRId64 " refused\n", tally.accepted,
              tally.refused);
  TB_EXPECT(tally.accepted > 20000, true, "enough commands accepted");
  TB_EXPECT(tally.refused > 20000, true, "enough commands refused");
  return tb::finish("fuzz_tb", tally.accepted + tally.refused, "commands");
}
