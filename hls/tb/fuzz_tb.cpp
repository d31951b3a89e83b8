// SPDX-License-Identifier: Apache-2.0
// Damaged commands at a guarded memory block, alone and in programs: whatever the engine accepts
// stays inside, whatever it refuses leaves memory as it was. Under a sanitizer the guards are
// those of the allocator.
#include <memory>

#include "programs.hpp"

namespace {

constexpr tb::Limits kLimits = {12, 4, 100};  // a case must be quick
constexpr size_t kMostWords = 400;            // of one plane
#ifdef BBS_TB_QUICK
constexpr size_t kGuard = 0;  // sanitised: the allocator guards a block that is all it allocated
#else
constexpr size_t kGuard = 64;  // words before and after the block
#endif
constexpr uint64_t kGuardWord = 0xfedcba9876543210u;

// A copy of memory between guards.
class Guarded {
 public:
  explicit Guarded(const tb::Words& words)
      : before(words), allocated_(new uint64_t[words.size() + 2 * kGuard]) {
    std::fill_n(allocated_.get(), kGuard, kGuardWord);
    std::copy(words.begin(), words.end(), block());
    std::fill_n(block() + words.size(), kGuard, kGuardWord);
  }
  uint64_t* block() { return allocated_.get() + kGuard; }
  uint32_t size() const { return (uint32_t)before.size(); }

  // Nothing differs from before but where `outputs` allows it.
  void expect_same(const std::vector<bool>& outputs) {
    for (uint32_t i = 0; i < size(); i++)
      if (!outputs[i]) TB_EXPECT(block()[i], before[i], "word %u outside the outputs", i);
    TB_EXPECT(std::count(allocated_.get(), block(), kGuardWord), kGuard, "guards before the block");
    TB_EXPECT(std::count(block() + size(), block() + size() + kGuard, kGuardWord), kGuard,
              "guards after the block");
  }

  const tb::Words before;

