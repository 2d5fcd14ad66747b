// The pure fold, driven by hand: decisions that no fault of one call leads to.
#include "spank-symvirt/coordinator/transaction.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "spank-symvirt/coordinator/locate.h"
#include "spank-symvirt/coordinator/phases.h"

namespace symvirt {
namespace {

using testing::HasSubstr;

constexpr std::int64_t kSecond = 1'000'000'000;

class FoldByHand : public testing::Test {
 protected:
  // VMs of hv1 that move, all of job 7 unless said otherwise.
  void begin(const std::vector<std::string>& vms, const std::vector<std::uint32_t>& jobs = {}) {
    Transaction t;
    t.id = 1;
    t.policy.fence_after_ms = 30'000;
    for (const std::string& name : vms) {
      VmPart vm;
      vm.vm = name;
      vm.jobs = {jobs.empty() ? 7 : jobs[t.vms.size()]};
      vm.wanted = vm.moving = true;
      vm.at = Where::kSource;
      vm.from = "hv1";
      vm.has_device = vm.linked = true;
      t.vms.push_back(vm);
    }
    Event e;
    e.tx = 1;
    e.time_ns = now;
    e.begun = t;
    symvirt::apply(tx, e);
  }
  // The answer to what is asked of `vm` now; `tries` of another time makes it a late one.
  void answer(const std::string& vm, Result<nlohmann::json> result, int tries = 0) {
    Event e;
    e.tx = 1;
    e.time_ns = now;
    e.vm = vm;
    e.phase = tx->phase;
    e.round = tx->round;
    e.tries = tries != 0 ? tries : tx->find(vm)->tries;
    e.type = result ? EventType::kStepDone : EventType::kStepFailed;
    if (result)
      e.result = *result;
    else
      e.error = result.error();
    symvirt::apply(tx, e);
  }
  void reach(Phase phase) {
    while (tx->phase != phase) {
      const std::vector<Action> actions = next_actions(*tx);
      ASSERT_FALSE(actions.empty()) << name_of(tx->phase);
      for (const Action& a : actions) answer(a.vm, nlohmann::json{{"host", "hv2"}, {"job_id", 60}});
    }
  }
  void cancel() { event(EventType::kCancel); }
  // A migration that did not report success: both hosts were asked, and said this.
  void locate(const std::string& source, const std::string& target, const std::string& vm = "v1") {
    answer(vm, nlohmann::json{{"source", source}, {"target", target}});
  }
  // The same, asked again and again, until a fence is asked for.
  void locate_for(std::int64_t seconds, const std::string& source, const std::string& target) {
    for (const std::int64_t end = now + seconds * kSecond; now < end; now += 2 * kSecond) {
      if (tx->phase != Phase::kLocate || fences("v1")) return;
      locate(source, target);
    }
  }
  bool fences(const std::string& vm) {
    for (const Action& a : next_actions(*tx)) {
      if (a.vm == vm) return a.fence;
    }
    return false;
  }
  void begin_and_lose_the_migration(const std::vector<std::string>& vms = {"v1"}) {
    tx.reset();
    now = 1000 * kSecond;
    begin(vms);
    reach(Phase::kMigrate);
    for (const std::string& vm : vms) answer(vm, Error{Code::kRefused, "no"});
    ASSERT_EQ(tx->phase, Phase::kLocate);
  }
  void event(EventType type) {
    Event e;
    e.type = type;
    e.tx = 1;
    e.time_ns = now;
    symvirt::apply(tx, e);
  }
  const VmPart& v1() { return *tx->find("v1"); }

