// The stress program through the layer, over the provider double: everything at once, every byte
// checked; and the same while the devices under it come and go. SYMVIRT_STRESS_CYCLES: how many
// moves (20). SYMVIRT_STRESS_SEED: another course of things; printed, so that it can be repeated.
#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/verbs/stress_job.h"
#include "tests/verbs/stress_plan.h"

namespace symvirt::verbs_stress {
namespace {

using std::chrono::milliseconds;

std::uint64_t setting(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr ? std::strtoull(text, nullptr, 10) : otherwise;
}

StressOptions small() {
  StressOptions options;
  options.seed = setting("SYMVIRT_STRESS_SEED", 1);
  options.rc = 4;
  options.uc = 1;
  options.ud = 1;
  options.patience_s = 30;
  return options;
}

void expect_good(const std::vector<StressResult>& results) {
  for (const StressResult& result : results) {
    EXPECT_EQ(result.error, "");
    EXPECT_GT(result.messages, 0u);
    EXPECT_GT(result.one_sided, 0u);
    std::printf(
        "%llu messages, %llu bytes, %llu one-sided, %llu lost, %llu+%llu events, %llu churned\n",
        static_cast<unsigned long long>(result.messages),
        static_cast<unsigned long long>(result.bytes),
        static_cast<unsigned long long>(result.one_sided),
        static_cast<unsigned long long>(result.lost),
        static_cast<unsigned long long>(result.events),
        static_cast<unsigned long long>(result.async_events),
        static_cast<unsigned long long>(result.churned));
  }
}

TEST(VerbsStress, PassesThroughUnchanged) {
  StressOptions options = small();
  options.messages = 300;
  StressJob job(2, options, {.seed = options.seed});
  job.start();
  const auto results = job.join();
  expect_good(results);
  for (const StressResult& result : results) EXPECT_EQ(result.lost, 0u);
  EXPECT_TRUE(job.fabric().violations().empty());
}

#ifdef SYMVIRT_STRESS_MOVES
// Random moments, random sets of ranks that move, some attempts given up half way, some ranks that
// do not read while they are asked to rest.
void move_often(int ranks, StressOptions options) {
  options.messages = 0;
  const std::uint64_t cycles = setting("SYMVIRT_STRESS_CYCLES", 20);
  StressJob job(ranks, options, {.seed = options.seed});
  Random random(options.seed * 31);
  job.start();
  job.await_devices();
  std::uint64_t rested = 0;
  double drain = 0;
  double rebuild = 0;
  for (std::uint64_t cycle = 0; cycle < cycles; ++cycle) {
    std::this_thread::sleep_for(milliseconds(random.below(60)));
    if (job.running() == false) break;
    if (random.chance(30)) {
      job.deafen(random.below(1u << ranks));
      std::this_thread::sleep_for(milliseconds(random.below(30)));
    }
    const int give_up = random.chance(15) ? static_cast<int>(1 + random.below(5)) : 0;
    const MoveReport report = job.move(random.below(1u << ranks), give_up, random.chance(10));
    job.deafen(0);
    ASSERT_EQ(report.error, "") << "cycle " << cycle;
    EXPECT_TRUE(report.rested || give_up != 0)
        << "cycle " << cycle << " could not come to rest:" << report.course.substr(0, 600);
    rested += report.rested;
    drain += report.drain_s;
    rebuild += report.rebuild_s;
    const std::uint64_t before = stress_progress();
    for (int i = 0; i < 30000 && stress_progress() == before && job.running(); ++i)
      std::this_thread::sleep_for(milliseconds(1));
    EXPECT_TRUE(stress_progress() != before || !job.running()) << "nothing moves after " << cycle;
  }
  job.stop();
  expect_good(job.join());
  for (const std::string& violation : job.fabric().violations()) ADD_FAILURE() << violation;
  std::printf("%llu of %llu came to rest; per move %.1f ms to drain, %.1f ms to rebuild\n",
              static_cast<unsigned long long>(rested), static_cast<unsigned long long>(cycles),
              drain * 1e3 / static_cast<double>(cycles),
              rebuild * 1e3 / static_cast<double>(cycles));
}

TEST(VerbsStress, SurvivesMovesOfTwoRanks) { move_often(2, small()); }

TEST(VerbsStress, SurvivesMovesOfThreeRanksSomeOfWhichStay) {
  StressOptions options = small();
  options.seed += 1000;
  options.rc = 3;
  move_often(3, options);
}

TEST(VerbsStress, SurvivesMovesWithOneDeepQueueAndManyThreads) {
  StressOptions options = small();
  options.seed += 2000;
  options.groups = 4;
  options.rc = 8;
  options.depth = 128;
  options.window = 64;
  move_often(2, options);
}
#endif

}  // namespace
}  // namespace symvirt::verbs_stress