 private:
  std::unique_ptr<uint64_t[]> allocated_;
};

// Flips bits or replaces a byte of an encoded command.
void damage(tb::Random& random, uint64_t words[bbs::kCommandWords]) {
  for (int n = random.between(1, 3); n > 0; n--) {
    const int last = bbs::kCommandWords - 1;  // with the signature
    uint64_t& word = words[random.once_in(8) ? last : random.between(0, last - 1)];
    const int shift = random.between(0, 63);
    if (random.once_in(2))
      word ^= (uint64_t)1 << shift;
    else
      word ^= (random.bits() & 0xff) << (shift & ~7);
  }
}

void expect_bursts_inside(bbs::BurstStream& stream, uint32_t memory_words) {
  while (!stream.empty()) {
    const bbs::Burst burst = stream.read();
    if (burst.count == 0 || burst.times == 0) continue;
    const uint64_t end =
        burst.offset + (burst.times - 1) * (uint64_t)burst.step + burst.count;
    if (end > memory_words) tb::differs((int64_t)end, memory_words, "end of a burst");
  }
}

// Every burst of an accepted command lies inside the memory: the fetches and stores do no more
// than they are told.
void expect_inside(const bbs::Command& c, const bbs::Shape& s, uint32_t memory_words) {
  tb::SequenceStreams streams;
  streams.run(c, s);
  if (tb::has(c, bbs::kFlagToMemory)) expect_bursts_inside(streams.stores, memory_words);
  for (bbs::BurstStream* stream : {&streams.weights, &streams.indices, &streams.rows,
                                   &streams.acts, &streams.residuals})
    expect_bursts_inside(*stream, memory_words);
}

// Where an accepted command may write.
void allow_outputs(const bbs::Command& c, std::vector<bool>& outputs) {
  if (!tb::has(c, bbs::kFlagToMemory)) return;
  const uint64_t size = tb::has(c, bbs::kFlagSumsOut) ? 4 : 1;
  const uint64_t tile = tb::output_rows(c) * size * bbs::kCols / bbs::kPortBytes;
  const uint64_t step = c.output_stride * size * bbs::kCols / bbs::kPortBytes;
  const auto allow = [&](uint64_t at) {
    if (at < outputs.size())
      outputs[at] = true;
    else
      tb::differs((int64_t)at, (int64_t)outputs.size(), "output word outside");
  };
  for (uint64_t t = 0; t < c.tiles; t++)
    for (uint64_t i = 0; i < tile; i++) allow(c.output + t * step + i);
  if (!tb::has(c, bbs::kFlagStateOut)) return;
  for (uint64_t i = 0; i < c.state_words; i++) allow((uint64_t)c.state + i);
}

struct Tally {
  int64_t accepted = 0, refused = 0, chained = 0;
};

// Runs `count` commands at `first`; the engine's status is that of its own check, one after the
// other. A command that an output fell upon is not known any more.
void run(Guarded& memory, uint32_t first, uint32_t count, bool damaged, Tally& tally) {
  const tb::Registers r = tb::run_engine(memory.block(), memory.size(), first, count);
  std::vector<bool> outputs(memory.size());
  uint32_t level = 0, status = bbs::kStatusOk, done = 0;
  while (done < count && status == bbs::kStatusOk) {
    const uint32_t at = first + done * bbs::kCommandWords;
    for (int i = 0; i < bbs::kCommandWords; i++)
      if (outputs[at + i]) return;
    const bbs::Command c = bbs::decode_command(&memory.before[at]);
    bbs::Shape s;
    status = bbs::check_command(c, memory.size(), level, s);
    if (status != bbs::kStatusOk) break;
    expect_inside(c, s, memory.size());
    allow_outputs(c, outputs);
    level += s.chain_change;
    tally.chained += tb::has(c, bbs::kFlagFromChain);
    done++;
  }
  TB_EXPECT(r.status, status, "the engine's own check");
  TB_EXPECT(r.completed, done, "completed");
  if (!damaged) TB_EXPECT(r.status, bbs::kStatusOk, "status of undamaged commands");
  memory.expect_same(outputs);
  (status == bbs::kStatusOk ? tally.accepted : tally.refused)++;
}

bbs::Command small_command(tb::Random& random) {
  for (;;) {
    const bbs::Command c = tb::random_command(random, kLimits);
    const std::vector<uint64_t> sizes = tb::plane_sizes(c);
    if (*std::max_element(sizes.begin(), sizes.end()) <= kMostWords) return c;
  }
}

// One command whose planes lie anywhere, often at the very end.
void run_alone(tb::Random& random, Tally& tally) {
  bbs::Command c = small_command(random);
  const std::vector<uint64_t> sizes = tb::plane_sizes(c);
  const uint64_t largest = *std::max_element(sizes.begin(), sizes.end());
  const uint32_t words = (uint32_t)largest + random.between(bbs::kCommandWords, 200);
  const std::vector<uint32_t*> offsets = tb::plane_offsets(c);
  for (size_t i = 0; i < sizes.size(); i++)
    *offsets[i] = random.once_in(2) ? (uint32_t)(words - sizes[i])
                                    : random.between(0, words - sizes[i]);
  uint64_t encoded[bbs::kCommandWords];
  tb::encode_command(c, encoded);
  const bool damaged = !random.once_in(8);
  if (damaged) damage(random, encoded);
  tb::Words block(words);
  for (uint64_t& word : block) word = random.bits();
  const uint32_t first = random.between(0, words - bbs::kCommandWords);
  std::copy_n(encoded, bbs::kCommandWords, block.begin() + first);
  Guarded memory(block);
  run(memory, first, 1, damaged, tally);
}

// A program with the chain, resident images and resident weights, one of its commands damaged.
void run_program(tb::Random& random, Tally& tally) {
  tb::Program program = tb::random_program(random, kLimits, random.between(2, 4));
  const uint32_t count = (uint32_t)program.commands.size();
  const uint32_t which = random.between(0, count - 1);
  const bool damaged = !random.once_in(8);
  if (damaged)
    damage(random, &program.memory()[program.first_command + which * bbs::kCommandWords]);
  Guarded memory(program.memory());
  run(memory, program.first_command, count, damaged, tally);
}

}  // namespace

int main() {
  tb::Random random(13);
  Tally tally;
  const int alone = tb::cases(60000), programs = tb::cases(6000);
  for (int i = 0; i < alone; i++) run_alone(random, tally);
  for (int i = 0; i < programs; i++) run_program(random, tally);
  std::printf("fuzz_tb: %" PRId64 " accepted, %" PRId64 " refused, %" PRId64 " from the chain\n",
              tally.accepted, tally.refused, tally.chained);
  TB_EXPECT(tally.accepted > alone / 5, true, "enough accepted");
  TB_EXPECT(tally.refused > alone / 5, true, "enough refused");
  TB_EXPECT(tally.chained > programs / 50, true, "enough from the chain");
  return tb::finish("fuzz_tb", tally.accepted + tally.refused, "starts");
}
