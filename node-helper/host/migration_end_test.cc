#include "node-helper/host/migration_end.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <thread>

#include "tests/fakes/fake_hypervisor.h"

namespace symvirt::host {
namespace {

using fakes::FakeDomain;
using std::chrono::milliseconds;
using testing::HasSubstr;

class MigrationEndTest : public testing::Test {
 protected:
  MigrationEndTest() {
    hypervisor_.subscribe({.ended = [](const std::string&, VmEnd) {}});
  }
  Status end(milliseconds in_time = milliseconds(10'000)) {
    return end_migration(
        hypervisor_, "v1", Deadline::after(in_time), [this] { return stopping_.load(); }, times_);
  }
  void moving(FakeDomain domain = {}) {
    domain.migrating = true;
    hypervisor_.put("v1", domain);
  }

  fakes::FakeHypervisor hypervisor_;
  std::atomic<bool> stopping_{false};
  MigrationEndTimes times_{.switchover = milliseconds(60'000), .stuck = milliseconds(60'000)};
};

TEST_F(MigrationEndTest, AnAbortEndsIt) {
  moving();
  EXPECT_TRUE(end());
  EXPECT_EQ(hypervisor_.count("abort"), 1);
  EXPECT_EQ(hypervisor_.count("suspend"), 0);
  EXPECT_TRUE(end());  // and again, when there is none
  EXPECT_EQ(hypervisor_.count("abort"), 1);
}

TEST_F(MigrationEndTest, ASwitchoverIsLeftAlone) {
  moving({.state = VmState::kPaused});
  auto ended = std::async(std::launch::async, [&] { return end(); });
  while (hypervisor_.count("look") < 3) std::this_thread::sleep_for(milliseconds(1));
  hypervisor_.vanish("v1", VmEnd::kMigrated);
  EXPECT_EQ(ended.get().error().code, Code::kPrecondition);
  EXPECT_EQ(hypervisor_.count("abort"), 0);
}

TEST_F(MigrationEndTest, ASwitchoverThatDoesNotEndIsAbortedToo) {
  times_.switchover = milliseconds(1);
  moving({.state = VmState::kPaused});
  EXPECT_TRUE(end());
  EXPECT_EQ(hypervisor_.count("abort"), 1);
  EXPECT_EQ(hypervisor_.count("resume"), 0);  // that is whose pause it was
}

TEST_F(MigrationEndTest, WhatStaysAfterTheAbortGetsAShortPause) {
  times_.stuck = milliseconds(1);
  moving({.abort_sticks = true});
  EXPECT_TRUE(end());
  EXPECT_EQ(hypervisor_.count("abort"), 1);
  EXPECT_EQ(hypervisor_.count("suspend"), 1);
  EXPECT_EQ(hypervisor_.domain("v1").state, VmState::kRunning);
  EXPECT_FALSE(hypervisor_.domain("v1").migrating);
}

TEST_F(MigrationEndTest, NoVmStaysPausedWhenThatDoesNotHelp) {
  times_.stuck = milliseconds(1);
  moving({.abort_sticks = true, .pause_helps = false});
  Status s = end(milliseconds(300));
  ASSERT_EQ(s.error().code, Code::kDeadline);
  EXPECT_THAT(s.error().message, HasSubstr("restart libvirtd"));
  EXPECT_EQ(hypervisor_.count("suspend"), 1);
  EXPECT_EQ(hypervisor_.domain("v1").state, VmState::kRunning);
}

TEST_F(MigrationEndTest, AVmThatCannotRunAgainIsSaid) {
  times_.stuck = milliseconds(1);
  moving({.abort_sticks = true});
  hypervisor_.fail("resume", {Code::kRefused, "no"});
  Status s = end();
  ASSERT_EQ(s.error().code, Code::kRefused);
  EXPECT_THAT(s.error().message, HasSubstr("v1: is paused"));
}

TEST_F(MigrationEndTest, AnAbortOfUnknownEffectIsAskedForAgain) {
  moving();
  hypervisor_.fail("abort", {Code::kDeadline, "libvirt has not answered in time"});
  EXPECT_TRUE(end());
  EXPECT_EQ(hypervisor_.count("abort"), 2);
}

TEST_F(MigrationEndTest, ARefusalIsPassedOnAndARaceIsNone) {
  moving();
  hypervisor_.fail("abort", {Code::kRefused, "no"});
  EXPECT_EQ(end().error().code, Code::kRefused);
  hypervisor_.fail("abort", {Code::kPrecondition, "no job is active on the domain"});
  EXPECT_TRUE(end());
}

TEST_F(MigrationEndTest, StoppingEndsTheWait) {
  moving({.abort_sticks = true});
  stopping_ = true;
  EXPECT_EQ(end().error().code, Code::kDeadline);
  EXPECT_EQ(hypervisor_.count("suspend"), 0);
}

}  // namespace
}  // namespace symvirt::host
