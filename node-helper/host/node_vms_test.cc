// Starting, stopping and moving VMs; what becomes of their disks.
#include <fcntl.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <future>

#include "common/unique_fd.h"
#include "node-helper/host/node_fixture.h"

namespace symvirt::host {
namespace {

namespace fs = std::filesystem;

TEST_F(NodeTest, AnIncomingDomainIsNotTouched) {
  FakeDomain d;
  d.state = VmState::kIncoming;
  const std::string overlay = folder_ + "/overlay";
  std::ofstream(overlay) << "x";
  d.overlays = {overlay};
  hypervisor_.put("v1", d);
  reserve();
  for (const char* method :
       {"device.attach", "device.detach", "vm.resume", "vm.suspend", "device.release"})
    EXPECT_EQ(code_of(method, {{"vm", "v1"}}), Code::kPrecondition) << method;
  EXPECT_EQ(code_of("vm.migrate", {{"vm", "v1"}, {"to", "hv2"}}), Code::kPrecondition);
  EXPECT_EQ(code_of("vm.start", start_params("/x")), Code::kPrecondition);
  EXPECT_EQ(good("vm.info", {{"vm", "v1"}})["state"], "incoming");
  // Removing it leaves the disk: that is the running copy's, elsewhere.
  good("vm.stop", {{"vm", "v1"}, {"mode", "leftover"}});
  EXPECT_FALSE(hypervisor_.exists("v1"));
  EXPECT_TRUE(fs::exists(overlay));
}

TEST_F(NodeTest, StopRemovesTheOverlayOfWhatRanHere) {
  const std::string overlay = folder_ + "/overlay";
  for (const char* mode : {"destroy", "shutdown"}) {
    for (bool guest_answers : {true, false}) {
      std::ofstream(overlay) << "x";
      FakeDomain d;
      d.overlays = {overlay};
      d.guest = guest_answers;
      hypervisor_.put("v1", d);
      good("vm.stop", {{"vm", "v1"}, {"mode", mode}}, 8000);
      EXPECT_FALSE(hypervisor_.exists("v1"));
      EXPECT_FALSE(fs::exists(overlay)) << mode;
    }
  }
  FakeDomain running;
  hypervisor_.put("v1", running);
  good("vm.stop", {{"vm", "v1"}, {"mode", "leftover"}});
  EXPECT_TRUE(hypervisor_.exists("v1"));
  running.migrating = true;
  hypervisor_.put("v1", running);
  EXPECT_EQ(code_of("vm.stop", {{"vm", "v1"}, {"mode", "destroy"}}), Code::kPrecondition);
}

TEST_F(NodeTest, WhatIsLeftOfAMigrationIsEndedWithoutItsDisk) {
  const std::string overlay = folder_ + "/overlay";
  for (const VmState state : {VmState::kIncoming, VmState::kPaused}) {
    std::ofstream(overlay) << "x";
    FakeDomain d;
    d.state = state;
    d.overlays = {overlay};
    hypervisor_.put("v1", d);
    good("vm.stop", {{"vm", "v1"}, {"mode", "leftover"}});
    EXPECT_FALSE(hypervisor_.exists("v1"));
    EXPECT_TRUE(fs::exists(overlay));
  }
}

TEST_F(NodeTest, TheOverlayOfAVmThatMovedStays) {
  const std::string overlay = folder_ + "/overlay";
  reserve();
  good("vm.start", start_params(overlay));
  std::ofstream(overlay) << "x";
  good("vm.migrate", {{"vm", "v1"}, {"to", "hv2"}});
  good("vm.stop", {{"vm", "v1"}, {"mode", "destroy"}});
  EXPECT_TRUE(fs::exists(overlay));
}

// The texts are those of QEMU 7.2, as it was seen to print them.
TEST_F(NodeTest, AnOverlayThatMayBeInUseIsNotReplaced) {
  const std::string overlay = folder_ + "/v1.qcow2", said = folder_ + "/said";
  qemu_img_ = folder_ + "/qemu-img";
  std::ofstream(qemu_img_) << "#!/bin/sh\n[ $1 = info ] || exit 0\ncat " << said << "\n[ ! -s "
                           << said << " ]\n";
  fs::permissions(qemu_img_, fs::perms::owner_all);
  restart();
  const std::string open = "qemu-img: Could not open '" + overlay + "': ";
  const struct {
    std::string text;
    std::optional<Code> refused;
  } cases[] = {
      {open + "Failed to get shared \"write\" lock\nIs another process using the image [" +
           overlay + "]?\n",
       Code::kPrecondition},
      {open + "Failed to lock byte 100\n", Code::kPrecondition},
      {open + "Could not open '" + overlay + "': Permission denied\n", Code::kRefused},
      {open + "Could not open '" + overlay + "': Stale file handle\n", Code::kRefused},
      {open + "Could not open '" + overlay + "': No locks available\n", Code::kRefused},
      {open + "Active L1 table offset invalid\n", Code::kRefused},
      {"qemu-img: error while loading shared libraries\n", Code::kRefused},
      {open + "Image is not in qcow2 format\n", std::nullopt},
      {open + "qcow2 header too short\n", std::nullopt},
      {"", std::nullopt},
  };
  for (const auto& [text, refused] : cases) {
    std::ofstream(overlay) << "a disk";
    std::ofstream(said) << text;
    auto r = call("vm.start", start_params(overlay));
    EXPECT_EQ(fs::exists(overlay), refused.has_value()) << text;
    if (refused) {
      ASSERT_FALSE(r) << text;
      EXPECT_EQ(r.error().code, *refused) << text << r.error().message;
      EXPECT_FALSE(hypervisor_.exists("v1"));
    } else {
      EXPECT_TRUE(r) << text;
      good("vm.stop", {{"vm", "v1"}, {"mode", "destroy"}});
    }
  }
}

TEST_F(NodeTest, ARealImageWithoutAUserIsReplaced) {
  if (access("/usr/bin/qemu-img", X_OK) != 0) GTEST_SKIP() << "no qemu-img here";
  qemu_img_ = "/usr/bin/qemu-img";
  restart();
  const std::string base = folder_ + "/base", overlay = folder_ + "/v1.qcow2";
  ASSERT_EQ(std::system(("qemu-img create -q -f qcow2 " + base + " 1M").c_str()), 0);
  json params = start_params(overlay);
  params["overlays"][0]["base"] = base;
  for (const char* before : {"", "rubbish", "overlay"}) {
    if (before != std::string("overlay")) std::ofstream(overlay) << before;
    auto r = call("vm.start", params, 20'000);
    ASSERT_TRUE(r) << before << ": " << r.error().message;
    hypervisor_.vanish("v1", VmEnd::kMigrated);
    ASSERT_TRUE(fs::exists(overlay));
  }
  // As a QEMU that writes to it: a lock on byte 100 + 1 (block/file-posix.c).
  UniqueFd user(open(overlay.c_str(), O_RDWR | O_CLOEXEC));
  flock lock{.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 101, .l_len = 1};
  ASSERT_EQ(fcntl(user.get(), F_OFD_SETLK, &lock), 0);
  auto r = call("vm.start", params, 20'000);
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error().code, Code::kPrecondition) << r.error().message;
  EXPECT_TRUE(fs::exists(overlay));
}

TEST_F(NodeTest, TheSameOperationRunsOnce) {
  hypervisor_.put("v1", {});
  hypervisor_.migrate_ms = 200;
  const json params = {{"vm", "v1"}, {"to", "hv2"}, {"op", "1/migrate/v1/1"}};
  auto second = std::async(std::launch::async, [&] {
    std::this_thread::sleep_for(milliseconds(50));
    return call("vm.migrate", params);
  });
  good("vm.migrate", params);
  auto joined = second.get();
  ASSERT_TRUE(joined) << joined.error().message;
  good("vm.migrate", params);
  EXPECT_EQ(hypervisor_.count("migrate"), 1);
}

// A caller who does not read would hold the VM's lock.
TEST_F(NodeTest, ProgressOfWhatHoldsALockIsOnlyOffered) {
  hypervisor_.put("v1", {});
  int offered = 0;
  auto wait_for_reader = [](const json&) {
    ADD_FAILURE() << "waits for the caller to read";
    return true;
  };
  auto moved = node_->handle({"vm.migrate",
                              {{"vm", "v1"}, {"to", "hv2"}, {"gen", 1}, {"op", "1/migrate/v1/1"}},
                              0,
                              "test",
                              Deadline::after(milliseconds(2000)),
                              wait_for_reader,
                              {},
                              [&](const json&) { return ++offered > 0; }});
  EXPECT_TRUE(moved);
  EXPECT_GT(offered, 0);
}

TEST_F(NodeTest, AFailedOperationMayBeAskedForAgain) {
  hypervisor_.put("v1", {});
  hypervisor_.fail("migrate", {Code::kRefused, "no"});
  const json params = {{"vm", "v1"}, {"to", "hv2"}, {"op", "1/migrate/v1/1"}};
  auto failed = call("vm.migrate", params);
  ASSERT_FALSE(failed);
  EXPECT_THAT(failed.error().message, HasSubstr("here it is running"));
  good("vm.migrate", params);
}

TEST_F(NodeTest, AMigrationCanBeAborted) {
  hypervisor_.put("v1", {});
  hypervisor_.migrate_ms = 5000;
  auto moving = std::async(std::launch::async, [&] {
    return call("vm.migrate", {{"vm", "v1"}, {"to", "hv2"}}, 5000);
  });
  while (!hypervisor_.domain("v1").migrating) std::this_thread::sleep_for(milliseconds(1));
  EXPECT_EQ(good("vm.info", {{"vm", "v1"}})["migrating"], true);
  good("vm.migrate_abort", {{"vm", "v1"}});
  EXPECT_EQ(moving.get().error().code, Code::kCancelled);
  EXPECT_EQ(good("vm.info", {{"vm", "v1"}})["state"], "running");
  hypervisor_.vanish("v1", VmEnd::kMigrated);
  EXPECT_EQ(code_of("vm.migrate_abort", {{"vm", "v1"}}), Code::kPrecondition);
}

TEST_F(NodeTest, WhatRunsWinsOverALostRecord) {
  hypervisor_.put("v1", {.aliases = {"ua-symvirt-ib0-0", "ua-symvirt-ib0-1"}});
  restart();
  EXPECT_EQ(good("vm.info", {{"vm", "v1"}})["devices"][0]["attached"], true);
  reserve("v2");
  EXPECT_EQ(
      code_of("device.reserve", {{"vm", "v3"}, {"slots", {{{"slot", "ib0"}, {"gres", "hca"}}}}}),
      Code::kExhausted);
}

TEST_F(NodeTest, LibvirtAwayIsSaid) {
  hypervisor_.fail("list", {Code::kUnavailable, "away"}, 5);
  restart();
  EXPECT_EQ(good("host.info", json::object())["libvirt_ok"], false);
  hypervisor_.fail("look", {Code::kUnavailable, "away"});
  EXPECT_EQ(code_of("vm.info", {{"vm", "v1"}}), Code::kUnavailable);
}

}  // namespace
}  // namespace symvirt::host
