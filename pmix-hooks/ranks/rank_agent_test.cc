#include "pmix-hooks/ranks/rank_agent.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace symvirt::hooks {
namespace {

using namespace std::chrono_literals;

class FakeLink final : public RankLink {
 public:
  bool send(int code, const std::string& message) override {
    const std::lock_guard lock(mutex);
    codes.push_back(code);
    answers.push_back(*parse_answer(message));
    changed.notify_all();
    return true;
  }
  bool wait_for(std::size_t count, std::chrono::seconds limit = 5s) {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, limit, [&] { return answers.size() >= count; });
  }
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<int> codes;
  std::vector<Answer> answers;
};

class FakeTransport final : public Transport {
 public:
  TransportAnswer quiesce(std::uint64_t, std::uint32_t round, const Payloads& payloads,
                          bool device_leaves) override {
    ++quiesces;
    leaves = device_leaves;
    seen = payloads;
    while (block) std::this_thread::sleep_for(1ms);
    return {round < rounds, "q" + std::to_string(round)};
  }
  TransportAnswer resume(std::uint64_t, std::uint32_t round, const Payloads&) override {
    ++resumes;
    return {round < rounds, "r" + std::to_string(round)};
  }
  void peers(const Payloads& payloads) override {
    ++told;
    seen = payloads;
  }
  std::atomic<int> told{0};
  std::atomic<int> quiesces{0};
  std::atomic<int> resumes{0};
  std::uint32_t rounds = 1;
  std::atomic<bool> leaves{false};
  std::atomic<bool> block{false};
  Payloads seen;
};

struct RankAgentTest : testing::Test {
  FakeTransport transport;
  FakeLink link;
  RankAgent agent{77, transport, link};
  void command(int code, std::uint64_t epoch, std::uint32_t round, Payloads payloads = {}) {
    agent.deliver(code, encode_command({epoch, round, std::move(payloads)}));
  }
};

TEST_F(RankAgentTest, AnswersRestWhenTheTransportIsAtRest) {
  ASSERT_TRUE(agent.start());
  command(kEventQuiesce, 5, 1);
  ASSERT_TRUE(link.wait_for(1));
  EXPECT_EQ(link.codes[0], kEventAnswer);
  EXPECT_EQ(link.answers[0], (Answer{5, 1, 77, AnswerState::kRest, "q1"}));
}

TEST_F(RankAgentTest, GoesThroughTheRoundsOfItsTransport) {
  transport.rounds = 2;
  ASSERT_TRUE(agent.start());
  command(kEventQuiesce, 5, 1);
  command(kEventQuiesce, 5, 2, {{"1", "other"}});
  command(kEventResume, 5, 1);
  command(kEventResume, 5, 2);
  ASSERT_TRUE(link.wait_for(4));
  EXPECT_EQ(link.answers[0].state, AnswerState::kMore);
  EXPECT_EQ(link.answers[1].state, AnswerState::kRest);
  EXPECT_EQ(transport.seen, (Payloads{{"1", "other"}}));
  EXPECT_EQ(link.answers[2].state, AnswerState::kMore);
  EXPECT_EQ(link.answers[3].state, AnswerState::kDone);
}

TEST_F(RankAgentTest, RepeatedCommandIsAnsweredAgainButNotDoneAgain) {
  ASSERT_TRUE(agent.start());
  command(kEventQuiesce, 5, 1);
  command(kEventQuiesce, 5, 1);
  ASSERT_TRUE(link.wait_for(2));
  EXPECT_EQ(transport.quiesces, 1);
  EXPECT_EQ(link.answers[0], link.answers[1]);
}

// A coordinator that begins anew has never resumed the first one.
TEST_F(RankAgentTest, ANewEpochIsNoRepetition) {
  ASSERT_TRUE(agent.start());
  command(kEventQuiesce, 5, 1);
  command(kEventQuiesce, 6, 1);
  ASSERT_TRUE(link.wait_for(2));
  EXPECT_EQ(transport.quiesces, 2);
  EXPECT_EQ(link.answers[1].epoch, 6u);
}

