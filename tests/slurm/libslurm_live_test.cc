// SlurmApi over libslurm against a real slurmctld: run by tests/slurm/cluster (ctest:
// slurm_libslurm). Each test leaves the cluster as it found it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <sstream>
#include <thread>

#include "spank-symvirt/coordinator/capacity.h"
#include "spank-symvirt/coordinator/slurm_api.h"

namespace symvirt {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::HasSubstr;

Deadline soon() { return Deadline::after(seconds(10)); }

std::string shell(const std::string& command) {
  std::string output;
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  char buffer[4096];
  while (std::size_t n = fread(buffer, 1, sizeof buffer, pipe)) output.append(buffer, n);
  pclose(pipe);
  while (!output.empty() && output.back() == '\n') output.pop_back();
  return output;
}

bool wait_until(const std::function<bool()>& condition) {
  for (const Deadline end = Deadline::after(seconds(90)); !end.expired();) {
    if (condition()) return true;
    std::this_thread::sleep_for(milliseconds(100));
  }
  return false;
}

class Libslurm : public testing::Test {
 protected:
  static void SetUpTestSuite() { api_ = make_libslurm_api(); }
  static void TearDownTestSuite() { api_.reset(); }
  void TearDown() override {
    shell("scancel -u root; scontrol update nodename=hv1,hv2,v1 state=resume");
    EXPECT_TRUE(wait_until([] { return shell("sinfo -h -N -o %T | sort -u") == "idle"; }))
        << shell("sinfo -N");
  }

  static NodeInfo node(const std::string& name) {
    auto nodes = api_->poll_nodes(soon());
    EXPECT_TRUE(nodes) << (nodes ? "" : nodes.error().message);
    for (const NodeInfo& n : *nodes) {
      if (n.name == name) return n;
    }
    ADD_FAILURE() << "no node " << name;
    return {};
  }
  static JobInfo job(std::uint32_t id) {
    auto jobs = api_->poll_jobs(soon());
    EXPECT_TRUE(jobs) << (jobs ? "" : jobs.error().message);
    for (const JobInfo& j : *jobs) {
      if (j.id == id) return j;
    }
    return {};
  }
  // The launcher's place is taken by a program that only stays.
  LauncherSpec launcher(const std::string& tag) {
    const std::string program = std::string(std::getenv("SLURM_TEST_DIR")) + "/launcher";
    std::ofstream(program) << "#!/bin/sh\necho \"$@\"; env; exec sleep 1000\n";
    shell("chmod 755 " + program);
    LauncherSpec spec;
    spec.vm = "v1";
    spec.vm_class = "standard";
    spec.tag = tag;
    spec.partition = "hosts";
    spec.gres = "hca:1";
    spec.cpus = 2;
    spec.memory_mib = 300;
    spec.launcher_path = program;
    return spec;
  }
  std::uint32_t submit_sleep(const std::string& options) {
    return static_cast<std::uint32_t>(
        std::stoul(shell("sbatch --parsable -o /dev/null " + options + " --wrap 'sleep 1000'")));
  }
  bool runs(std::uint32_t id) {
    return wait_until([&] { return job(id).state == JobState::kRunning; });
  }

