// Devices described by what they are, against a host's sysfs that is made up here.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "node-helper/host/node.h"
#include "tests/fakes/fake_hypervisor.h"
#include "tests/fakes/fake_sysfs.h"

namespace symvirt::host {
namespace {

using fakes::FakeHypervisor;
using fakes::FakeSysfs;
using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;
namespace fs = std::filesystem;

constexpr char kConfig[] = R"(
host = "hv1"
[libvirt]
pin = false
[[device]]
name = "bad"
gres = "nic"
pci = "02:00.0"
[[device]]
name = "old"
gres = "nic"
pci = "03:00.0"
[[device]]
name = "good"
gres = "nic"
pci = "01:00.0"
[[device]]
name = "both"
gres = "any"
pci = "04:00.0"
compatible = ["8086:10d3"]
[[device]]
name = "again"
gres = "twice"
pci = "04:00.0"
[[device]]
name = "vf"
gres = "vf"
pf = "ens3f0"
vf = 0
vlan = 5
)";

class NodeDevicesTest : public testing::Test {
 protected:
  NodeDevicesTest() {
    char name[] = "/tmp/symvirt-node-XXXXXX";
    folder_ = mkdtemp(name);
    sys_.device("0000:01:00.0", "8086:10d3", "0x020000", 1, "e1000e", 0);
    sys_.net("0000:01:00.0", "eth1", "down");
    sys_.device("0000:02:00.0", "8086:10d3", "0x020000", 2, "e1000e");
    sys_.device("0000:02:00.1", "8086:10d3", "0x020000", 2, "e1000e");
    sys_.device("0000:03:00.0", "8086:100e", "0x020000", 3, "e1000");
    sys_.device("0000:04:00.0", "8086:1533", "0x020000", 4, "igb");
    sys_.device("0000:5e:00.0", "15b3:1017", "0x020000", 5, "mlx5_core");
    sys_.net("0000:5e:00.0", "ens3f0", "up");
    sys_.device("0000:5e:00.2", "15b3:1018", "0x020000", 6, "mlx5_core", 1);
    sys_.virtual_function("0000:5e:00.0", 0, "0000:5e:00.2");
    store_ = std::make_unique<Store>(folder_);
    EXPECT_TRUE(store_->load());
    node_ = std::make_unique<Node>(
        *parse_config(kConfig, "noded.toml"), hypervisor_, *store_, [] { return 1LL << 30; },
        sys_.root());
    hypervisor_.put("v1", {});
  }
  ~NodeDevicesTest() override {
    node_.reset();
    fs::remove_all(folder_);
  }
  Result<json> call(const std::string& method, json params) {
    params["vm"] = "v1";
    params["gen"] = 1;
    return node_->handle({method,
                          std::move(params),
                          0,
                          "test",
                          Deadline::after(std::chrono::milliseconds(2000)),
                          {},
                          {}});
  }
  Result<json> reserve(const std::string& gres, bool replace = false) {
    return call("device.reserve",
                {{"slots", {{{"slot", "n0"}, {"gres", gres}}}}, {"replace", replace}});
  }
  json device(const std::string& name) {
    const json info = *call("host.info", json::object());
    for (const json& d : info["devices"]) {
      if (d["device"] == name) return d;
    }
    return json();
  }
  void move_away_and_back() {  // as far as this host can tell
    ASSERT_TRUE(call("device.detach", json::object()));
    forget_reservations();
  }
  void forget_reservations() {
    ASSERT_TRUE(store_->update([](NodeState& s) {
      s.vms.clear();
      return Status();
    }));
  }