  std::int64_t now = 1000 * kSecond;
  std::optional<Transaction> tx;
};

TEST_F(FoldByHand, WhereAVmIsAfterAMigrationThatFailed) {
  struct Row {
    const char* source;
    const char* target;
    Where where;
    const char* fence;  // whom it takes to decide; "": no power cut would
  };
  for (const Row& row : std::vector<Row>{{"absent", "running", Where::kTarget, ""},
                                         {"unknown", "running", Where::kTarget, ""},
                                         {"paused", "running", Where::kTarget, ""},
                                         {"running", "absent", Where::kSource, ""},
                                         {"absent", "absent", Where::kNowhere, ""},
                                         {"running", "running", Where::kUnknown, ""},
                                         {"paused", "incoming", Where::kUnknown, ""},
                                         {"unknown", "absent", Where::kUnknown, "hv1"},
                                         {"unknown", "unknown", Where::kUnknown, "hv1"},
                                         {"running", "unknown", Where::kUnknown, "hv2"},
                                         {"absent", "unknown", Where::kUnknown, "hv2"}}) {
    SCOPED_TRACE(std::string(row.source) + " and " + row.target);
    begin_and_lose_the_migration();
    locate(row.source, row.target);
    EXPECT_EQ(v1().at, row.where);
    if (row.where != Where::kUnknown) {
      EXPECT_EQ(v1().moving, row.where == Where::kTarget);
      EXPECT_EQ(tx->hopeless, row.where == Where::kNowhere);
      continue;
    }
    EXPECT_EQ(tx->phase, Phase::kLocate);
    EXPECT_THAT(tx->parked, HasSubstr("hv"));
    EXPECT_FALSE(next_actions(*tx).at(0).fence) << "a host may be slow";
    locate_for(40, row.source, row.target);
    EXPECT_EQ(v1().fence_host, row.fence);
    EXPECT_EQ(fences("v1"), *row.fence != '\0');
  }
}

TEST_F(FoldByHand, AHostThatWasFencedHasNoVm) {
  begin_and_lose_the_migration();
  locate_for(40, "running", "unknown");
  ASSERT_TRUE(fences("v1"));
  answer("v1", nlohmann::json::object());
  ASSERT_FALSE(fences("v1"));
  locate("running", "unknown");
  EXPECT_EQ(v1().at, Where::kSource);
}

TEST_F(FoldByHand, OneMissedAnswerIsNoSilence) {
  begin_and_lose_the_migration();
  locate_for(34, "migrating", "incoming");  // it answers all the time
  locate("unknown", "incoming");
  EXPECT_FALSE(fences("v1"));
  locate_for(20, "unknown", "incoming");
  EXPECT_FALSE(fences("v1"));
  locate("migrating", "incoming");  // it was only slow
  locate_for(28, "unknown", "incoming");
  EXPECT_FALSE(fences("v1")) << "silence is counted from its beginning";
  const std::int64_t before = now;
  locate_for(10, "unknown", "incoming");
  EXPECT_TRUE(fences("v1"));
  EXPECT_LE(now - before, 6 * kSecond);
}

TEST_F(FoldByHand, TwoLooksThatAreFarApartAreNoSilence) {
  begin_and_lose_the_migration();
  locate("running", "unknown");
  now += 60 * kSecond;
  locate("running", "unknown");
  EXPECT_FALSE(fences("v1"));
}

TEST_F(FoldByHand, TimeWithoutACoordinatorIsNoSilence) {
  begin_and_lose_the_migration();
  locate_for(29, "running", "unknown");
  now += 120 * kSecond;
  event(EventType::kRecovered);
  EXPECT_LE(next_actions(*tx).at(0).not_before_ns, now);
  locate_for(29, "running", "unknown");
  EXPECT_FALSE(fences("v1"));
  locate_for(10, "running", "unknown");
  ASSERT_TRUE(fences("v1"));
  // Nor does a new coordinator act on what its predecessor had found.
  now += 120 * kSecond;
  event(EventType::kRecovered);
  EXPECT_FALSE(fences("v1"));
}

TEST_F(FoldByHand, AHostOfTwoVmsIsFencedOnce) {
  begin_and_lose_the_migration({"v1", "v2"});
  while (!fences("v1")) {
    for (const char* vm : {"v1", "v2"}) locate("running", "unknown", vm);
    now += 2 * kSecond;
    ASSERT_LT(now, 1100 * kSecond);
  }
  locate("running", "unknown", "v2");
  EXPECT_FALSE(fences("v2"));
  answer("v1", nlohmann::json::object());
  locate("running", "unknown", "v2");
  EXPECT_EQ(tx->find("v2")->at, Where::kSource) << "it was on the same host";
  locate("running", "unknown");
  EXPECT_EQ(v1().at, Where::kSource);
}

TEST_F(FoldByHand, WhatNeverRanIsEndedWhenTheSourceIsOff) {
  for (const char* target : {"paused", "incoming"}) {
    begin_and_lose_the_migration();
    locate_for(40, "unknown", target);
    ASSERT_TRUE(fences("v1"));
    EXPECT_EQ(help_for(v1()), Help::kNone) << "the source may be running it";
    answer("v1", nlohmann::json::object());
    locate("unknown", target);
    EXPECT_EQ(help_for(v1()), Help::kEndLeftover) << target;
    locate("unknown", "absent");
    EXPECT_EQ(v1().at, Where::kNowhere);
    EXPECT_TRUE(v1().lost && tx->hopeless);
    reach(Phase::kEnd);
    EXPECT_EQ(tx->outcome, Outcome::kFailed);
  }
}

TEST_F(FoldByHand, WhatRunsAtTheTargetWhenTheSourceIsOffIsTheVm) {
  begin_and_lose_the_migration();
  locate_for(40, "unknown", "paused");
  answer("v1", nlohmann::json::object());
  locate("unknown", "running");
  EXPECT_EQ(v1().at, Where::kTarget);
  EXPECT_EQ(tx->phase, Phase::kAttach);
}

TEST_F(FoldByHand, WhatIsPausedAtTheSourceGoesOnWhenTheTargetIsOff) {
  begin_and_lose_the_migration();
  locate_for(40, "paused", "unknown");
  EXPECT_EQ(help_for(v1()), Help::kNone);
  answer("v1", nlohmann::json::object());
  locate("paused", "unknown");
  EXPECT_EQ(help_for(v1()), Help::kResumeAtSource);
  locate("running", "unknown");
  EXPECT_EQ(v1().at, Where::kSource);
}

TEST_F(FoldByHand, PatienceBeginsAnewWithTheCoordinator) {
  begin({"v1"});
  reach(Phase::kPrepare);
  now += 3600 * kSecond;
  event(EventType::kRecovered);
  answer("v1", Error{Code::kUnavailable, "connection refused"});
  EXPECT_EQ(tx->phase, Phase::kPrepare) << "noded was being started, too";
  now += tx->policy.step_ms * kSecond / 1000;
  answer("v1", Error{Code::kUnavailable, "connection refused"});
  EXPECT_NE(tx->phase, Phase::kPrepare);
}

// Each round is answered at once; they never come to rest.
TEST_F(FoldByHand, RanksThatWantRoundsForEverAreGivenUp) {
  begin({"v1"});
  reach(Phase::kQuiesce);
  const std::int64_t begin_ns = now;
  for (int i = 0; tx->phase == Phase::kQuiesce; ++i) {
    ASSERT_LT(i, 100) << "rounds that never end";
    EXPECT_LE(round_ms(*tx), tx->policy.quiesce_ms - (now - begin_ns) / 1'000'000 + 1'000);
    now = std::max(now, next_actions(*tx).at(0).not_before_ns) + kSecond / 10;
    answer("v1", nlohmann::json{{"more", true}});
  }
  EXPECT_NEAR(static_cast<double>(now - begin_ns) / kSecond, 30, 3);
  EXPECT_FALSE(v1().moving);
  EXPECT_THAT(v1().failure->message, HasSubstr("another round"));
  EXPECT_EQ(tx->phase, Phase::kResume);
  now += kSecond;
  answer("v1", nlohmann::json{{"more", true}});
  EXPECT_EQ(tx->phase, Phase::kResume);
  now += tx->policy.park_ms * 1'000'000;
  answer("v1", nlohmann::json{{"more", true}});
  EXPECT_NE(tx->phase, Phase::kResume);
  EXPECT_TRUE(tx->hopeless && v1().lost);
}

// A stranger in a set that was given by hand rests as well as it can without them.
TEST_F(FoldByHand, OnlyTheJobThatWantsRoundsForEverIsGivenUp) {
  begin({"v1", "v2"}, {7, 8});
  reach(Phase::kQuiesce);
  now += 31 * kSecond;
  answer("v1", nlohmann::json{{"more", true}});
  answer("v2", nlohmann::json{{"more", false}});
  EXPECT_EQ(tx->phase, Phase::kDetach);
  EXPECT_FALSE(v1().moving);
  EXPECT_TRUE(tx->find("v2")->moving);
}

// Launcher jobs that were granted while nobody looked are taken, and not given up unseen.
TEST_F(FoldByHand, AcquireIsNotOverdueBeforeSomebodyLooked) {
  begin({"v1", "v2"});
  reach(Phase::kAcquire);
  answer("v1", nlohmann::json{{"host", "hv2"}, {"job_id", 60}});
  now += 600 * kSecond;
  EXPECT_EQ(overdue(*tx, now).size(), 1u);
  event(EventType::kRecovered);
  EXPECT_TRUE(overdue(*tx, now).empty());
}

TEST_F(FoldByHand, AnAnswerToAnEarlierTryChangesNothing) {
  begin({"v1"});
  reach(Phase::kAttach);
  answer("v1", Error{Code::kUnavailable, "away"});
  ASSERT_EQ(v1().tries, 2);
  const nlohmann::json before = to_json(*tx);
  answer("v1", nlohmann::json::object(), 1);
  answer("v1", Error{Code::kRefused, "no"}, 1);
  EXPECT_EQ(to_json(*tx), before);
  answer("v1", nlohmann::json::object(), 2);
  EXPECT_EQ(tx->phase, Phase::kLink);
}

// What has arrived stays where it is, and nobody is told that it was cancelled.
TEST_F(FoldByHand, ACancelledMigrationLeavesThoseThatArrived) {
  begin({"v1", "v2"});
  reach(Phase::kMigrate);
  answer("v1", nlohmann::json::object());
  cancel();
  ASSERT_EQ(tx->phase, Phase::kMigrate);
  EXPECT_TRUE(next_actions(*tx).at(0).abort);
  answer("v2", Error{Code::kCancelled, "aborted"});
  ASSERT_EQ(tx->phase, Phase::kLocate);
  answer("v2", nlohmann::json{{"source", "running"}, {"target", "absent"}});
  EXPECT_TRUE(v1().moving);
  EXPECT_FALSE(v1().failure) << v1().failure->message;
  EXPECT_FALSE(tx->find("v2")->moving);
  reach(Phase::kEnd);
  EXPECT_EQ(tx->outcome, Outcome::kPartial);
}

TEST_F(FoldByHand, RanksAtRestWaitingForTheThirdTrySayWhy) {
  begin({"v1"});
  reach(Phase::kAttach);
  for (int i = 1; i <= 3; ++i) {
    EXPECT_EQ(tx->parked, "") << i;
    answer("v1", Error{Code::kRefused, "the device is in use"});
  }
  EXPECT_EQ(tx->parked, "the device is in use");
  answer("v1", nlohmann::json::object());
  EXPECT_EQ(tx->parked, "");
}

}  // namespace
}  // namespace symvirt