TEST_F(RankAgentTest, QuiesceAfterResumeOfTheSameEpochIsDone) {
  ASSERT_TRUE(agent.start());
  command(kEventQuiesce, 5, 1);
  command(kEventResume, 5, 1);
  command(kEventQuiesce, 5, 1);
  ASSERT_TRUE(link.wait_for(3));
  EXPECT_EQ(transport.quiesces, 2);
}

TEST_F(RankAgentTest, BrokenCommandIsIgnoredAndTheNextServed) {
  ASSERT_TRUE(agent.start());
  agent.deliver(kEventQuiesce, "");
  agent.deliver(kEventQuiesce, "{\"epoch\":true}");
  command(kEventQuiesce, 6, 1);
  ASSERT_TRUE(link.wait_for(1));
  EXPECT_EQ(link.answers[0].epoch, 6u);
}

TEST_F(RankAgentTest, StopWaitsForTheAnswerBeingGivenAndDropsTheRest) {
  ASSERT_TRUE(agent.start());
  transport.block = true;
  command(kEventQuiesce, 5, 1);
  while (transport.quiesces == 0) std::this_thread::sleep_for(1ms);
  command(kEventQuiesce, 6, 1);
  std::thread release([this] {
    std::this_thread::sleep_for(50ms);
    transport.block = false;
  });
  agent.stop();
  release.join();
  EXPECT_EQ(link.answers.size(), 1u);
  command(kEventQuiesce, 7, 1);  // to nobody
  agent.stop();
}

TEST_F(RankAgentTest, MuteBeginsNothingNewAndGivesUpWaiting) {
  ASSERT_TRUE(agent.start());
  transport.block = true;
  command(kEventQuiesce, 5, 1);
  while (transport.quiesces == 0) std::this_thread::sleep_for(1ms);
  const auto began = std::chrono::steady_clock::now();
  agent.mute(20);
  EXPECT_LT(std::chrono::steady_clock::now() - began, 2s);
  command(kEventQuiesce, 6, 1);
  transport.block = false;
  agent.stop();
  EXPECT_EQ(transport.quiesces, 1);
}

TEST_F(RankAgentTest, MuteWaitsForTheAnswerBeingGiven) {
  ASSERT_TRUE(agent.start());
  transport.block = true;
  command(kEventQuiesce, 5, 1);
  while (transport.quiesces == 0) std::this_thread::sleep_for(1ms);
  std::thread release([this] {
    std::this_thread::sleep_for(50ms);
    transport.block = false;
  });
  agent.mute(10'000);
  EXPECT_TRUE(link.wait_for(1, 0s)) << "the process goes on while its rank is being served";
  release.join();
  agent.stop();
}

TEST_F(RankAgentTest, SignalsOfTheApplicationStayWithItsThreads) {
  sigset_t before;
  pthread_sigmask(SIG_SETMASK, nullptr, &before);
  ASSERT_TRUE(agent.start());
  sigset_t after;
  pthread_sigmask(SIG_SETMASK, nullptr, &after);
  EXPECT_EQ(sigismember(&before, SIGUSR1), sigismember(&after, SIGUSR1));
}

TEST_F(RankAgentTest, PeersAreTakenInWithoutAnAnswerAndCanBeWaitedFor) {
  ASSERT_TRUE(agent.start());
  agent.deliver(kEventPeers, encode_command({3, 1, {{"1.0.0.5", "x"}}}));
  EXPECT_TRUE(agent.await_peers(5000));
  EXPECT_EQ(transport.told, 1);
  EXPECT_EQ(transport.seen, (Payloads{{"1.0.0.5", "x"}}));
  // A new quiesce: they will be elsewhere after it.
  agent.deliver(kEventQuiesce, encode_command({4, 1, {}}));
  ASSERT_TRUE(link.wait_for(1));
  EXPECT_FALSE(agent.await_peers(50));
  EXPECT_EQ(link.codes, std::vector<int>{kEventAnswer});
}

}  // namespace
}  // namespace symvirt::hooks