  static std::unique_ptr<SlurmApi> api_;
};
std::unique_ptr<SlurmApi> Libslurm::api_;

TEST_F(Libslurm, NodesAsTheyAre) {
  const NodeInfo host = node("hv1");
  EXPECT_TRUE(host.idle);
  EXPECT_FALSE(host.drain || host.down || host.fail || host.allocated);
  EXPECT_EQ(host.partitions, "hosts");
  EXPECT_EQ(host.gres, "hca:2");
  EXPECT_EQ(node("v1").partitions, "vm");
}

// The capacity rule's food: what is in use, whose it is, and what it makes of that.
TEST_F(Libslurm, DevicesThatOtherJobsHoldArePromisedToNoVm) {
  Config config;
  config.classes.resize(1);
  config.classes[0].nodes = {"v1"};
  config.classes[0].slots.resize(1);
  config.classes[0].slots[0].gres = "hca";
  const std::map<std::string, VmRecord> vms;
  const std::map<std::int64_t, Transaction> transactions;
  auto decisions = [&](Decision::Kind kind) {
    auto nodes = api_->poll_nodes(soon());
    auto jobs = api_->poll_jobs(soon());
    if (!nodes || !jobs) return std::ptrdiff_t{-1};
    const View view{&config, &*nodes, &*jobs, &vms, &transactions, nullptr, 0, getuid()};
    Decisions out;
    keep_capacity(view, out);
    return std::count_if(out.list.begin(), out.list.end(),
                         [&](const Decision& d) { return d.kind == kind; });
  };
  EXPECT_EQ(decisions(Decision::Kind::kDrainNode), 0);
  const std::uint32_t foreign = submit_sleep("-p hosts -w hv1 --gres=hca:2");
  ASSERT_TRUE(runs(foreign));
  EXPECT_TRUE(wait_until([&] { return gres_count(node("hv1").gres_used, "hca") == 2; }))
      << node("hv1").gres_used;
  EXPECT_EQ(decisions(Decision::Kind::kDrainNode), 0) << "hv2 has room";
  LauncherSpec spec = launcher("symvirt:1:v1:1");
  spec.gres = "hca:2";
  auto ours = api_->submit_launcher(spec, soon());
  ASSERT_TRUE(ours) << ours.error().message;
  ASSERT_TRUE(runs(*ours));
  EXPECT_TRUE(wait_until([&] { return gres_count(node("hv2").gres_used, "hca") == 2; }))
      << node("hv2").gres_used;
  EXPECT_EQ(decisions(Decision::Kind::kDrainNode), 0) << "one of it is v1's own";
  ASSERT_TRUE(api_->cancel_job(*ours, soon()));
  const std::uint32_t whole = submit_sleep("-p hosts -w hv2 --exclusive");
  ASSERT_TRUE(runs(whole));
  EXPECT_TRUE(wait_until([&] { return node("hv2").full; })) << node("hv2").state_text;
  EXPECT_EQ(decisions(Decision::Kind::kDrainNode), 1) << "no CPU is left beside the devices";
  ASSERT_TRUE(api_->set_node_drain("v1", kNoHostReason, soon()));
  ASSERT_TRUE(wait_until([&] { return node("v1").drain; }));
  EXPECT_EQ(decisions(Decision::Kind::kResumeNode), 0);
  ASSERT_TRUE(api_->cancel_job(foreign, soon()));
  EXPECT_TRUE(wait_until([&] { return decisions(Decision::Kind::kResumeNode) == 1; }))
      << node("hv1").gres_used;
}

TEST_F(Libslurm, ADrainIsSeenAndSaysWhetherJobsAreLeft) {
  const std::uint32_t id = submit_sleep("-p hosts -w hv1");
  ASSERT_TRUE(runs(id));
  shell("scontrol update nodename=hv1 state=drain reason='memory errors'");
  ASSERT_TRUE(wait_until([&] { return node("hv1").drain; }));
  EXPECT_EQ(node("hv1").state_text, "draining");
  EXPECT_EQ(node("hv1").reason, "memory errors");
  ASSERT_TRUE(api_->cancel_job(id, soon()));
  EXPECT_TRUE(wait_until([&] { return node("hv1").state_text == "drained"; }));
}

TEST_F(Libslurm, ALauncherIsSubmittedOnceForATag) {
  auto first = api_->submit_launcher(launcher("symvirt:1:v1:1"), soon());
  ASSERT_TRUE(first) << first.error().message;
  auto again = api_->submit_launcher(launcher("symvirt:1:v1:1"), soon());
  ASSERT_TRUE(again);
  EXPECT_EQ(*first, *again);
  ASSERT_TRUE(runs(*first));
  // Also a coordinator that was restarted finds it.
  auto restarted = make_libslurm_api()->submit_launcher(launcher("symvirt:1:v1:1"), soon());
  ASSERT_TRUE(restarted);
  EXPECT_EQ(*first, *restarted);
  auto other = api_->submit_launcher(launcher("symvirt:1:v1:2"), soon());
  ASSERT_TRUE(other);
  EXPECT_NE(*first, *other);
  ASSERT_TRUE(runs(*other));

  const std::string shown = shell("scontrol -o show job " + std::to_string(*first));
  for (const char* part : {"JobName=symvirt-v1 ", "Requeue=0", "TimeLimit=UNLIMITED", "gres:hca:1",
                           "MinMemoryNode=300M", "Partition=hosts", "NumNodes=1", "UserId=root"})
    EXPECT_THAT(shown, HasSubstr(part));
  EXPECT_THAT(shown, testing::ContainsRegex("NumCPUs=2 "));
  EXPECT_EQ(job(*first).comment, "symvirt:1:v1:1");
  EXPECT_EQ(job(*first).nodes.size(), 1u);

  ASSERT_TRUE(api_->cancel_launchers("symvirt:1:v1:", soon()));
  EXPECT_TRUE(wait_until([&] {
    return job(*first).state == JobState::kEnded && job(*other).state == JobState::kEnded;
  }));
  EXPECT_TRUE(api_->cancel_launchers("symvirt:1:v1:", soon()));  // nothing left: success
}

TEST_F(Libslurm, LaunchersKeepAwayFromHostsAndGoWhereTheyAreSent) {
  LauncherSpec away = launcher("symvirt:2:v1:1");
  away.exclude_hosts = {"hv1"};
  auto first = api_->submit_launcher(away, soon());
  LauncherSpec to = launcher("symvirt:2:v2:1");
  to.only_hosts = {"hv1"};
  auto second = api_->submit_launcher(to, soon());
  ASSERT_TRUE(first && second);
  ASSERT_TRUE(runs(*first) && runs(*second));
  EXPECT_EQ(job(*first).nodes, std::vector<std::string>{"hv2"});
  EXPECT_EQ(job(*second).nodes, std::vector<std::string>{"hv1"});
  // Two devices a host: the third has to wait, and is pending, not refused.
  to.tag = "symvirt:2:v3:1";
  auto third = api_->submit_launcher(to, soon());
  to.tag = "symvirt:2:v4:1";
  auto fourth = api_->submit_launcher(to, soon());
  ASSERT_TRUE(third && fourth);
  ASSERT_TRUE(runs(*third));
  std::this_thread::sleep_for(seconds(2));
  EXPECT_EQ(job(*fourth).state, JobState::kPending);
}

TEST_F(Libslurm, WhatSlurmRefusesIsAnErrorOfItsOwnWords) {
  LauncherSpec spec = launcher("symvirt:3:v1:1");
  spec.partition = "nowhere";
  auto id = api_->submit_launcher(spec, soon());
  ASSERT_FALSE(id);
  EXPECT_EQ(id.error().code, Code::kRefused);
  EXPECT_THAT(id.error().message, HasSubstr("partition"));
  Status gone = api_->cancel_job(999'999, soon());
  ASSERT_FALSE(gone);
  EXPECT_EQ(gone.error().code, Code::kNotFound);
}

TEST_F(Libslurm, ReasonsOfOthersAreLeftAlone) {
  shell("scontrol update nodename=hv1 state=drain reason='NHC: disk'");
  ASSERT_TRUE(wait_until([&] { return node("hv1").drain; }));
  EXPECT_TRUE(api_->set_node_drain("hv1", "symvirt: no host", soon()));
  EXPECT_EQ(node("hv1").reason, "NHC: disk");
  Status resumed = api_->resume_node("hv1", soon());
  ASSERT_FALSE(resumed);
  EXPECT_EQ(resumed.error().code, Code::kPrecondition);
  EXPECT_TRUE(node("hv1").drain);
  ASSERT_TRUE(api_->set_node_down("hv1", "symvirt: VM lost", soon()));
  EXPECT_TRUE(wait_until([&] { return node("hv1").down; }));
  EXPECT_EQ(node("hv1").reason, "NHC: disk");
  EXPECT_EQ(api_->set_node_drain("hv9", "symvirt: x", soon()).error().code, Code::kNotFound);
}

TEST_F(Libslurm, OurOwnDrainComesAndGoes) {
  ASSERT_TRUE(api_->set_node_drain("v1", "symvirt: no host", soon()));
  ASSERT_TRUE(wait_until([&] { return node("v1").drain; }));
  EXPECT_EQ(node("v1").reason, "symvirt: no host");
  ASSERT_TRUE(api_->resume_node("v1", soon()));
  EXPECT_TRUE(wait_until([&] { return node("v1").idle && !node("v1").drain; }));
  EXPECT_TRUE(api_->resume_node("v1", soon()));  // nothing to do
  ASSERT_TRUE(api_->set_node_down("v1", "symvirt: VM lost", soon()));
  EXPECT_TRUE(wait_until([&] { return node("v1").down; }));
  EXPECT_EQ(node("v1").reason, "symvirt: VM lost");
}

TEST_F(Libslurm, AJobsLimitGrowsByThePauseAndItsCommentByTheLine) {
  const std::uint32_t id = submit_sleep("-p hosts --time=10 --comment=users");
  ASSERT_TRUE(runs(id));
  for (const std::uint32_t minutes : {12, 12, 11})  // a repetition, and one that would shorten it
    ASSERT_TRUE(api_->set_time_limit(id, minutes, soon()));
  EXPECT_TRUE(wait_until([&] { return job(id).time_limit_min == 12; })) << job(id).time_limit_min;
  ASSERT_TRUE(api_->set_admin_comment(id, "symvirt: 1: moved v1", soon()));
  ASSERT_TRUE(wait_until([&] { return job(id).admin_comment == "symvirt: 1: moved v1"; }));
  ASSERT_TRUE(api_->set_admin_comment(id, "symvirt: 2: moved v1", soon()));
  ASSERT_TRUE(wait_until([&] {
    return job(id).admin_comment == "symvirt: 1: moved v1; symvirt: 2: moved v1";
  })) << job(id).admin_comment;
  ASSERT_TRUE(api_->set_admin_comment(id, "symvirt: 2: moved v1", soon()));
  std::this_thread::sleep_for(milliseconds(300));
  EXPECT_EQ(job(id).admin_comment, "symvirt: 1: moved v1; symvirt: 2: moved v1");
  EXPECT_EQ(job(id).comment, "users");
  const std::uint32_t endless = submit_sleep("-p hosts --time=UNLIMITED");
  ASSERT_TRUE(runs(endless));
  EXPECT_TRUE(api_->set_time_limit(endless, 12, soon()));
  EXPECT_EQ(job(endless).time_limit_min, 0u);
}

// The pid file is of tests/slurm/cluster.
TEST_F(Libslurm, AControllerThatDoesNotAnswerIsUnavailableAndNotForEver) {
  const pid_t controller = std::stoi(shell("cat /run/slurmctld.own.pid"));
  ASSERT_TRUE(api_->poll_nodes(soon()));
  kill(controller, SIGSTOP);
  const auto begin = std::chrono::steady_clock::now();
  auto nodes = api_->poll_nodes(soon());
  const auto took = std::chrono::steady_clock::now() - begin;
  kill(controller, SIGCONT);
  ASSERT_FALSE(nodes);
  EXPECT_EQ(nodes.error().code, Code::kUnavailable) << nodes.error().message;
  EXPECT_LT(took, seconds(30));
  EXPECT_TRUE(wait_until([&] { return bool(api_->poll_nodes(soon())); }));
}

}  // namespace
}  // namespace symvirt
