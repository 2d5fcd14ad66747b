#include "node-helper/guest/transactions.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace symvirt::guest {
namespace {

using std::chrono_literals::operator""ms;

class FakeTimers : public Timers {
 public:
  std::uint64_t now_ms() override { return now_; }
  Handle after(Milliseconds delay, std::function<void()> fire) override {
    auto timer = std::make_shared<Timer>(
        Timer{now_ + static_cast<std::uint64_t>(delay.count()), std::move(fire)});
    timers_.push_back(timer);
    return timer;
  }
  void advance(Milliseconds by) {
    const std::uint64_t end = now_ + static_cast<std::uint64_t>(by.count());
    for (;;) {
      std::shared_ptr<Timer> next;
      for (const auto& weak : timers_) {
        const auto timer = weak.lock();
        if (timer && !timer->fired && timer->at <= end && (!next || timer->at < next->at))
          next = timer;
      }
      if (!next) break;
      now_ = std::max(now_, next->at);
      next->fired = true;
      const auto fire = next->fire;
      next.reset();
      fire();
    }
    now_ = end;
  }

 private:
  struct Timer {
    std::uint64_t at;
    std::function<void()> fire;
    bool fired = false;
  };
  std::uint64_t now_ = 1000;
  std::vector<std::weak_ptr<Timer>> timers_;
};

class FakeSteps : public StepCaller {
 public:
  struct Asked {
    StepKey step;
    std::string method;
    Json params;
    Outcome outcome;
  };
  std::vector<StepInfo> steps_of(JobId job) const override {
    std::vector<StepInfo> out;
    for (const StepInfo& s : steps) {
      if (s.key.job == job) out.push_back(s);
    }
    return out;
  }
  void call(const StepKey& step, const std::string& method, const Json& params, Milliseconds,
            Outcome outcome) override {
    asked.push_back({step, method, params, std::move(outcome)});
  }
  bool alive(const StepInfo& step) const override { return !dead.contains(step.key.step); }

  void add(JobId job, StepId step) {
    StepInfo info;
    info.key = {job, step};
    info.pid = 100;
    steps.push_back(info);
  }
  // Answers the oldest question that is open: one rank, in that state.
  void answer(const std::string& state, std::uint32_t held = 1, const char* payload = nullptr) {
    Json one = {{"rank", 0}, {"pid", 1}, {"state", state}};
    if (payload) one["payload"] = payload;
    reply(Json{{"answers", Json::array({one})}, {"held", held}});
  }
  void reply(Result<Json> result) {
    ASSERT_FALSE(asked.empty()) << "nobody was asked";
    const Asked first = asked.front();
    asked.erase(asked.begin());
    first.outcome(std::move(result));
  }
  std::vector<std::string> methods() const {
    std::vector<std::string> out;
    for (const Asked& a : asked) out.push_back(a.method);
    return out;
  }

  std::vector<StepInfo> steps;
  std::vector<Asked> asked;
  std::set<StepId> dead;
};

class FakeDevices : public DeviceState {
 public:
  bool uses_tcp() const override { return tcp; }
  bool all_present() const override { return present; }
  Result<std::vector<std::string>> unacknowledged() override {
    ++looks;
    return sockets;
  }
  bool tcp = false, present = true;
  int looks = 0;
  Result<std::vector<std::string>> sockets = std::vector<std::string>();
};

// The reply of one request, as it arrives.
struct Got {
  std::optional<Result<Json>> result;
  int times = 0;
  operator Reply() {  // NOLINT: reads well at the call
    return [this](Result<Json> r) {
      result = std::move(r);
      ++times;
    };
  }
  bool ok() const { return result && result->has_value(); }
  std::string code() const {
    return result && !*result ? std::string(code_name(result->error().code)) : "none";
  }
  std::string text() const { return result && !*result ? result->error().message : ""; }
  const Json& operator[](const char* field) const { return (**result).at(field); }
};

class TransactionsTest : public testing::Test {
 protected:
  static RoundParams round(Epoch epoch, std::uint32_t number, JobId job = 7) {
    RoundParams p;
    p.job = job;
    p.epoch = epoch;
    p.round = number;
    p.lease = 10000ms;
    p.timeout = 2000ms;
    return p;
  }
  void rest(Epoch epoch) {
    Got got;
    transactions.quiesce(round(epoch, 1), got);
    while (!steps.asked.empty()) steps.answer("rest");
    ASSERT_TRUE(got.ok()) << got.text();
  }
  bool at_rest(JobId job = 7) {
    for (const JobRecord& r : transactions.records()) {
      if (r.job == job) return r.at_rest != 0;
    }
    return false;
  }

