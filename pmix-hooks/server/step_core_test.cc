#include "pmix-hooks/server/step_core.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <set>

namespace symvirt::hooks {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

template <typename T>
std::vector<T> of(const Effects& effects) {
  std::vector<T> found;
  for (const Effect& effect : effects) {
    if (const T* one = std::get_if<T>(&effect)) found.push_back(*one);
  }
  return found;
}

RoundRequest request(const std::string& id, std::uint64_t epoch, std::uint32_t round,
                     Payloads payloads = {}) {
  return {id, epoch, round, std::move(payloads)};
}

struct StepCoreTest : testing::Test {
  StepCore core;
  void SetUp() override {
    EXPECT_THAT(core.hello(0, 100), IsEmpty());
    EXPECT_THAT(core.hello(1, 101), IsEmpty());
  }
  Effects rest(std::int32_t pid, std::uint64_t epoch = 1, std::uint32_t round = 1) {
    return core.answer({epoch, round, pid, AnswerState::kRest, "p" + std::to_string(pid)});
  }
  Effects done(std::int32_t pid, std::uint64_t epoch = 1, std::uint32_t round = 1) {
    return core.answer({epoch, round, pid, AnswerState::kDone, {}});
  }
  void hold_all(std::uint64_t epoch = 1) {
    core.quiesce(request("q", epoch, 1));
    for (std::int32_t pid : {100, 101}) {
      rest(pid, epoch);
      core.stopped(pid);
    }
    ASSERT_EQ(core.held(), 2u);
  }
};

TEST_F(StepCoreTest, HoldsARankOnlyAfterItsOwnAnswer) {
  const Effects asked = core.quiesce(request("q", 1, 1));
  ASSERT_EQ(asked.size(), 1u);
  EXPECT_EQ(std::get<SendCommand>(asked[0]),
            (SendCommand{kEventQuiesce, {{0, 100}, {1, 101}}, {1, 1, {}}}));
  EXPECT_THAT(core.stopped(100), IsEmpty());  // not told to stop, so nothing of ours
  EXPECT_EQ(of<StopProcess>(rest(100)), std::vector{StopProcess{100}});
  EXPECT_THAT(core.stopped(100), IsEmpty());
  rest(101);
  const auto replies = of<Reply>(core.stopped(101));
  ASSERT_EQ(replies.size(), 1u);
  EXPECT_EQ(replies[0].id, "q");
  ASSERT_TRUE(replies[0].result);
  EXPECT_EQ(replies[0].result->held, 2u);
  EXPECT_THAT(replies[0].result->answers, ElementsAre(RoundAnswer{0, 100, "rest", "p100"},
                                                      RoundAnswer{1, 101, "rest", "p101"}));
}

TEST_F(StepCoreTest, WhoDoesNotAnswerIsNamedWithWhatItSaidLast) {
  core.quiesce(request("q1", 1, 1));
  rest(100);
  core.stopped(100);
  const auto first = of<Reply>(core.answer({1, 1, 101, AnswerState::kMore, "x", "5 sends wait"}));
  EXPECT_EQ(first[0].result->answers[1], (RoundAnswer{1, 101, "more", "x", "5 sends wait"}));
  core.quiesce(request("q2", 1, 2));
  core.stopped(100);
  const auto replies = of<Reply>(core.deadline("q2"));
  ASSERT_EQ(replies.size(), 1u);
  EXPECT_EQ(replies[0].result.error().message,
            "step.quiesce failed: epoch 1: no answer in time from rank 1 (pid 101), which said "
            "last: 5 sends wait");
}

TEST_F(StepCoreTest, RanksAreToldWhetherTheDeviceLeaves) {
  RoundRequest stays = request("q1", 1, 1);
  stays.device_leaves = false;
  EXPECT_FALSE(of<SendCommand>(core.quiesce(std::move(stays)))[0].command.device_leaves);
  EXPECT_FALSE(of<SendCommand>(core.hello(2, 102))[0].command.device_leaves) << "came late";
  EXPECT_TRUE(of<SendCommand>(core.quiesce(request("q2", 2, 1)))[0].command.device_leaves);
}

TEST_F(StepCoreTest, MoreIsAskedAgainInTheNextRoundWithThePayloads) {
  core.quiesce(request("q1", 1, 1));
  rest(100);
  core.stopped(100);
  const auto first = of<Reply>(core.answer({1, 1, 101, AnswerState::kMore, "x"}));
  ASSERT_EQ(first.size(), 1u);
  EXPECT_EQ(first[0].result->answers[1], (RoundAnswer{1, 101, "more", "x"}));
  EXPECT_EQ(first[0].result->held, 1u);

  const Effects second = core.quiesce(request("q2", 1, 2, {{"1", "x"}}));
  // The held one is stopped once more: somebody may have continued it.
  EXPECT_EQ(of<StopProcess>(second), std::vector{StopProcess{100}});
  EXPECT_EQ(of<SendCommand>(second),
            (std::vector{SendCommand{kEventQuiesce, {{1, 101}}, {1, 2, {{"1", "x"}}}}}));
  core.stopped(100);
  rest(101, 1, 2);
  const auto reply = of<Reply>(core.stopped(101));
  ASSERT_EQ(reply.size(), 1u);
  EXPECT_EQ(reply[0].result->held, 2u);
}

TEST_F(StepCoreTest, ResumeContinuesThenTells) {
  hold_all();
  const Effects effects = core.resume(request("r", 1, 1));
  ASSERT_EQ(effects.size(), 3u);
  EXPECT_TRUE(std::holds_alternative<ContinueProcess>(effects[0]));
  EXPECT_TRUE(std::holds_alternative<ContinueProcess>(effects[1]));
  EXPECT_EQ(std::get<SendCommand>(effects[2]).code, kEventResume);
  EXPECT_TRUE(core.epoch_at_rest().has_value());
  done(100);
  const auto replies = of<Reply>(done(101));
  ASSERT_EQ(replies.size(), 1u);
  EXPECT_THAT(replies[0].result->answers,
              ElementsAre(RoundAnswer{0, 100, "done", ""}, RoundAnswer{1, 101, "done", ""}));
  EXPECT_FALSE(core.epoch_at_rest().has_value());
}

TEST_F(StepCoreTest, ResumeInTwoRounds) {
  hold_all();
  core.resume(request("r1", 1, 1));
  done(100);
  const auto first = of<Reply>(core.answer({1, 1, 101, AnswerState::kMore, "qpn"}));
  ASSERT_EQ(first.size(), 1u);
  EXPECT_EQ(first[0].result->answers[1], (RoundAnswer{1, 101, "more", "qpn"}));
  EXPECT_TRUE(core.epoch_at_rest().has_value());
  const Effects second = core.resume(request("r2", 1, 2, {{"1", "qpn"}}));
  EXPECT_EQ(of<SendCommand>(second),
            (std::vector{SendCommand{kEventResume, {{1, 101}}, {1, 2, {{"1", "qpn"}}}}}));
  EXPECT_EQ(of<Reply>(done(101, 1, 2)).size(), 1u);
  EXPECT_FALSE(core.epoch_at_rest().has_value());
}

TEST_F(StepCoreTest, AResumeAskedForAgainAsksOnlyWhoHasNotAnswered) {
  hold_all();
  core.resume(request("r1", 1, 1));
  core.answer({1, 1, 100, AnswerState::kMore, "qpn"});
  ASSERT_EQ(of<Reply>(core.deadline("r1")).size(), 1u);
  EXPECT_EQ(of<SendCommand>(core.resume(request("r2", 1, 1))),
            (std::vector{SendCommand{kEventResume, {{1, 101}}, {1, 1, {}}}}));
}

TEST_F(StepCoreTest, ResumeOfWhatIsNotAtRestSucceedsAtOnce) {
  const auto replies = of<Reply>(core.resume(request("r", 9, 1)));
  ASSERT_EQ(replies.size(), 1u);
  ASSERT_TRUE(replies[0].result);
  EXPECT_THAT(replies[0].result->answers, IsEmpty());
}

TEST_F(StepCoreTest, ARankThatEndsDuringTheRoundHasLeft) {
  core.quiesce(request("q", 1, 1));
  rest(100);
  core.stopped(100);
  const auto replies = of<Reply>(core.gone(101));
  ASSERT_EQ(replies.size(), 1u);
  EXPECT_THAT(replies[0].result->answers,
              testing::UnorderedElementsAre(RoundAnswer{0, 100, "rest", "p100"},
                                            RoundAnswer{1, 101, "left", ""}));
}

TEST_F(StepCoreTest, ARankThatFinalizesAfterItsAnswerIsLetGo) {
  core.quiesce(request("q", 1, 1));
  rest(100);
  const Effects effects = core.bye(100);
  EXPECT_EQ(of<ContinueProcess>(effects), std::vector{ContinueProcess{100}});
  EXPECT_THAT(core.stopped(100), IsEmpty());
}

TEST_F(StepCoreTest, DeadlineNamesWhoIsMissing) {
  core.quiesce(request("q", 1, 1));
  rest(100);
  const auto replies = of<Reply>(core.deadline("q"));
  ASSERT_EQ(replies.size(), 1u);
  ASSERT_FALSE(replies[0].result);
  EXPECT_EQ(replies[0].result.error().code, Code::kDeadline);
  EXPECT_THAT(replies[0].result.error().message,
              HasSubstr("rank 0 (pid 100) which cannot be stopped"));
  EXPECT_THAT(replies[0].result.error().message, HasSubstr("rank 1 (pid 101)"));
  EXPECT_THAT(core.deadline("q"), IsEmpty());
  // Given up: the resume reaches also the one that never answered.
  const Effects effects = core.resume(request("r", 1, 1));
  EXPECT_EQ(of<SendCommand>(effects)[0].recipients, (std::vector<Recipient>{{0, 100}, {1, 101}}));
}

TEST_F(StepCoreTest, LateAnswerAfterTheDeadlineStillHolds) {
  core.quiesce(request("q", 1, 1));
  core.deadline("q");
  EXPECT_EQ(of<StopProcess>(rest(100)).size(), 1u);
  core.stopped(100);
  rest(101);
  core.stopped(101);
  // The same round asked again: nothing is left to ask.
  const Effects again = core.quiesce(request("q'", 1, 1));
  EXPECT_THAT(of<SendCommand>(again), IsEmpty());
  EXPECT_EQ(of<StopProcess>(again).size(), 2u);
}

TEST_F(StepCoreTest, RepeatedRequestJoinsTheRunningOne) {
  core.quiesce(request("a", 1, 1));
  EXPECT_THAT(core.quiesce(request("b", 1, 1)), IsEmpty());
  rest(100);
  rest(101);
  core.stopped(100);
  const auto replies = of<Reply>(core.stopped(101));
  ASSERT_EQ(replies.size(), 2u);
  EXPECT_EQ(replies[0].id, "a");
  EXPECT_EQ(replies[1].id, "b");
}

TEST_F(StepCoreTest, ResumeTakesThePlaceOfAQuiesce) {
  core.quiesce(request("q", 1, 1));
  rest(100);
  core.stopped(100);
  const Effects effects = core.resume(request("r", 1, 1));
  const auto replies = of<Reply>(effects);
  ASSERT_EQ(replies.size(), 1u);
  EXPECT_EQ(replies[0].id, "q");
  EXPECT_EQ(replies[0].result.error().code, Code::kCancelled);
  EXPECT_EQ(of<ContinueProcess>(effects), std::vector{ContinueProcess{100}});
  // An answer to the quiesce that was under way is not one to the resume.
  EXPECT_THAT(rest(101), IsEmpty());
  done(100);
  EXPECT_EQ(of<Reply>(done(101)).size(), 1u);
}

TEST_F(StepCoreTest, OlderEpochAndEarlierRoundAreRefused) {
  hold_all(5);
  const auto old_epoch = of<Reply>(core.quiesce(request("o", 4, 1)));
  ASSERT_EQ(old_epoch.size(), 1u);
  EXPECT_EQ(old_epoch[0].result.error().code, Code::kPrecondition);
  core.quiesce(request("q2", 5, 2));
  const auto old_round = of<Reply>(core.quiesce(request("o", 5, 1)));
  ASSERT_EQ(old_round.size(), 1u);
  EXPECT_EQ(old_round[0].result.error().code, Code::kPrecondition);
}

TEST_F(StepCoreTest, NewMemberDuringAQuiesceIsPartOfIt) {
  core.quiesce(request("q", 1, 1));
  rest(100);
  core.stopped(100);
  rest(101);
  const auto asked = of<SendCommand>(core.hello(2, 102));
  ASSERT_EQ(asked.size(), 1u);
  EXPECT_EQ(asked[0].recipients, (std::vector<Recipient>{{2, 102}}));
  EXPECT_THAT(core.stopped(101), IsEmpty());  // the new one is waited for
  rest(102);
  EXPECT_EQ(of<Reply>(core.stopped(102))[0].result->held, 3u);
}

TEST_F(StepCoreTest, NewMemberWhileAtRestIsHeldToo) {
  hold_all();
  EXPECT_EQ(of<SendCommand>(core.hello(2, 102)).size(), 1u);
  EXPECT_EQ(of<StopProcess>(rest(102)).size(), 1u);
  core.stopped(102);
  EXPECT_EQ(core.held(), 3u);
}

TEST_F(StepCoreTest, StepThatComesWhileTheJobIsAtRestIsQuiesced) {
  StepCore fresh;
  EXPECT_THAT(fresh.rest_expected(3), IsEmpty());
  EXPECT_EQ(fresh.epoch_at_rest(), 3u);
  const auto asked = of<SendCommand>(fresh.hello(0, 100));
  ASSERT_EQ(asked.size(), 1u);
  EXPECT_EQ(asked[0].command.epoch, 3u);
  // Those that said HELLO before guestd's answer came, too.
  EXPECT_EQ(of<SendCommand>(core.rest_expected(3))[0].recipients,
            (std::vector<Recipient>{{0, 100}, {1, 101}}));
}

TEST_F(StepCoreTest, RegistrationAfterGuestdsRestartChangesNothing) {
  hold_all(5);
  EXPECT_THAT(core.rest_expected(5), IsEmpty());
  EXPECT_EQ(core.held(), 2u);
}

TEST_F(StepCoreTest, SecondAnswerAndForeignAnswersAreIgnored) {
  core.quiesce(request("q", 1, 1));
  rest(100);
  EXPECT_THAT(rest(100), IsEmpty());
  EXPECT_THAT(rest(101, 2), IsEmpty());
  EXPECT_THAT(rest(101, 1, 2), IsEmpty());
  EXPECT_THAT(done(101), IsEmpty());
  EXPECT_THAT(rest(999), IsEmpty());
  EXPECT_EQ(of<StopProcess>(rest(101)).size(), 1u);
}

TEST_F(StepCoreTest, WithoutMembersARoundIsOverAtOnce) {
  StepCore empty;
  const auto replies = of<Reply>(empty.quiesce(request("q", 1, 1)));
  ASSERT_EQ(replies.size(), 1u);
  EXPECT_THAT(replies[0].result->answers, IsEmpty());
  EXPECT_EQ(of<Reply>(empty.resume(request("r", 1, 1))).size(), 1u);
  EXPECT_FALSE(empty.epoch_at_rest().has_value());
}

TEST_F(StepCoreTest, WhoComesAfterAResumeHearsWhatWasSaidInIt) {
  EXPECT_THAT(of<SendCommand>(core.hello(2, 102)), IsEmpty()) << "guestd has not answered yet";
  const auto told = of<SendCommand>(core.registered({{"a", "1"}}));
  ASSERT_EQ(told.size(), 1u);
  EXPECT_EQ(told[0],
            (SendCommand{kEventPeers, {{0, 100}, {1, 101}, {2, 102}}, {0, 1, {{"a", "1"}}}}));
  EXPECT_THAT(core.registered({}), IsEmpty()) << "guestd came back";
  EXPECT_EQ(of<SendCommand>(core.hello(3, 103))[0].command.payloads, (Payloads{{"a", "1"}}));
}

TEST_F(StepCoreTest, WhoHadNothingToSayInAResumeHearsTheOthersAtItsEnd) {
  core.registered({});
  hold_all();
  core.resume(request("r1", 1, 1));
  core.answer({1, 1, 101, AnswerState::kMore, "here"});
  EXPECT_THAT(of<SendCommand>(core.answer({1, 1, 100, AnswerState::kDone, ""})), IsEmpty());
  core.resume(request("r2", 1, 2, {{"1", "here"}}));
  EXPECT_THAT(of<SendCommand>(core.hello(2, 102)), IsEmpty()) << "not known yet";
  const auto told = of<SendCommand>(done(101, 1, 2));
  ASSERT_EQ(told.size(), 1u);
  EXPECT_EQ(told[0], (SendCommand{kEventPeers, {{0, 100}, {2, 102}}, {1, 1, {{"1", "here"}}}}));
  // The others of the job take another round.
  const auto again = of<SendCommand>(core.resume(request("r3", 1, 3, {{"7", "there"}})));
  ASSERT_EQ(again.size(), 1u);
  EXPECT_EQ(again[0].command.payloads, (Payloads{{"1", "here"}, {"7", "there"}}));
}

TEST_F(StepCoreTest, WhatCannotBeMovedStaysSoAfterAResume) {
  core.immovable(101, "odp");
  hold_all();
  core.resume(request("r", 1, 1));
  done(100);
  done(101);
  EXPECT_EQ(core.members()[1].immovable, "odp");
}

// Whatever happens in whatever order: nobody is held without its own answer, every request is
// answered exactly once, and after a resume that was answered nobody is held.
TEST(StepCoreProperty, AnyOrderOfEvents) {
  std::mt19937 random(12345);  // a fixed seed: a failure can be repeated
  for (int run = 0; run < 3000; ++run) {
    StepCore core;
    std::set<std::string> open;
    std::set<std::int32_t> answered;
    std::set<std::int32_t> held;
    std::uint64_t epoch = 0;
    int ids = 0;
    const auto perform = [&](const Effects& effects) {
      for (const Effect& effect : effects) {
        if (const auto* stop = std::get_if<StopProcess>(&effect)) {
          ASSERT_TRUE(answered.contains(stop->pid));
          held.insert(stop->pid);
        } else if (const auto* go = std::get_if<ContinueProcess>(&effect)) {
          held.erase(go->pid);
        } else if (const auto* reply = std::get_if<Reply>(&effect)) {
          ASSERT_EQ(open.erase(reply->id), 1u) << reply->id;
        } else if (std::get<SendCommand>(effect).code == kEventQuiesce) {
          for (const Recipient& recipient : std::get<SendCommand>(effect).recipients)
            answered.erase(recipient.pid);
        }
      }
    };
    for (int i = 0; i < 60; ++i) {
      const auto pid = static_cast<std::int32_t>(100 + random() % 3);
      const std::string id = std::to_string(++ids);
      switch (random() % 9) {
        case 0:
          held.erase(pid);
          answered.erase(pid);
          perform(core.hello(static_cast<std::uint32_t>(pid - 100), pid));
          break;
        case 1:
          open.insert(id);
          epoch += random() % 2;
          perform(core.quiesce(request(id, epoch, 1 + random() % 2)));
          break;
        case 2:
          open.insert(id);
          perform(core.resume(request(id, epoch, 1 + random() % 2)));
          break;
        case 3:
          if (!open.empty()) perform(core.deadline(*open.begin()));
          break;
        case 4:
          perform(core.gone(pid));
          held.erase(pid);
          break;
        case 5:
          perform(core.bye(pid));
          ASSERT_FALSE(held.contains(pid));
          break;
        case 6:
          perform(core.stopped(pid));
          break;
        default:
          answered.insert(pid);
          perform(core.answer({epoch,
                               static_cast<std::uint32_t>(1 + random() % 2),
                               pid,
                               random() % 2 ? AnswerState::kRest : AnswerState::kDone,
                               {}}));
          break;
      }
      ASSERT_LE(core.held(), held.size());
    }
    open.insert("end");
    perform(core.resume(request("end", core.epoch_at_rest().value_or(epoch), 1)));
    for (std::int32_t pid : {100, 101, 102}) perform(core.gone(pid));
    ASSERT_THAT(open, IsEmpty());
    ASSERT_THAT(held, IsEmpty());
  }
}

}  // namespace
}  // namespace symvirt::hooks
