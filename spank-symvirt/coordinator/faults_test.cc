// Every call of an evacuation fails, hangs, or kills the coordinator, one after the other; and
// faults of whole hosts.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "tests/fakes/fake_world.h"

namespace symvirt::fakes {
namespace {

const Transaction& last_of(Simulation& s) { return s.engine().transactions().rbegin()->second; }

// What must be true when everything is over, whatever happened on the way.
void expect_whole(Simulation& s, const std::vector<std::string>& vms) {
  EXPECT_EQ(s.world.broken_rules(), std::vector<std::string>{});
  for (const std::string& vm : vms) {
    const std::vector<std::string> places = s.world.where_running(vm);
    ASSERT_EQ(places.size(), 1u) << vm;
    const FakeVm& v = s.world.hosts[places[0]].vms[vm];
    EXPECT_TRUE(v.device && v.linked) << vm << " has no usable device";
    EXPECT_EQ(s.world.guests[vm].rest_epoch, 0) << vm << " is still at rest";
    EXPECT_EQ(s.engine().vms().at(vm).host, places[0])
        << "the coordinator looks for " << vm << " elsewhere";
    int launchers = 0;
    for (const auto& [id, job] : s.world.jobs) {
      if (job.spec.vm != vm || job.state == JobState::kEnded) continue;
      ++launchers;
      EXPECT_EQ(job.host, places[0]);
      EXPECT_EQ(s.engine().vms().at(vm).launcher_job, id);
    }
    EXPECT_EQ(launchers, 1) << vm;
    for (const auto& [name, host] : s.world.hosts) {
      EXPECT_EQ(host.reserved.count(vm), name == places[0] ? 1u : 0u) << vm << " on " << name;
    }
  }
}

// The journal, read again, gives the states that the engine has.
void expect_replay_equal(Simulation& s) {
  std::map<std::int64_t, nlohmann::json> before;
  for (const auto& [id, tx] : s.engine().transactions()) before[id] = to_json(tx);
  s.restart();
  for (const auto& [id, tx] : s.engine().transactions()) EXPECT_EQ(to_json(tx), before[id]);
  EXPECT_EQ(s.engine().transactions().size(), before.size());
}

struct Scenario {
  const char* name;
  std::vector<std::string> moving;
  std::vector<std::string> resting;
  const char* v2_host;
};

std::unique_ptr<Simulation> prepare(const Scenario& sc) {
  auto s = std::make_unique<Simulation>(two_vm_config());
  s->world.boot_by_hand("v1", "hv1");
  s->world.boot_by_hand("v2", sc.v2_host);
  s->world.hosts["hv1"].drained = true;
  return s;
}

class EveryCall : public testing::TestWithParam<std::tuple<int, Fault>> {};

const Scenario kScenarios[] = {
    {"BothFromOneHost", {"v1", "v2"}, {}, "hv1"},
    {"OneMovesOneRests", {"v1"}, {"v2"}, "hv2"},
};

TEST_P(EveryCall, EndsWholeWhateverCallIsHit) {
  const auto [index, fault] = GetParam();
  const Scenario& sc = kScenarios[index];
  int hit = 0;
  for (int n = 1;; ++n) {
    auto s = prepare(sc);
    s->world.fault = fault;
    s->world.fault_at = n;
    ASSERT_TRUE(s->begin(evacuation(s->world, sc.moving, sc.resting)));
    ASSERT_TRUE(s->run()) << "call " << n << " (" << s->world.faulted << ") never ended:\n"
                          << s->world.summary();
    if (s->world.faulted.empty()) break;  // there is no n-th call: all have been hit
    ++hit;
    SCOPED_TRACE(fmt::format("call {} was hit: {}\n{}", n, s->world.faulted, s->world.summary()));
    expect_whole(*s, {"v1", "v2"});
    const Transaction& tx = last_of(*s);
    // Only a call that was plainly refused may leave VMs where they were. Silence and crashes may
    // not.
    if (fault != Fault::kFail)
      EXPECT_EQ(tx.outcome, Outcome::kDone) << name_of(tx.outcome);
    else
      EXPECT_NE(tx.outcome, Outcome::kFailed);
    // The pause is given back once, however often that was tried.
    const std::uint32_t pause_min =
        static_cast<std::uint32_t>((pause_ns(tx) + 59'999'999'999) / 60'000'000'000);
    const bool refused = s->world.faulted == "set_time_limit" && fault == Fault::kFail;
    EXPECT_EQ(s->world.time_limits[7], 60 + (refused ? 0 : pause_min));
    expect_replay_equal(*s);
    if (HasFailure()) return;
  }
  EXPECT_GT(hit, 12);  // the scenario really made calls
}

INSTANTIATE_TEST_SUITE_P(Faults, EveryCall,
                         testing::Combine(testing::Values(0, 1),
                                          testing::Values(Fault::kFail, Fault::kHangBefore,
                                                          Fault::kHangAfter, Fault::kCrashBefore,
                                                          Fault::kCrashAfter)));

// The pure fold, driven by hand: every pending step of the phase ends well, but `failing`'s.
void finish_phase(std::optional<Transaction>& tx, const std::string& failing = "",
                  bool more = false) {
  const Phase phase = tx->phase;
  const int round = tx->round;
  for (const Action& a : next_actions(*tx)) {
    Event e;
    e.type = a.vm == failing ? EventType::kStepFailed : EventType::kStepDone;
    e.tx = tx->id;
    e.time_ns = tx->begun_ns;
    e.vm = a.vm;
    e.phase = phase;
    e.round = round;
    e.tries = a.tries;
    e.result = {{"host", "hv2"}, {"job_id", 60}, {"more", more}};
    if (a.vm == failing) e.error = Error{Code::kRefused, "rank 3 did not answer"};
    symvirt::apply(tx, e);
  }
}

std::vector<std::string> busy(const Transaction& tx) {
  std::vector<std::string> names;
  for (const Action& a : next_actions(tx)) names.push_back(a.vm);
  return names;
}

TEST(Fold, AJobThatDoesNotComeToRestKeepsNobodyElses) {
  FakeWorld world;
  for (const char* vm : {"v1", "v2"}) world.boot_by_hand(vm, "hv1");
  Event begun;
  begun.begun = evacuation(world, {"v1", "v2"}, {});
  begun.begun->id = begun.tx = 1;
  begun.begun->vms[0].jobs = {7};
  begun.begun->vms[1].jobs = {8};
  std::optional<Transaction> tx;
  symvirt::apply(tx, begun);
  for (const Phase phase : {Phase::kPlan, Phase::kAcquire, Phase::kPrepare}) {
    ASSERT_EQ(tx->phase, phase);
    finish_phase(tx);
  }
  ASSERT_EQ(tx->phase, Phase::kQuiesce);
  finish_phase(tx, "v1", true);
  EXPECT_EQ(tx->phase, Phase::kQuiesce);
  EXPECT_EQ(tx->round, 2);
  EXPECT_EQ(busy(*tx), std::vector<std::string>{"v2"});
  finish_phase(tx);
  EXPECT_EQ(tx->phase, Phase::kDetach);
  EXPECT_EQ(busy(*tx), std::vector<std::string>{"v2"});
  for (const Phase phase : {Phase::kDetach, Phase::kMigrate, Phase::kAttach, Phase::kLink}) {
    ASSERT_EQ(tx->phase, phase);
    finish_phase(tx);
  }
  ASSERT_EQ(tx->phase, Phase::kResume);  // v1's ranks, too, that had answered
  EXPECT_EQ(busy(*tx), (std::vector<std::string>{"v1", "v2"}));
  finish_phase(tx);
  finish_phase(tx);
  ASSERT_TRUE(tx->ended());
  EXPECT_EQ(tx->outcome, Outcome::kPartial);
  EXPECT_EQ(tx->find("v1")->failure->message, "v1: rank 3 did not answer");
}

TEST(Fold, OneJobOneDecision) {
  FakeWorld world;
  for (const char* vm : {"v1", "v2"}) world.boot_by_hand(vm, "hv1");
  Event begun;
  begun.begun = evacuation(world, {"v1", "v2"}, {});
  begun.begun->id = begun.tx = 1;
  std::optional<Transaction> tx;
  symvirt::apply(tx, begun);
  for (int i = 0; i < 3; ++i) finish_phase(tx);
  ASSERT_EQ(tx->phase, Phase::kQuiesce);
  finish_phase(tx, "v1", true);
  EXPECT_EQ(tx->phase, Phase::kResume);
  EXPECT_EQ(busy(*tx), (std::vector<std::string>{"v1", "v2"}));
}

TEST(Evacuation, MovesBothVmsAndTellsTheJob) {
  auto s = prepare(kScenarios[0]);
  ASSERT_TRUE(s->begin(evacuation(s->world, {"v1", "v2"}, {})));
  ASSERT_TRUE(s->run());
  expect_whole(*s, {"v1", "v2"});
  EXPECT_EQ(last_of(*s).outcome, Outcome::kDone);
  EXPECT_TRUE(s->world.hosts["hv1"].vms.empty());
  EXPECT_NE(s->world.notes[7].find("moved v1:hv1>"), std::string::npos) << s->world.notes[7];
}

TEST(Evacuation, RanksAreToldWhetherTheirDeviceLeaves) {
  auto s = prepare(kScenarios[1]);
  ASSERT_TRUE(s->begin(evacuation(s->world, {"v1"}, {"v2"})));
  ASSERT_TRUE(s->run());
  EXPECT_EQ(last_of(*s).outcome, Outcome::kDone);
  EXPECT_TRUE(s->world.guests["v1"].device_leaves);
  EXPECT_FALSE(s->world.guests["v2"].device_leaves);
}

TEST(Evacuation, WaitsForAHostAndTouchesNothingMeanwhile) {
  auto s = prepare(kScenarios[0]);
  s->world.hosts["hv2"].drained = s->world.hosts["hv3"].drained = true;
  ASSERT_TRUE(s->begin(evacuation(s->world, {"v1", "v2"}, {})));
  EXPECT_FALSE(s->run(600));
  EXPECT_EQ(last_of(*s).phase, Phase::kAcquire);
  EXPECT_EQ(s->world.guests["v1"].highest_epoch, 0);
  s->world.hosts["hv3"].drained = false;
  ASSERT_TRUE(s->run());
  EXPECT_EQ(last_of(*s).outcome, Outcome::kDone);
  expect_whole(*s, {"v1", "v2"});
}

TEST(Evacuation, GoesOnWithoutTheVmThatFindsNoHost) {
  auto s = prepare(kScenarios[0]);
  s->world.hosts["hv2"].drained = true;
  s->world.hosts["hv3"].capacity = 1;
  ASSERT_TRUE(s->begin(evacuation(s->world, {"v1", "v2"}, {})));
  ASSERT_TRUE(s->run());
  EXPECT_EQ(last_of(*s).outcome, Outcome::kPartial);
  expect_whole(*s, {"v1", "v2"});
}

TEST(Evacuation, CancelledWhileWaitingLeavesNoLauncher) {
  auto s = prepare(kScenarios[0]);
  s->world.hosts["hv2"].drained = s->world.hosts["hv3"].drained = true;
  auto id = s->begin(evacuation(s->world, {"v1", "v2"}, {}));
  ASSERT_TRUE(id);
  s->run(10);
  ASSERT_TRUE(s->engine().cancel(*id));
  ASSERT_TRUE(s->run());
  EXPECT_EQ(last_of(*s).outcome, Outcome::kRestored);
  expect_whole(*s, {"v1", "v2"});
}

TEST(Evacuation, CancelledInAnyStepEndsWhole) {
  for (int steps = 0; steps < 60; ++steps) {
    auto s = prepare(kScenarios[0]);
    auto id = s->begin(evacuation(s->world, {"v1", "v2"}, {}));
    ASSERT_TRUE(id);
    for (int i = 0; i < steps; ++i) s->step();
    if (last_of(*s).ended()) {
      EXPECT_GT(steps, 8);
      return;
    }
    ASSERT_TRUE(s->engine().cancel(*id));
    ASSERT_TRUE(s->run()) << "cancelled at step " << steps;
    SCOPED_TRACE(steps);
    expect_whole(*s, {"v1", "v2"});
    EXPECT_EQ(s->engine().actions_in_flight(), 0u);
  }
}

TEST(Evacuation, TargetThatDiesDuringMigrationParksUntilItAnswers) {
  auto s = prepare(kScenarios[1]);
  s->world.hosts["hv2"].capacity = 1;
  s->world.dies_on_migrate = "hv3";
  ASSERT_TRUE(s->begin(evacuation(s->world, {"v1"}, {"v2"})));
  EXPECT_FALSE(s->run(120));
  EXPECT_EQ(last_of(*s).phase, Phase::kLocate);
  EXPECT_NE(last_of(*s).parked.find("hv3"), std::string::npos);
  s->world.hosts["hv3"].dead = false;
  ASSERT_TRUE(s->run());
  EXPECT_EQ(last_of(*s).outcome, Outcome::kRestored);
  expect_whole(*s, {"v1", "v2"});
}

TEST(Evacuation, TargetThatDiesDuringMigrationIsFenced) {
  auto s = prepare(kScenarios[1]);
  s->world.has_fence = true;
  s->world.hosts["hv2"].capacity = 1;
  s->world.dies_on_migrate = "hv3";
  ASSERT_TRUE(s->begin(evacuation(s->world, {"v1"}, {"v2"})));
  ASSERT_TRUE(s->run());
  EXPECT_EQ(last_of(*s).outcome, Outcome::kRestored);
  EXPECT_EQ(s->world.where_running("v1"), std::vector<std::string>{"hv1"});
  EXPECT_EQ(s->world.guests["v1"].rest_epoch, 0);
  EXPECT_EQ(s->world.guests["v2"].rest_epoch, 0);
}

// Two VMs, one silent host. What is left of v1 at the target never ran, or is the VM now.
TEST(Evacuation, SourceThatDiesDuringMigrationIsFencedOnce) {
  for (const std::string left : {"", "paused", "incoming", "running"}) {
    SCOPED_TRACE(left);
    auto s = prepare(kScenarios[0]);
    s->world.has_fence = true;
    s->world.dies_on_migrate = "hv1";
    s->world.left_at_target = left;
    ASSERT_TRUE(s->begin(evacuation(s->world, {"v1", "v2"}, {})));
    ASSERT_TRUE(s->run(600)) << s->world.summary();
    EXPECT_EQ(s->world.fences, 1);
    EXPECT_EQ(s->world.broken_rules(), std::vector<std::string>{});
    EXPECT_EQ(last_of(*s).outcome, Outcome::kFailed);
    for (const char* vm : {"v1", "v2"}) {
      const bool lives = vm == std::string("v1") && left == "running";
      EXPECT_EQ(s->world.where_running(vm).size(), lives ? 1u : 0u);
      EXPECT_EQ(s->world.down_nodes.count(vm), lives ? 0u : 1u);
      EXPECT_EQ(s->engine().vms().at(vm).up(), lives);
    }
    for (const char* host : {"hv2", "hv3"})
      EXPECT_EQ(s->world.hosts[host].vms.size(), s->world.hosts[host].reserved.size());
    expect_replay_equal(*s);
  }
}

TEST(Evacuation, TwoTransactionsFenceTheirHostOnce) {
  auto s = prepare(kScenarios[0]);
  s->world.has_fence = true;
  s->world.dies_on_migrate = "hv1";
  for (const char* vm : {"v1", "v2"}) {
    Transaction tx = evacuation(s->world, {vm}, {});
    tx.vms[0].jobs = {vm == std::string("v1") ? 7u : 8u};
    ASSERT_TRUE(s->begin(tx));
  }
  ASSERT_TRUE(s->run(600)) << s->world.summary();
  EXPECT_EQ(s->world.fences, 1);
  EXPECT_EQ(s->world.down_nodes.size(), 2u);
}

TEST(Evacuation, RanksThatNeverComeToRestGoOn) {
  auto s = prepare(kScenarios[0]);
  s->world.endless.insert("job.quiesce");
  ASSERT_TRUE(s->begin(evacuation(s->world, {"v1", "v2"}, {})));
  ASSERT_TRUE(s->run(60));
  EXPECT_EQ(last_of(*s).outcome, Outcome::kRestored);
  expect_whole(*s, {"v1", "v2"});
  EXPECT_LT(s->journal.records.size(), 150u);
}

TEST(Evacuation, RanksThatNeverEndResumingAreGivenBack) {
  auto s = prepare(kScenarios[0]);
  s->world.endless.insert("job.resume");
  ASSERT_TRUE(s->begin(evacuation(s->world, {"v1", "v2"}, {})));
  ASSERT_TRUE(s->run(3700));
  EXPECT_EQ(last_of(*s).outcome, Outcome::kFailed);
  EXPECT_EQ(s->world.down_nodes.size(), 2u);
  EXPECT_LT(s->journal.records.size(), 5000u);
}

TEST(Evacuation, ACoordinatorThatWasAwayForHoursGivesNothingUpUnseen) {
  for (const Phase phase : {Phase::kPrepare, Phase::kQuiesce, Phase::kDetach, Phase::kAttach,
                            Phase::kLink, Phase::kResume, Phase::kRelease}) {
    SCOPED_TRACE(name_of(phase));
    auto s = prepare(kScenarios[0]);
    ASSERT_TRUE(s->begin(evacuation(s->world, {"v1", "v2"}, {})));
    while (last_of(*s).phase != phase) s->step();
    s->clock.now += 5 * 3600 * 1'000'000'000LL;
    s->restart();
    s->world.fault = Fault::kHangBefore;  // noded is being started as well
    s->world.fault_at = s->world.calls + 1;
    ASSERT_TRUE(s->run());
    EXPECT_EQ(last_of(*s).outcome, Outcome::kDone);
    expect_whole(*s, {"v1", "v2"});
    expect_replay_equal(*s);
  }
}

TEST(Evacuation, SourceThatDiesAfterTheMoveKeepsNeitherJobNorLauncher) {
  auto s = prepare(kScenarios[0]);
  ASSERT_TRUE(s->begin(evacuation(s->world, {"v1", "v2"}, {})));
  while (last_of(*s).phase != Phase::kResume) s->step();
  s->world.hosts["hv1"].dead = true;
  ASSERT_TRUE(s->run(300));
  EXPECT_EQ(last_of(*s).outcome, Outcome::kDone);
  for (const char* vm : {"v1", "v2"}) EXPECT_EQ(s->world.guests[vm].rest_epoch, 0);
  for (const auto& [id, job] : s->world.jobs) {
    EXPECT_FALSE(job.state == JobState::kRunning && job.host == "hv1") << id;
  }
}

TEST(Evacuation, AttachThatNeverWorksGivesTheJobBackInTheEnd) {
  auto s = prepare(kScenarios[1]);
  s->world.hosts["hv2"].capacity = 1;
  s->world.failing_methods.insert("device.attach@hv3");
  ASSERT_TRUE(s->begin(evacuation(s->world, {"v1"}, {"v2"})));
  ASSERT_TRUE(s->run());
  EXPECT_EQ(last_of(*s).outcome, Outcome::kFailed);
  EXPECT_NE(s->world.down_nodes["v1"].find("symvirt:"), std::string::npos);
}

TEST(Evacuation, DevicesOfAnotherModelAreRefusedBeforeAnythingIsTouched) {
  auto s = prepare(kScenarios[1]);
  s->world.hosts["hv2"].capacity = 1;
  s->world.hosts["hv1"].vms["v1"].model = "8086:10d3";
  s->world.hosts["hv3"].model = "15b3:1018";
  ASSERT_TRUE(s->begin(evacuation(s->world, {"v1"}, {"v2"})));
  s->run(300);
  EXPECT_EQ(s->world.where_running("v1"), std::vector<std::string>{"hv1"});
  EXPECT_TRUE(s->world.hosts["hv1"].vms["v1"].device);
  EXPECT_EQ(s->world.guests["v1"].highest_epoch, 0) << "nobody was brought to rest";
  EXPECT_NE(s->world.hosts["hv3"].reserved.count("v1"), 1u);
  // The same one: it moves.
  s = prepare(kScenarios[1]);
  s->world.hosts["hv2"].capacity = 1;
  s->world.hosts["hv1"].vms["v1"].model = s->world.hosts["hv3"].model = "15b3:1018";
  ASSERT_TRUE(s->begin(evacuation(s->world, {"v1"}, {"v2"})));
  ASSERT_TRUE(s->run());
  EXPECT_EQ(last_of(*s).outcome, Outcome::kDone);
  EXPECT_EQ(s->world.where_running("v1"), std::vector<std::string>{"hv3"});
}

Transaction boot_of_v1() {
  Transaction tx;
  tx.kind = TxKind::kBoot;
  VmPart vm;
  vm.vm = "v1";
  vm.vm_class = "standard";
  vm.wanted = vm.moving = true;
  tx.vms.push_back(vm);
  return tx;
}

TEST(Boot, EveryFaultEndsUpOrOff) {
  for (Fault fault : {Fault::kFail, Fault::kHangBefore, Fault::kHangAfter, Fault::kCrashBefore,
                      Fault::kCrashAfter}) {
    for (int n = 1; n < 100; ++n) {
      Simulation s(two_vm_config());
      s.world.fault = fault;
      s.world.fault_at = n;
      ASSERT_TRUE(s.begin(boot_of_v1()));
      ASSERT_TRUE(s.run()) << n << " " << s.world.faulted << "\n" << s.world.summary();
      if (s.world.faulted.empty()) {
        EXPECT_GT(n, 8);
        break;
      }
      SCOPED_TRACE(fmt::format("call {}: {}\n{}", n, s.world.faulted, s.world.summary()));
      EXPECT_EQ(s.world.broken_rules(), std::vector<std::string>{});
      if (last_of(s).outcome == Outcome::kDone) {
        EXPECT_TRUE(s.world.guests["v1"].node_started);
        expect_whole(s, {"v1"});
      } else {
        EXPECT_EQ(fault, Fault::kFail);
        EXPECT_TRUE(s.world.where_running("v1").empty());
        EXPECT_TRUE(s.world.down_nodes.count("v1") > 0);
        for (const auto& [name, host] : s.world.hosts) EXPECT_TRUE(host.reserved.empty());
        for (const auto& [id, job] : s.world.jobs) EXPECT_EQ(job.state, JobState::kEnded);
      }
      if (HasFailure()) return;
    }
  }
}

// Either it is off and nothing is left of it, or it is up and known: then it can be stopped.
TEST(Boot, CancelledInAnyStepEndsWhole) {
  int up = 0;
  for (int steps = 0; steps < 60; ++steps) {
    SCOPED_TRACE(steps);
    Simulation s(two_vm_config());
    auto id = s.begin(boot_of_v1());
    ASSERT_TRUE(id);
    for (int i = 0; i < steps; ++i) s.step();
    if (last_of(s).ended()) {
      EXPECT_GT(steps, 8);
      EXPECT_GT(up, 0) << "never cancelled in release";
      return;
    }
    ASSERT_TRUE(s.engine().cancel(*id));
    ASSERT_TRUE(s.run());
    EXPECT_EQ(s.world.broken_rules(), std::vector<std::string>{});
    EXPECT_EQ(s.engine().actions_in_flight(), 0u);
    if (last_of(s).outcome == Outcome::kDone) {
      ++up;
      expect_whole(s, {"v1"});
      continue;
    }
    EXPECT_TRUE(s.world.where_running("v1").empty());
    EXPECT_FALSE(s.engine().vms().at("v1").up());
    for (const auto& [name, host] : s.world.hosts) EXPECT_TRUE(host.reserved.empty());
    for (const auto& [job, info] : s.world.jobs) EXPECT_EQ(info.state, JobState::kEnded);
  }
}

TEST(Boot, AVmThatCannotBeStoppedIsNotForgotten) {
  Simulation s(two_vm_config());
  for (const char* host : {"@hv1", "@hv2", "@hv3"}) {
    s.world.failing_methods.insert(std::string("device.attach") + host);
    s.world.failing_methods.insert(std::string("vm.stop") + host);
  }
  ASSERT_TRUE(s.begin(boot_of_v1()));
  ASSERT_TRUE(s.run());
  EXPECT_EQ(last_of(s).outcome, Outcome::kFailed);
  ASSERT_EQ(s.world.where_running("v1").size(), 1u);
  EXPECT_EQ(s.engine().vms().at("v1").host, s.world.where_running("v1")[0]);
  EXPECT_EQ(s.world.jobs.begin()->second.state, JobState::kRunning) << "it holds its place";
}

TEST(Engine, StopsWhenTheJournalFails) {
  auto s = prepare(kScenarios[0]);
  s->journal.broken = true;
  auto id = s->begin(evacuation(s->world, {"v1", "v2"}, {}));
  ASSERT_FALSE(id);
  EXPECT_EQ(id.error().code, Code::kInternal);
  EXPECT_EQ(s->world.calls, 0);
}

TEST(Engine, AVmIsInOneTransactionOnly) {
  auto s = prepare(kScenarios[0]);
  ASSERT_TRUE(s->begin(evacuation(s->world, {"v1", "v2"}, {})));
  auto second = s->begin(evacuation(s->world, {"v2"}, {"v1"}));
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, Code::kPrecondition);
}

}  // namespace
}  // namespace symvirt::fakes