  FakeTimers timers;
  FakeSteps steps;
  FakeDevices devices;
  int stored = 0;
  Transactions transactions{timers, steps, devices, [this] { ++stored; }};
};

TEST_F(TransactionsTest, ARoundIsABarrierOverAllStepsOfTheJob) {
  steps.add(7, 0);
  steps.add(7, 1);
  steps.add(8, 0);
  Got got;
  transactions.quiesce(round(5, 1), got);
  EXPECT_EQ(steps.asked.size(), 2u);
  steps.answer("rest");
  EXPECT_FALSE(got.result) << "answered before every step did";
  steps.answer("more", 0, "numbers");
  ASSERT_TRUE(got.ok());
  EXPECT_EQ(got["members"], 2);
  EXPECT_EQ(got["held"], 1);
  EXPECT_EQ(got["more"], true);
  EXPECT_EQ(got["answers"][1]["payload"], "numbers");
  EXPECT_EQ(got["answers"][1]["step"], 1);
  EXPECT_GT(got["pauses_begun_ns"].get<std::int64_t>(), 0);
}

TEST_F(TransactionsTest, AJobWithoutStepsIsAtRestAtOnceAndHeldBack) {
  Got got, entered;
  transactions.quiesce(round(5, 1), got);
  ASSERT_TRUE(got.ok());
  EXPECT_EQ(got["members"], 0);
  EXPECT_EQ(got["more"], false);
  transactions.enter(7, entered);
  EXPECT_FALSE(entered.result);
}

TEST_F(TransactionsTest, TheSameRoundTwiceIsOneRound) {
  steps.add(7, 0);
  Got first, second, third;
  transactions.quiesce(round(5, 1), first);
  transactions.quiesce(round(5, 1), second);
  EXPECT_EQ(steps.asked.size(), 1u);
  steps.answer("rest");
  EXPECT_TRUE(first.ok() && second.ok());
  transactions.quiesce(round(5, 1), third);
  EXPECT_TRUE(third.ok());
  EXPECT_TRUE(steps.asked.empty());
  EXPECT_EQ(first.times + second.times + third.times, 3);
}

TEST_F(TransactionsTest, AStaleEpochIsRefusedAndAnEndedOneDoesNotBeginAgain) {
  steps.add(7, 0);
  rest(5);
  Got stale, again, resumed;
  transactions.quiesce(round(4, 1), stale);
  EXPECT_EQ(stale.code(), "PRECONDITION");
  transactions.resume(round(5, 1), resumed);
  steps.answer("running");
  ASSERT_TRUE(resumed.ok());
  transactions.quiesce(round(5, 2), again);
  EXPECT_EQ(again.code(), "PRECONDITION");
  EXPECT_TRUE(steps.asked.empty());
  EXPECT_FALSE(at_rest());
}

TEST_F(TransactionsTest, ResumeOfAnEpochThatIsNotAtRestIsSuccessWithNobody) {
  Got never, other;
  transactions.resume(round(5, 1), never);
  EXPECT_EQ(never["members"], 0);
  steps.add(7, 0);
  rest(6);
  transactions.resume(round(5, 1), other);
  EXPECT_EQ(other["members"], 0);
  EXPECT_TRUE(at_rest());
}

TEST_F(TransactionsTest, ResumeGoesOnWhileSomebodySaysMore) {
  steps.add(7, 0);
  rest(5);
  Got one, two, entered;
  transactions.enter(7, entered);
  transactions.resume(round(5, 1), one);
  steps.answer("more");
  ASSERT_TRUE(one.ok());
  EXPECT_EQ(one["more"], true);
  EXPECT_TRUE(at_rest());
  EXPECT_FALSE(entered.result) << "the gate opened between two rounds of resume";
  transactions.resume(round(5, 2), two);
  steps.answer("running");
  EXPECT_TRUE(two.ok());
  EXPECT_FALSE(at_rest());
  EXPECT_TRUE(entered.ok());
}

TEST_F(TransactionsTest, TcpAsksForASecondRoundThatWaitsForTheSockets) {
  devices.tcp = true;
  steps.add(7, 0);
  Got first, second;
  transactions.quiesce(round(5, 1), first);
  steps.answer("rest");
  EXPECT_EQ(first["more"], true);
  EXPECT_EQ(devices.looks, 0) << "looked while other VMs' senders may still send";
  devices.sockets = std::vector<std::string>{"tcp a->b"};
  transactions.quiesce(round(5, 2), second);
  steps.answer("rest");
  timers.advance(500ms);
  EXPECT_FALSE(second.result);
  devices.sockets = std::vector<std::string>();
  timers.advance(5ms);
  EXPECT_FALSE(second.result) << "one clean look is not enough";
  timers.advance(5ms);
  ASSERT_TRUE(second.ok());
  EXPECT_EQ(second["more"], false);
}

TEST_F(TransactionsTest, SocketsThatDoNotComeToRestAreNamed) {
  devices.tcp = true;
  devices.sockets = std::vector<std::string>{"tcp a->b (3 unacknowledged)"};
  Got first, second;
  transactions.quiesce(round(5, 1), first);
  transactions.quiesce(round(5, 2), second);
  timers.advance(1990ms);
  EXPECT_FALSE(second.result);
  timers.advance(20ms);
  EXPECT_EQ(second.code(), "DEADLINE");
  EXPECT_THAT(second.text(), testing::HasSubstr("tcp a->b (3 unacknowledged)"));
  EXPECT_TRUE(at_rest()) << "the coordinator undoes it with job.resume";
}

TEST_F(TransactionsTest, ASocketListThatCannotBeHadIsAnErrorAndNotRest) {
  devices.tcp = true;
  devices.sockets = Error{Code::kInternal, "no tcp_diag"};
  Got first, second;
  transactions.quiesce(round(5, 1), first);
  transactions.quiesce(round(5, 2), second);
  EXPECT_EQ(second.code(), "INTERNAL");
}

TEST_F(TransactionsTest, AStepWithoutAnswerIsNamedAndTheRoundMayBeTriedAgain) {
  steps.add(7, 0);
  steps.add(7, 3);
  Got got, again;
  transactions.quiesce(round(5, 1), got);
  steps.answer("rest");
  steps.reply(Error{Code::kDeadline, "rank 2 did not answer"});
  EXPECT_EQ(got.code(), "DEADLINE");
  EXPECT_THAT(got.text(), testing::HasSubstr("step 3: rank 2 did not answer"));
  transactions.quiesce(round(5, 1), again);
  steps.answer("rest");
  steps.answer("rest");
  EXPECT_TRUE(again.ok());
}

TEST_F(TransactionsTest, AnAnswerThatIsNoneIsAFailure) {
  steps.add(7, 0);
  Got got;
  transactions.quiesce(round(5, 1), got);
  steps.reply(Json{{"answers", "all fine"}});
  EXPECT_EQ(got.code(), "INVALID_ARGUMENT");
}

TEST_F(TransactionsTest, AStepWhoseProcessEndedHasAnswered) {
  steps.add(7, 0);
  Got got;
  transactions.quiesce(round(5, 1), got);
  steps.dead.insert(0);
  steps.reply(Error{Code::kUnavailable, "connection lost"});
  ASSERT_TRUE(got.ok());
  EXPECT_EQ(got["members"], 0);
}

TEST_F(TransactionsTest, AStepThatLostItsConnectionIsAskedAgainWhenItIsBack) {
  steps.add(7, 0);
  Got got;
  transactions.quiesce(round(5, 1), got);
  const std::vector<StepInfo> before = std::exchange(steps.steps, {});
  steps.reply(Error{Code::kUnavailable, "connection lost"});
  timers.advance(200ms);
  EXPECT_TRUE(steps.asked.empty());
  steps.steps = before;
  timers.advance(100ms);
  ASSERT_EQ(steps.asked.size(), 1u);
  EXPECT_LT(steps.asked[0].params["timeout_ms"], 2000);
  steps.answer("rest");
  EXPECT_TRUE(got.ok());
}

TEST_F(TransactionsTest, AStepThatDoesNotComeBackFailsTheRoundAtItsDeadline) {
  steps.add(7, 0);
  Got got;
  transactions.quiesce(round(5, 1), got);
  steps.steps.clear();
  steps.reply(Error{Code::kUnavailable, "connection lost"});
  timers.advance(1900ms);
  EXPECT_FALSE(got.result);
  timers.advance(200ms);
  EXPECT_EQ(got.code(), "UNAVAILABLE");
  EXPECT_EQ(got.times, 1);
}

TEST_F(TransactionsTest, ResumeEndsAQuiesceThatHangs) {
  steps.add(7, 0);
  Got hanging, resumed;
  transactions.quiesce(round(5, 1), hanging);
  transactions.resume(round(5, 1), resumed);
  EXPECT_EQ(hanging.code(), "CANCELLED");
  ASSERT_EQ(steps.methods(), (std::vector<std::string>{"step.quiesce", "step.resume"}));
  steps.answer("rest");  // late, of the round that is over
  EXPECT_FALSE(resumed.result);
  steps.answer("running");
  EXPECT_TRUE(resumed.ok());
  EXPECT_FALSE(at_rest());
}

TEST_F(TransactionsTest, ALeaseThatRunsOutResumesTheRanks) {
  steps.add(7, 0);
  rest(5);
  timers.advance(9999ms);
  EXPECT_TRUE(steps.asked.empty());
  ASSERT_TRUE(transactions.renew({7, 5, 10000ms}));
  timers.advance(9999ms);
  EXPECT_TRUE(steps.asked.empty());
  timers.advance(2ms);
  ASSERT_EQ(steps.methods(), std::vector<std::string>{"step.resume"});
  EXPECT_FALSE(transactions.renew({7, 5, 10000ms})) << "renewed while it is being resumed";
  steps.answer("running");
  EXPECT_FALSE(at_rest());
  EXPECT_EQ(transactions.let_go(5).error().code, Code::kPrecondition);
}

TEST_F(TransactionsTest, ALeaseThatRunsOutDuringARoundEndsTheRound) {
  steps.add(7, 0);
  Got got;
  RoundParams p = round(5, 1);
  p.lease = 100ms;
  transactions.quiesce(p, got);
  timers.advance(101ms);
  EXPECT_EQ(got.code(), "CANCELLED");
  EXPECT_EQ(steps.asked.back().method, "step.resume");
}

TEST_F(TransactionsTest, ALeaseCountsFromTheEndOfTheRound) {
  steps.add(7, 0);
  Got got;
  transactions.quiesce(round(5, 1), got);
  timers.advance(9000ms);
  steps.answer("rest");
  timers.advance(9000ms);
  EXPECT_TRUE(at_rest());
  EXPECT_TRUE(steps.asked.empty());
}

TEST_F(TransactionsTest, WithoutItsDeviceALeaseResumesNobodyUntilItReturns) {
  steps.add(7, 0);
  rest(5);
  ASSERT_TRUE(transactions.let_go(5));
  devices.present = false;
  timers.advance(60000ms);
  EXPECT_TRUE(steps.asked.empty());
  EXPECT_TRUE(at_rest());
  devices.present = true;
  transactions.devices_returned();
  ASSERT_EQ(steps.methods(), std::vector<std::string>{"step.resume"});
  steps.answer("running");
  EXPECT_FALSE(at_rest());
}

TEST_F(TransactionsTest, TheReturnOfTheDeviceWithinTheLeaseResumesNobody) {
  steps.add(7, 0);
  rest(5);
  ASSERT_TRUE(transactions.let_go(5));
  transactions.devices_returned();
  EXPECT_TRUE(steps.asked.empty());
}

TEST_F(TransactionsTest, ADeviceLetGoOfButNotGoneDoesNotKeepTheLeaseFromWorking) {
  steps.add(7, 0);
  rest(5);
  ASSERT_TRUE(transactions.let_go(5));
  timers.advance(10001ms);
  EXPECT_EQ(steps.methods(), std::vector<std::string>{"step.resume"});
}

TEST_F(TransactionsTest, AResumeByItselfThatFailsIsTriedAgain) {
  steps.add(7, 0);
  rest(5);
  timers.advance(10001ms);
  steps.reply(Error{Code::kDeadline, "no answer"});
  EXPECT_TRUE(at_rest());
  timers.advance(5001ms);
  ASSERT_EQ(steps.asked.size(), 1u);
  steps.answer("running");
  EXPECT_FALSE(at_rest());
}

// Every round is in time, and there is no end of them.
TEST_F(TransactionsTest, AQuiesceThatGoesOnForTooLongNamesWhoWaitsForWhat) {
  steps.add(7, 0);
  const auto more = [this](const char* why) {
    Json one = {{"rank", 3}, {"pid", 812}, {"state", "more"}, {"payload", "qpn"}};
    if (why != nullptr) one["why"] = why;
    steps.reply(Json{{"answers", Json::array({one})}, {"held", 0}});
  };
  for (std::uint32_t number = 1; number <= 2; ++number) {
    Got got;
    transactions.quiesce(round(5, number), got);
    timers.advance(800ms);
    more("queue pair 0x11 to 0x12: 5 sends wait");
    EXPECT_TRUE(got.ok()) << got.text();
  }
  Got late;
  transactions.quiesce(round(5, 3), late);
  timers.advance(800ms);
  more("queue pair 0x11 to 0x12: 5 sends wait");
  EXPECT_EQ(late.code(), "DEADLINE");
  EXPECT_EQ(late.text(),
            "job.quiesce: job 7 epoch 5 round 3: not at rest after 2.4 s: step 0 rank 3 (pid 812): "
            "queue pair 0x11 to 0x12: 5 sends wait");
  Got again;
  transactions.quiesce(round(5, 4), again);
  more(nullptr);
  EXPECT_EQ(again.text(),
            "job.quiesce: job 7 epoch 5 round 4: not at rest after 2.4 s: its ranks here wait for "
            "ranks on other VMs");
  // Who is at rest at last is so; and another quiesce has its own time.
  Got rested;
  transactions.quiesce(round(5, 5), rested);
  steps.answer("rest");
  EXPECT_TRUE(rested.ok());
  Got next;
  transactions.quiesce(round(6, 1), next);
  more(nullptr);
  EXPECT_TRUE(next.ok()) << next.text();
}

TEST_F(TransactionsTest, StepsAreToldWhenTheDeviceStays) {
  steps.add(7, 0);
  Got got;
  RoundParams params = round(5, 1);
  params.device_leaves = false;
  transactions.quiesce(params, got);
  EXPECT_EQ(steps.asked[0].params["device_leaves"], false);
  steps.answer("rest");
  transactions.quiesce(round(6, 1), got);
  EXPECT_FALSE(steps.asked[0].params.contains("device_leaves"));
}

TEST_F(TransactionsTest, AResumeByItselfGoesThroughAllItsRounds) {
  steps.add(7, 0);
  rest(5);
  timers.advance(10001ms);
  steps.answer("more", 0, "qpn");
  ASSERT_EQ(steps.asked.size(), 1u);
  EXPECT_EQ(steps.asked[0].params["round"], 2);
  EXPECT_EQ(steps.asked[0].params["payloads"], (Json{{"7.0.0.1", "qpn"}}));
  steps.answer("running");
  EXPECT_FALSE(at_rest());
}

TEST_F(TransactionsTest, LetGoIsForJobsAtRestAndForNoTransactionAtAll) {
  EXPECT_TRUE(transactions.let_go(0));
  EXPECT_EQ(transactions.let_go(5).error().code, Code::kPrecondition);
  steps.add(7, 0);
  Got got;
  transactions.quiesce(round(5, 1), got);
  EXPECT_FALSE(transactions.let_go(5)) << "the round is not over";
}

TEST_F(TransactionsTest, RecordsOutliveTheDaemon) {
  steps.add(7, 0);
  rest(5);
  ASSERT_TRUE(transactions.let_go(5));
  EXPECT_GT(stored, 0);
  FakeDevices away;
  away.present = false;
  FakeTimers later;  // the first daemon's own timers died with it
  Transactions next(later, steps, away, [] {});
  next.restore(transactions.records());
  Got stale, entered;
  next.quiesce(round(4, 1), stale);
  EXPECT_EQ(stale.code(), "PRECONDITION");
  next.enter(7, entered);
  EXPECT_FALSE(entered.result);
  StepInfo back = steps.steps[0];
  back.epoch_at_rest = 5;
  EXPECT_EQ(next.registered(back), (Json{{"epoch", 5}, {"at_rest", true}}));
  later.advance(20000ms);
  EXPECT_TRUE(steps.asked.empty()) << "resumed without its device";
  Got resumed;
  next.resume(round(5, 1), resumed);
  steps.answer("running");
  EXPECT_TRUE(resumed.ok() && entered.ok());
}

TEST_F(TransactionsTest, AnEpochNobodyKnowsIsLearntFromTheStep) {
  steps.add(7, 0);
  StepInfo back = steps.steps[0];
  back.epoch_at_rest = 9;
  EXPECT_EQ(transactions.registered(back)["at_rest"], true);
  timers.advance(61000ms);
  EXPECT_EQ(steps.methods(), std::vector<std::string>{"step.resume"})
      << "an adopted rest has a lease, too";
}

TEST_F(TransactionsTest, AStepThatMissedTheResumeIsResumed) {
  steps.add(7, 0);
  rest(5);
  Got resumed;
  transactions.resume(round(5, 1), resumed);
  steps.answer("running");
  StepInfo back = steps.steps[0];
  back.epoch_at_rest = 5;
  EXPECT_EQ(transactions.registered(back)["at_rest"], false);
  timers.advance(1ms);
  ASSERT_EQ(steps.methods(), std::vector<std::string>{"step.resume"});
  EXPECT_EQ(steps.asked[0].params["epoch"], 5);
}

TEST_F(TransactionsTest, AStepThatComesAfterAResumeHearsWhatWasSaidInIt) {
  steps.add(7, 0);
  rest(5);
  Got first, second;
  RoundParams one = round(5, 1);
  one.payloads = {{"7.0.0.10", "old"}, {"7.0.1.11", "said once"}};
  transactions.resume(one, first);
  steps.answer("more");
  RoundParams two = round(5, 2);
  two.payloads = {{"7.0.0.10", "new"}, {"7.0.1.11", ""}};
  transactions.resume(two, second);
  steps.answer("running");
  ASSERT_TRUE(second.ok());
  StepInfo later = steps.steps[0];
  later.key.step = 1;
  EXPECT_EQ(transactions.registered(later)["peers"],
            (Json{{"7.0.0.10", "new"}, {"7.0.1.11", "said once"}}));
  rest(6);
  Got third;
  transactions.resume(round(6, 1), third);
  EXPECT_FALSE(transactions.registered(later).contains("peers")) << "of a resume that is over";
  steps.answer("running");
}

TEST_F(TransactionsTest, WhatOthersSayAfterOurRanksRunIsPassedOn) {
  steps.add(7, 0);
  rest(5);
  Got first, second;
  transactions.resume(round(5, 1), first);
  steps.answer("running");
  RoundParams two = round(5, 2);
  two.payloads = {{"7.0.0.10", "there"}};
  transactions.resume(two, second);
  EXPECT_TRUE(second.ok());
  ASSERT_EQ(steps.methods(), std::vector<std::string>{"step.resume"});
  EXPECT_EQ(steps.asked[0].params["payloads"], two.payloads);
  EXPECT_EQ(transactions.registered(steps.steps[0])["peers"], two.payloads);
}

}  // namespace
}  // namespace symvirt::guest