  FakeSysfs sys_;
  std::string folder_;
  FakeHypervisor hypervisor_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<Node> node_;
};

TEST_F(NodeDevicesTest, HostInfoShowsWhatTheKernelSays) {
  const json good = device("good");
  EXPECT_EQ(good["pci"], "0000:01:00.0");
  EXPECT_EQ(good["model"], "8086:10d3");
  EXPECT_EQ(good["driver"], "e1000e");
  EXPECT_EQ(good["iommu_group"], 1);
  EXPECT_EQ(good["numa_node"], 0);
  EXPECT_EQ(good["ports"][0]["port"], "eth1");
  EXPECT_EQ(good["ports"][0]["state"], "down");
  EXPECT_FALSE(good.contains("pf"));
  EXPECT_FALSE(good.contains("problem"));
  EXPECT_THAT(device("bad")["problem"], HasSubstr("0000:02:00.1"));
  EXPECT_THAT(device("again")["problem"], AllOf(HasSubstr("twice"), HasSubstr("both")));
  EXPECT_EQ(device("vf")["pf"], "0000:5e:00.0");
  EXPECT_EQ(device("vf")["vf"], 0);
  EXPECT_EQ(device("vf")["ports"][0]["state"], "up");
}

TEST_F(NodeDevicesTest, ADeviceThatCannotBeGivenAwayIsNotReserved) {
  EXPECT_EQ((*reserve("nic"))["devices"][0]["device"], "old");
  ASSERT_TRUE(call("device.attach", json::object()));
  EXPECT_FALSE(device("old").contains("problem"));
  auto twice = reserve("twice");
  ASSERT_FALSE(twice);
  EXPECT_EQ(twice.error().code, Code::kPrecondition);
  EXPECT_THAT(twice.error().message, HasSubstr("v1: device again of hv1: PCI device 0000:04:00.0"));
}

TEST_F(NodeDevicesTest, ADeviceThatVanishedIsSeenBeforeAnythingIsTouched) {
  ASSERT_TRUE(reserve("vf"));
  fs::remove_all(sys_.at("0000:5e:00.2"));
  fs::remove(sys_.at("0000:5e:00.0") + "/virtfn0");
  sys_.write(sys_.at("0000:5e:00.0") + "/sriov_numvfs", "0");
  auto attached = call("device.attach", json::object());
  ASSERT_FALSE(attached);
  EXPECT_THAT(attached.error().message,
              AllOf(HasSubstr("device vf of hv1"), HasSubstr("0 virtual functions")));
  EXPECT_EQ(hypervisor_.count("attach nic"), 0);
}

TEST_F(NodeDevicesTest, WhatLibvirtIsGiven) {
  ASSERT_TRUE(reserve("vf"));
  ASSERT_TRUE(call("device.attach", json::object()));
  EXPECT_THAT(hypervisor_.last_device,
              AllOf(HasSubstr("type=\"hostdev\""), HasSubstr("<tag id=\"5\"/>"),
                    HasSubstr("ua-symvirt-n0-0"),
                    HasSubstr("bus=\"0x5e\" slot=\"0x00\" function=\"0x2\"")));
}

TEST_F(NodeDevicesTest, AnotherModelIsRefusedUnlessItIsSaidToFit) {
  hypervisor_.put("v1", {.models = {{"n0", "8086:10d3"}}});
  // The first free one is of another model, the second one is right.
  EXPECT_EQ((*reserve("nic"))["devices"][0]["device"], "good");
  ASSERT_TRUE(call("device.attach", json::object()));
  EXPECT_EQ(hypervisor_.count("remember"), 0) << "nothing new";
  move_away_and_back();
  auto other = reserve("vf");
  ASSERT_FALSE(other);
  EXPECT_EQ(other.error().code, Code::kPrecondition);
  EXPECT_THAT(other.error().message, AllOf(HasSubstr("device vf of hv1"), HasSubstr("15b3:1018"),
                                           HasSubstr("8086:10d3"), HasSubstr("compatible")));
  ASSERT_TRUE(reserve("any"));
  EXPECT_TRUE(call("device.attach", json::object()));
}

TEST_F(NodeDevicesTest, TheModelIsLookedAtOnceMoreBeforeAttaching) {
  ASSERT_TRUE(reserve("vf"));
  hypervisor_.put("v1", {.models = {{"n0", "8086:10d3"}}});
  auto attached = call("device.attach", json::object());
  ASSERT_FALSE(attached);
  EXPECT_EQ(attached.error().code, Code::kPrecondition);
  EXPECT_THAT(attached.error().message, HasSubstr("v1: device vf of hv1: is a 15b3:1018"));
  EXPECT_EQ(hypervisor_.count("attach nic"), 0);
}

TEST_F(NodeDevicesTest, TheModelGoesWithTheVm) {
  ASSERT_TRUE(reserve("vf"));
  ASSERT_TRUE(call("device.attach", json::object()));
  EXPECT_EQ(hypervisor_.domain("v1").models,
            (std::map<std::string, std::string>{{"n0", "15b3:1018"}}));
  EXPECT_EQ((*call("vm.info", json::object()))["models"], (json{{"n0", "15b3:1018"}}));
}

TEST_F(NodeDevicesTest, OfAVmThatIsToComeTheCallerKnowsTheModel) {
  hypervisor_.vanish("v1", VmEnd::kStopped);
  auto come = [&](const json& models) {
    return call("device.reserve",
                {{"slots", {{{"slot", "n0"}, {"gres", "nic"}}}}, {"models", models}});
  };
  EXPECT_EQ(come({{"n0", 5}}).error().code, Code::kInvalidArgument);
  EXPECT_EQ(come("x").error().code, Code::kInvalidArgument);
  EXPECT_EQ(come({{"n0", "15b3:1018"}}).error().code, Code::kPrecondition);
  EXPECT_EQ((*come({{"n0", "8086:10d3"}, {"other", "15b3:1018"}}))["devices"][0]["device"], "good");
}

TEST_F(NodeDevicesTest, AReplacementIsOfTheSameModel) {
  hypervisor_.put("v1", {.models = {{"n0", "8086:100e"}}});
  EXPECT_EQ((*reserve("nic"))["devices"][0]["device"], "old");
  fs::remove_all(sys_.at("0000:03:00.0"));
  EXPECT_EQ((*reserve("nic", true))["devices"][0]["device"], "old") << "nothing else fits";
  EXPECT_EQ(call("device.attach", json::object()).error().code, Code::kNotFound);
}

TEST_F(NodeDevicesTest, ASuspendedGuestIsNotAskedForItsDevice) {
  ASSERT_TRUE(reserve("nic"));
  ASSERT_TRUE(call("device.attach", json::object()));
  ASSERT_TRUE(call("vm.suspend", json::object()));
  auto detached = call("device.detach", json::object());
  ASSERT_FALSE(detached);
  EXPECT_EQ(detached.error().code, Code::kPrecondition);
  EXPECT_THAT(detached.error().message, AllOf(HasSubstr("suspended"), HasSubstr("vm.resume")));
  EXPECT_EQ(hypervisor_.count("ask_detach"), 0);
  ASSERT_TRUE(call("vm.resume", json::object()));
  EXPECT_TRUE(call("device.detach", json::object()));
}

TEST_F(NodeDevicesTest, LibvirtsReasonComesWithAdvice) {
  ASSERT_TRUE(reserve("nic"));
  hypervisor_.fail("attach nic", Error{Code::kPrecondition,
                                       "attach: v1: Requested operation is not valid: PCI "
                                       "device 0000:03:00.0 is in use by driver QEMU, "
                                       "domain w2"});
  auto attached = call("device.attach", json::object());
  ASSERT_FALSE(attached);
  EXPECT_THAT(attached.error().message, AllOf(HasSubstr("device old of hv1"),
                                              HasSubstr("domain w2"), HasSubstr("stop that VM")));
  EXPECT_TRUE(hypervisor_.domain("v1").aliases.empty());
}

}  // namespace
}  // namespace symvirt::host
