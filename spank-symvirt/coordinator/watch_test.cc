#include "spank-symvirt/coordinator/watch.h"

#include <gtest/gtest.h>

#include "spank-symvirt/coordinator/capacity.h"
#include "tests/fakes/fake_world.h"

namespace symvirt {
namespace {

// Three hosts with two devices each, v1 and v2 up on hv1, job 7 on both.
struct World {
  Config config = fakes::two_vm_config();
  std::vector<NodeInfo> nodes;
  std::vector<JobInfo> jobs;
  std::map<std::string, VmRecord> vms;
  std::map<std::int64_t, Transaction> transactions;
  std::map<std::string, HostSeen> hosts;

  World() {
    for (const char* name : {"hv1", "hv2", "hv3"}) {
      NodeInfo n;
      n.name = name;
      n.partitions = "hosts";
      n.gres = "hca:2";
      nodes.push_back(n);
    }
    for (const char* name : {"v1", "v2"}) {
      NodeInfo n;
      n.name = name;
      n.partitions = "vm";
      n.allocated = true;
      nodes.push_back(n);
      vms[name] = VmRecord{name, "standard", "hv1", 50, 0};
    }
    JobInfo job;
    job.id = 7;
    job.state = JobState::kRunning;
    job.nodes = {"v1", "v2"};
    jobs.push_back(job);
    JobInfo launcher;  // of both: who holds what is not looked at here
    launcher.id = 50;
    launcher.state = JobState::kRunning;
    launcher.nodes = {"hv1"};
    jobs.push_back(launcher);
  }
  NodeInfo& node(const std::string& name) {
    for (NodeInfo& n : nodes) {
      if (n.name == name) return n;
    }
    std::abort();
  }
  Decisions decide() {
    View view{&config, &nodes, &jobs, &vms, &transactions, &hosts, 1'000'000'000'000};
    return symvirt::decide(view);
  }
  std::vector<Decision> of(Decision::Kind kind) {
    std::vector<Decision> found;
    for (const Decision& d : decide().list) {
      if (d.kind == kind) found.push_back(d);
    }
    return found;
  }
};

TEST(Watch, NothingToDoInAHealthyCluster) {
  World w;
  EXPECT_TRUE(w.decide().list.empty());
}

TEST(Watch, DrainMovesBothVmsOfTheHostInOneTransaction) {
  World w;
  w.node("hv1").drain = true;
  w.node("hv1").reason = "memory errors";
  auto begun = w.of(Decision::Kind::kBegin);
  ASSERT_EQ(begun.size(), 1u);
  EXPECT_EQ(begun[0].tx.cause, "drain of hv1: memory errors");
  ASSERT_EQ(begun[0].tx.vms.size(), 2u);
  EXPECT_TRUE(begun[0].tx.vms[0].moving && begun[0].tx.vms[1].moving);
  EXPECT_EQ(begun[0].tx.vms[0].jobs, std::vector<std::uint32_t>{7});
}

TEST(Watch, JobsThatShareNoVmGoInTransactionsOfTheirOwn) {
  World w;
  w.jobs[0].nodes = {"v1"};
  JobInfo other = w.jobs[0];
  other.id = 8;
  other.nodes = {"v2"};
  other.admin_comment = "quiesce_timeout=3600";
  w.jobs.push_back(other);
  w.node("hv1").drain = true;
  auto begun = w.of(Decision::Kind::kBegin);
  ASSERT_EQ(begun.size(), 2u);
  EXPECT_EQ(begun[0].tx.vms.size(), 1u);
  EXPECT_EQ(begun[0].tx.policy.quiesce_ms, w.config.policy.quiesce_ms);  // not the other's hour
  EXPECT_EQ(begun[1].tx.policy.quiesce_ms, 3'600'000);
}

TEST(Watch, TheOtherVmsOfTheJobRestWhereTheyAre) {
  World w;
  w.vms["v2"].host = "hv2";
  w.node("hv1").fail = true;
  auto begun = w.of(Decision::Kind::kBegin);
  ASSERT_EQ(begun.size(), 1u);
  EXPECT_TRUE(begun[0].tx.find("v1")->moving);
  EXPECT_FALSE(begun[0].tx.find("v2")->moving);
}

TEST(Watch, TwoDrainedHostsOfOneJobMakeOneTransaction) {
  World w;
  w.vms["v2"].host = "hv2";
  w.node("hv1").drain = w.node("hv2").drain = true;
  auto begun = w.of(Decision::Kind::kBegin);
  ASSERT_EQ(begun.size(), 1u);
  EXPECT_TRUE(begun[0].tx.find("v1")->moving && begun[0].tx.find("v2")->moving);
}

TEST(Watch, IdleVmIsPoweredDown) {
  World w;
  w.jobs.clear();
  w.node("hv1").drain = true;
  w.node("v1").idle = w.node("v2").idle = true;
  EXPECT_EQ(w.of(Decision::Kind::kPowerDown).size(), 2u);
  w.node("v1").powering_down = true;
  EXPECT_EQ(w.of(Decision::Kind::kPowerDown).size(), 1u);
}

TEST(Watch, JobThatOptedOutStaysAndTheReasonIsShown) {
  World w;
  w.node("hv1").drain = true;
  w.jobs[0].admin_comment = "symvirt: class=standard ft=none";
  const Decisions d = w.decide();
  EXPECT_TRUE(d.list.empty());
  EXPECT_NE(d.notes.at("v1").find("--symvirt-ft=none"), std::string::npos);
}

TEST(Watch, CompletingSuspendedAndStartingJobsAreLookedAtLater) {
  for (JobState state : {JobState::kCompleting, JobState::kSuspended, JobState::kConfiguring}) {
    World w;
    w.node("hv1").drain = true;
    w.jobs[0].state = state;
    const Decisions d = w.decide();
    EXPECT_TRUE(d.list.empty());
    EXPECT_EQ(d.notes.count("v1"), 1u);
  }
}

TEST(Watch, JobsOwnQuiesceTimeoutIsUsed) {
  World w;
  w.node("hv1").drain = true;
  w.jobs[0].admin_comment = "symvirt: class=standard quiesce_timeout=77";
  EXPECT_EQ(w.of(Decision::Kind::kBegin).at(0).tx.policy.quiesce_ms, 77'000);
}

TEST(Watch, BusyVmsAreNotTouchedTwice) {
  World w;
  w.node("hv1").drain = true;
  Transaction tx = w.of(Decision::Kind::kBegin).at(0).tx;
  tx.id = 5;
  tx.phase = Phase::kMigrate;
  w.transactions[5] = tx;
  EXPECT_TRUE(w.decide().list.empty());
}

TEST(Watch, FailedSetIsTriedAgainAfterAWhile) {
  World w;
  w.node("hv1").drain = true;
  Transaction tx = w.of(Decision::Kind::kBegin).at(0).tx;
  tx.id = 5;
  tx.phase = Phase::kEnd;
  tx.outcome = Outcome::kRestored;
  tx.ended_ns = 1'000'000'000'000 - 5'000'000'000;
  w.transactions[5] = tx;
  EXPECT_TRUE(w.of(Decision::Kind::kBegin).empty());
  EXPECT_EQ(w.decide().notes.count("v1"), 1u);
  w.transactions[5].ended_ns -= 60'000'000'000;
  EXPECT_EQ(w.of(Decision::Kind::kBegin).size(), 1u);
}

TEST(Watch, WaitingIsGivenUpWhenTheDrainIsUndone) {
  World w;
  w.node("hv1").drain = true;
  Transaction tx = w.of(Decision::Kind::kBegin).at(0).tx;
  tx.id = 5;
  tx.phase = Phase::kAcquire;
  w.transactions[5] = tx;
  EXPECT_TRUE(w.decide().list.empty());
  w.node("hv1").drain = false;
  auto cancels = w.of(Decision::Kind::kCancel);
  ASSERT_EQ(cancels.size(), 1u);
  EXPECT_EQ(cancels[0].id, 5);
  w.transactions[5].phase = Phase::kQuiesce;  // too late to be needless
  EXPECT_TRUE(w.of(Decision::Kind::kCancel).empty());
}

TEST(Watch, NodeWithoutItsVmIsPoweredDown) {
  World w;
  w.jobs.clear();
  w.vms.clear();
  w.node("v1").allocated = w.node("v2").allocated = false;
  w.node("v1").idle = true;
  w.node("v2").idle = w.node("v2").powered_down = true;
  auto down = w.of(Decision::Kind::kPowerDown);
  ASSERT_EQ(down.size(), 1u);
  EXPECT_EQ(down[0].node, "v1");
  w.node("v1").powering_up = true;
  EXPECT_TRUE(w.of(Decision::Kind::kPowerDown).empty());
}

TEST(Watch, WaitingForAHostIsSaid) {
  World w;
  w.node("hv1").drain = true;
  Transaction tx = w.of(Decision::Kind::kBegin).at(0).tx;
  tx.id = 5;
  tx.phase = Phase::kAcquire;
  tx.phase_begin_ns = 1'000'000'000'000 - 10'000'000'000;
  tx.vms[0].status = StepStatus::kPending;
  w.transactions[5] = tx;
  EXPECT_NE(w.decide().notes.at("v1").find("waits for a host"), std::string::npos);
  w.transactions[5].phase_begin_ns = 1'000'000'000'000;
  EXPECT_EQ(w.decide().notes.count("v1"), 0u);
}

TEST(Watch, SurplusVmNodesAreDrainedAndComeBack) {
  World w;
  w.jobs.clear();
  w.vms.clear();
  for (const char* vm : {"v1", "v2"}) {
    w.node(vm).allocated = false;
    w.node(vm).powered_down = true;
  }
  w.node("hv1").drain = w.node("hv2").drain = true;
  w.node("hv3").gres = "hca:1";
  auto drained = w.of(Decision::Kind::kDrainNode);
  ASSERT_EQ(drained.size(), 1u);
  EXPECT_EQ(drained[0].reason, kNoHostReason);
  w.node(drained[0].node).drain = true;
  w.node(drained[0].node).reason = kNoHostReason;
  EXPECT_TRUE(w.decide().list.empty());
  w.node("hv1").drain = false;
  auto resumed = w.of(Decision::Kind::kResumeNode);
  ASSERT_EQ(resumed.size(), 1u);
  EXPECT_EQ(resumed[0].node, drained[0].node);
}

// Three hosts with two devices each, all VMs off.
struct PoolAtRest : World {
  PoolAtRest() {
    jobs.clear();
    vms.clear();
    for (const char* vm : {"v1", "v2"}) {
      node(vm).allocated = false;
      node(vm).powered_down = true;
    }
  }
  // Everything of a host but `left` is taken by somebody's job.
  void take(const std::string& host, int left) {
    const int used = gres_count(node(host).gres, "hca") - left;
    node(host).gres_used = used == 0 ? "hca:0" : "hca:" + std::to_string(used) + "(IDX:0,1)";
  }
  std::vector<std::string> names(Decision::Kind kind) {
    std::vector<std::string> list;
    for (const Decision& d : of(kind)) list.push_back(d.node);
    return list;
  }
  void carry_out() {
    for (const Decision& d : decide().list) {
      const bool drains = d.kind == Decision::Kind::kDrainNode;
      if (!drains && d.kind != Decision::Kind::kResumeNode) continue;
      node(d.node).drain = drains;
      node(d.node).down = false;
      node(d.node).reason = drains ? d.reason : "";
    }
  }
};

using Names = std::vector<std::string>;

TEST(Capacity, HostsThatOthersKeepBusyPromiseNothing) {
  PoolAtRest w;
  for (const char* host : {"hv1", "hv2", "hv3"}) w.take(host, 0);
  EXPECT_EQ(w.names(Decision::Kind::kDrainNode), (Names{"v2", "v1"}));
  w.carry_out();
  EXPECT_TRUE(w.decide().list.empty());
  w.take("hv2", 1);
  EXPECT_EQ(w.names(Decision::Kind::kResumeNode), Names{"v2"});
  w.carry_out();
  EXPECT_TRUE(w.decide().list.empty());
  w.take("hv2", 2);
  EXPECT_EQ(w.names(Decision::Kind::kResumeNode), Names{"v1"});
}

TEST(Capacity, WhatOurLaunchersHoldIsNoForeignUse) {
  PoolAtRest w;
  for (const char* host : {"hv1", "hv2", "hv3"}) w.take(host, 0);
  w.node("hv1").full = true;  // by our two launchers
  for (const char* vm : {"v1", "v2"}) {
    JobInfo launcher;
    launcher.id = 90;
    launcher.state = JobState::kRunning;
    launcher.comment = std::string("symvirt:3:") + vm + ":1";
    launcher.nodes = {"hv1"};
    w.jobs.push_back(launcher);
  }
  EXPECT_TRUE(w.decide().list.empty());
  w.jobs.back().state = JobState::kEnded;
  EXPECT_EQ(w.names(Decision::Kind::kDrainNode).size(), 1u);
  w.jobs.back().state = JobState::kRunning;
  w.jobs.back().uid = 2000;  // anybody may write that
  EXPECT_EQ(w.names(Decision::Kind::kDrainNode).size(), 1u);
  w.jobs.back().uid = 0;
  w.jobs.back().comment = "symvirt:3";
  EXPECT_EQ(w.names(Decision::Kind::kDrainNode).size(), 1u);
}

TEST(Capacity, DevicesOfAHostWithoutFreeCpusAreOutOfReach) {
  PoolAtRest w;
  w.node("hv1").full = w.node("hv2").full = true;
  w.take("hv3", 1);
  EXPECT_EQ(w.names(Decision::Kind::kDrainNode), Names{"v2"});
}

TEST(Capacity, AVmOfTwoSlotsTakesTwo) {
  PoolAtRest w;
  w.config.classes[0].slots.push_back(w.config.classes[0].slots[0]);
  w.take("hv1", 0);
  w.take("hv2", 1);
  EXPECT_EQ(w.names(Decision::Kind::kDrainNode), Names{"v2"});
  w.carry_out();
  EXPECT_TRUE(w.decide().list.empty()) << "one device does not bring it back";
  w.take("hv2", 2);
  EXPECT_EQ(w.names(Decision::Kind::kResumeNode), Names{"v2"});
}

TEST(Capacity, AGresOfTwoClassesIsPromisedOnce) {
  PoolAtRest w;
  ClassConfig large = w.config.classes[0];
  large.name = "large";
  large.nodes = {"w1"};
  w.config.classes.push_back(large);
  NodeInfo n = w.node("v1");
  n.name = "w1";
  w.nodes.push_back(n);
  w.node("hv1").drain = true;
  w.take("hv2", 1);
  w.take("hv3", 1);
  EXPECT_EQ(w.names(Decision::Kind::kDrainNode), Names{"w1"});
  w.carry_out();
  EXPECT_TRUE(w.decide().list.empty());
  w.take("hv3", 2);
  EXPECT_EQ(w.names(Decision::Kind::kResumeNode), Names{"w1"});
  w.config.spares = 1;
  EXPECT_TRUE(w.decide().list.empty());
}

TEST(Capacity, ANodeWhoseBootFoundNoHostComesBack) {
  PoolAtRest w;
  for (const char* host : {"hv1", "hv2", "hv3"}) w.take(host, 0);
  w.node("v1").down = w.node("v2").down = true;
  w.node("v1").reason = std::string(kNoHostReason) + ": none within 180 s";
  w.node("v2").reason = "symvirt: v2: attach failed";
  EXPECT_TRUE(w.decide().list.empty());
  w.take("hv3", 1);
  EXPECT_EQ(w.names(Decision::Kind::kResumeNode), Names{"v1"});
  w.node("v1").powering_down = true;
  EXPECT_TRUE(w.decide().list.empty()) << "Slurm is not done with it";
}

TEST(Capacity, CountsAreReadAsSlurmPrintsThem) {
  EXPECT_EQ(gres_count("hca:2", "hca"), 2);
  EXPECT_EQ(gres_count("hca:2(S:0-1)", "hca"), 2);
  EXPECT_EQ(gres_count("fpga:1(IDX:0),hca:3(IDX:0,2-3)", "hca"), 3);
  EXPECT_EQ(gres_count("hca:ib:1(S:0),hca:eth:2(S:1)", "hca"), 3);
  EXPECT_EQ(gres_count("hca:ib:1(S:0),hca:eth:2(S:1)", "hca:eth"), 2);
  EXPECT_EQ(gres_count("hca:0", "hca"), 0);
  EXPECT_EQ(gres_count("hca2:4,", "hca"), 0);
  EXPECT_EQ(gres_count("", "hca"), 0);
}

TEST(Watch, AVmWhoseBootWasCancelledTooLateIsStopped) {
  World w;
  w.jobs.erase(w.jobs.begin());
  Transaction boot;
  boot.id = 3;
  boot.kind = TxKind::kBoot;
  boot.phase = Phase::kEnd;
  boot.outcome = Outcome::kDone;
  boot.ended_ns = 70;
  boot.vms.resize(1);
  boot.vms[0].vm = "v1";
  w.transactions[3] = boot;
  w.vms["v1"].since_ns = 70;
  EXPECT_TRUE(w.of(Decision::Kind::kBegin).empty()) << "nobody cancelled it";
  w.transactions[3].cancel_requested = true;
  auto begun = w.of(Decision::Kind::kBegin);
  ASSERT_EQ(begun.size(), 1u);
  EXPECT_EQ(begun[0].tx.kind, TxKind::kStop);
  ASSERT_EQ(begun[0].tx.vms.size(), 1u);
  EXPECT_EQ(begun[0].tx.vms[0].from, "hv1");
  EXPECT_EQ(begun[0].tx.vms[0].from_job, 50u);
  w.vms["v1"].since_ns = 90;  // of a later transaction: somebody wanted it after all
  EXPECT_TRUE(w.of(Decision::Kind::kBegin).empty());
  w.vms.erase("v1");
  EXPECT_TRUE(w.of(Decision::Kind::kBegin).empty());
}

TEST(Watch, SomebodyElsesDrainOfAVmNodeIsNotUndone) {
  World w;
  w.jobs.clear();
  w.vms.clear();
  w.node("v1").drain = true;
  w.node("v1").reason = "bad disk";
  EXPECT_TRUE(w.of(Decision::Kind::kResumeNode).empty());
}

TEST(Watch, VmThatIsNotOnItsHostIsLost) {
  World w;
  w.hosts["hv1"] = HostSeen{true, 20, {{"v1", "running"}}};
  w.vms["v2"].since_ns = 20;  // it came after the host was asked
  EXPECT_TRUE(w.of(Decision::Kind::kVmLost).empty());
  w.vms["v2"].since_ns = 10;
  auto lost = w.of(Decision::Kind::kVmLost);
  ASSERT_EQ(lost.size(), 1u);
  EXPECT_EQ(lost[0].node, "v2");
  w.hosts["hv1"].answered = false;  // silence proves nothing
  EXPECT_TRUE(w.of(Decision::Kind::kVmLost).empty());
}

TEST(Watch, LostLauncherClosesTheHost) {
  World w;
  w.jobs[1].state = JobState::kEnded;
  auto lost = w.of(Decision::Kind::kLauncherLost);
  ASSERT_EQ(lost.size(), 2u);
  EXPECT_EQ(lost[0].node, "v1");
  EXPECT_EQ(lost[0].host, "hv1");
  EXPECT_EQ(lost[0].reason, "symvirt: launcher job 50 of v1 was lost");
  w.jobs.pop_back();  // nor is it known any more
  EXPECT_EQ(w.of(Decision::Kind::kLauncherLost).size(), 2u);
  w.node("hv1").drain = true;  // closed already: the drain moves the VMs
  EXPECT_TRUE(w.of(Decision::Kind::kLauncherLost).empty());
  EXPECT_EQ(w.of(Decision::Kind::kBegin).size(), 1u);
}

TEST(Watch, LaunchersOfVmsInATransactionAreItsBusiness) {
  World w;
  w.jobs.pop_back();
  View view{&w.config, &w.nodes, &w.jobs, &w.vms, &w.transactions, &w.hosts, 1'000'000'000'000};
  auto tx = plan_evacuation(view, {"v1"}, "test");
  ASSERT_TRUE(tx);
  tx->id = 1;
  w.transactions[1] = *tx;
  EXPECT_TRUE(w.of(Decision::Kind::kLauncherLost).empty());
}

TEST(Watch, JobOfAVmThatCannotBeFoundIsGivenBackInTheEnd) {
  World w;
  View view{&w.config, &w.nodes, &w.jobs, &w.vms, &w.transactions, &w.hosts, 1'000'000'000'000};
  auto tx = plan_evacuation(view, {"v1"}, "test");
  ASSERT_TRUE(tx);
  tx->id = 4;
  tx->phase = Phase::kLocate;
  tx->parked = "hv1 does not answer";
  tx->find("v1")->at = Where::kUnknown;
  tx->tried_since_ns = 1'000'000'000'000 - (tx->policy.park_ms - 1) * 1'000'000;
  w.transactions[4] = *tx;
  EXPECT_TRUE(w.of(Decision::Kind::kGiveBack).empty());
  w.transactions[4].tried_since_ns -= 2'000'000;
  auto given = w.of(Decision::Kind::kGiveBack);
  ASSERT_EQ(given.size(), 1u);  // v2 is where it was
  EXPECT_EQ(given[0].node, "v1");
  EXPECT_NE(given[0].reason.find("hv1 does not answer"), std::string::npos);
  w.node("v1").down = true;
  EXPECT_TRUE(w.of(Decision::Kind::kGiveBack).empty());
}

}  // namespace
}  // namespace symvirt
