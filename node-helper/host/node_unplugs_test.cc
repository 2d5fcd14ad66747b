// A guest that gives its device up when nobody waits for it any more.
#include "node-helper/host/node_fixture.h"

namespace symvirt::host {
namespace {

constexpr char kNic[] = "ua-symvirt-ib0-0";
constexpr char kGuard[] = "ua-symvirt-ib0-1";

class UnplugTest : public NodeTest {
 protected:
  UnplugTest() {
    hypervisor_.put("v1", {});
    reserve();
    good("device.attach", {{"vm", "v1"}});
  }
  // The unplug is asked for, and its time runs out.
  void ask_in_vain(std::set<std::string> stuck = {kNic, kGuard}) {
    FakeDomain d = hypervisor_.domain("v1");
    d.stuck = std::move(stuck);
    hypervisor_.put("v1", d);
    EXPECT_EQ(code_of("device.detach", {{"vm", "v1"}}, 300), Code::kDeadline);
  }
  std::size_t parts() { return hypervisor_.domain("v1").aliases.size(); }
  json pending() { return good("vm.info", {{"vm", "v1"}})["unplugs_pending"]; }
  void eventually(const std::function<bool()>& true_at_last) {
    for (int i = 0; i < 1000 && !true_at_last(); ++i) std::this_thread::sleep_for(milliseconds(10));
    EXPECT_TRUE(true_at_last());
  }
};

TEST_F(UnplugTest, WhatTheGuestGivesUpTooLateItGetsBack) {
  ask_in_vain();
  EXPECT_EQ(pending(), json({"ib0"}));
  hypervisor_.gives_up("v1", kNic);
  eventually([&] { return parts() == 2; });
  eventually([&] { return hypervisor_.count("attach nic") == 2; });
  EXPECT_EQ(pending(), json({"ib0"})) << "its other part may go at any time";
  hypervisor_.gives_up("v1", kGuard);
  eventually([&] { return parts() == 2 && pending().empty(); });
  EXPECT_EQ(hypervisor_.count("attach guard"), 2);
}

TEST_F(UnplugTest, TheEventMayBeLost) {
  ask_in_vain();
  hypervisor_.gives_up("v1", kNic, false);
  eventually([&] { return parts() == 2; });
}

TEST_F(UnplugTest, NotedBeforeNodedWasKilled) {
  ask_in_vain();
  node_.reset();
  hypervisor_.gives_up("v1", kNic, false);
  EXPECT_EQ(parts(), 1u);
  restart();
  eventually([&] { return parts() == 2; });
}

TEST_F(UnplugTest, WhoAsksOnceMoreHasIt) {
  ask_in_vain();
  FakeDomain d = hypervisor_.domain("v1");
  d.stuck.clear();
  hypervisor_.put("v1", d);
  EXPECT_EQ(good("device.detach", {{"vm", "v1"}})["detached"][0], "ib0");
  EXPECT_EQ(pending(), json::array());
  std::this_thread::sleep_for(milliseconds(2'200));  // longer than it looks again
  EXPECT_EQ(parts(), 0u);
  EXPECT_EQ(hypervisor_.count("attach nic"), 1);
}

TEST_F(UnplugTest, AnUnpluggedDeviceStaysAway) {
  good("device.detach", {{"vm", "v1"}});
  EXPECT_EQ(pending(), json::array());
  hypervisor_.gives_up("v1", kNic);  // the event once more
  std::this_thread::sleep_for(milliseconds(100));
  EXPECT_EQ(parts(), 0u);
}

TEST_F(UnplugTest, AttachingPutsBackWhatWentMeanwhile) {
  ask_in_vain();
  hypervisor_.fail("look", {Code::kUnavailable, "libvirtd is away"}, 1);
  hypervisor_.gives_up("v1", kNic);
  hypervisor_.gives_up("v1", kGuard);
  eventually([&] {
    (void)call("device.attach", {{"vm", "v1"}});
    return parts() == 2 && pending().empty();
  });
}

TEST_F(UnplugTest, TriedAgainWhenItCannotBeGivenBackAtOnce) {
  ask_in_vain();
  hypervisor_.fail("attach nic", {Code::kRefused, "PCI device 0000:01:00.0 is in use"}, 1);
  hypervisor_.gives_up("v1", kNic);
  eventually([&] { return parts() == 2; });
  EXPECT_EQ(hypervisor_.count("attach nic"), 3);
}

TEST_F(UnplugTest, AGuestThatSaysNoIsNotWaitedFor) {
  FakeDomain d = hypervisor_.domain("v1");
  d.stuck = {kNic, kGuard};
  hypervisor_.put("v1", d);
  std::thread guest([&] {
    while (hypervisor_.count("ask_detach") < 2) std::this_thread::sleep_for(milliseconds(1));
    hypervisor_.refuses("v1", kNic);
    hypervisor_.refuses("v1", kGuard);
  });
  EXPECT_EQ(code_of("device.detach", {{"vm", "v1"}}), Code::kRefused);
  guest.join();
  EXPECT_EQ(parts(), 2u);
}

TEST_F(UnplugTest, ForgottenWithTheVm) {
  ask_in_vain();
  hypervisor_.vanish("v1", VmEnd::kStopped);
  eventually([&] { return store_->vm("v1").unplugs.empty(); });
  EXPECT_EQ(hypervisor_.count("attach nic"), 1);
}

}  // namespace
}  // namespace symvirt::host
