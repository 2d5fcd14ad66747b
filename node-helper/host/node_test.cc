#include "node-helper/host/node.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <future>

#include "tests/fakes/fake_hypervisor.h"

namespace symvirt::host {
namespace {

using fakes::FakeDomain;
using fakes::FakeHypervisor;
using nlohmann::json;
using std::chrono::milliseconds;
using testing::HasSubstr;
namespace fs = std::filesystem;

constexpr char kConfig[] = R"(
host = "hv1"
[libvirt]
pin = false
qemu_img = "/bin/true"
shutdown_s = 1
[[device]]
name = "hca0"
gres = "hca"
snippets = ["<interface><mac address='{mac}'/></interface>", "<shmem name='g-{vm}'/>"]
[[device]]
name = "hca1"
gres = "hca"
snippets = ["<interface><mac address='{mac}'/></interface>", "<shmem name='g-{vm}'/>"]
)";

class NodeTest : public testing::Test {
 protected:
  NodeTest() {
    char name[] = "/tmp/symvirt-node-XXXXXX";
    folder_ = mkdtemp(name);
    restart();
  }
  ~NodeTest() override {
    node_.reset();
    fs::remove_all(folder_);
  }
  // As after SIGKILL: what is on disk is what is left.
  void restart() {
    node_.reset();
    store_ = std::make_unique<Store>(folder_);
    ASSERT_TRUE(store_->load());
    node_ = std::make_unique<Node>(*parse_config(kConfig, "noded.toml"), hypervisor_, *store_,
                                   [] { return 1LL << 30; });
    node_->reconcile();
  }
  Result<json> call(const std::string& method, json params, int ms = 2000,
                    std::function<bool()> gone = {},
                    std::function<bool(const json&)> progress = {}) {
    if (!params.contains("gen")) params["gen"] = 1;
    return node_->handle(
        {method, std::move(params), 0, "test", Deadline::after(milliseconds(ms)), progress, gone});
  }
  Code code_of(const std::string& method, json params, int ms = 2000) {
    auto r = call(method, std::move(params), ms);
    EXPECT_FALSE(r) << method << " should have failed: " << (r ? r->dump() : "");
    return r ? Code::kInternal : r.error().code;
  }
  json good(const std::string& method, json params, int ms = 2000) {
    auto r = call(method, std::move(params), ms);
    EXPECT_TRUE(r) << method << ": " << (r ? "" : r.error().message);
    return r ? *r : json();
  }
  void reserve(const std::string& vm = "v1") {
    good("device.reserve",
         {{"vm", vm},
          {"slots", {{{"slot", "ib0"}, {"gres", "hca"}, {"mac", "52:54:00:00:00:01"}}}}});
  }
  json start_params(const std::string& path) {
    return {{"vm", "v1"},
            {"xml", "<domain><name>v1</name><vcpu>1</vcpu></domain>"},
            {"overlays", {{{"path", path}, {"base", "/base"}, {"base_format", "qcow2"}}}}};
  }

  std::string folder_;
  FakeHypervisor hypervisor_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<Node> node_;
};

// noded was restarted while the VM left: only the launcher knows that it had been here.
TEST_F(NodeTest, AVmThatWasSeenAndIsAbsentHasLeft) {
  EXPECT_EQ(code_of("lease.open", {{"vm", "v1"}, {"job_id", 7}}, 1500), Code::kDeadline);
  EXPECT_EQ(good("lease.open", {{"vm", "v1"}, {"job_id", 7}, {"seen", true}}, 5000)["reason"],
            "ended");
}

TEST_F(NodeTest, AWholeLife) {
  reserve();
  EXPECT_EQ(good("vm.start", start_params("/nowhere/v1"))["state"], "running");
  EXPECT_EQ(good("device.attach", {{"vm", "v1"}})["attached"][0]["device"], "hca0");
  EXPECT_EQ(hypervisor_.domain("v1").aliases,
            (std::vector<std::string>{"ua-symvirt-ib0-0", "ua-symvirt-ib0-1"}));
  EXPECT_EQ(good("device.attach", {{"vm", "v1"}})["attached"].size(), 0u);
  EXPECT_EQ(good("host.info", json::object())["devices"][0]["state"], "attached");
  EXPECT_EQ(code_of("vm.migrate", {{"vm", "v1"}, {"to", "hv2"}}), Code::kPrecondition);
  EXPECT_EQ(hypervisor_.count("migrate"), 0);
  EXPECT_EQ(code_of("device.release", {{"vm", "v1"}}), Code::kPrecondition);
  EXPECT_EQ(good("device.detach", {{"vm", "v1"}})["detached"][0], "ib0");
  EXPECT_EQ(good("vm.info", {{"vm", "v1"}})["devices"][0]["attached"], false);
  EXPECT_EQ(good("vm.migrate", {{"vm", "v1"}, {"to", "hv2"}})["downtime_ms"], 20);
  EXPECT_EQ(good("vm.info", {{"vm", "v1"}})["state"], "absent");
  EXPECT_EQ(good("host.info", json::object())["devices"][0]["state"], "reserved");
  good("device.release", {{"vm", "v1"}});
  EXPECT_EQ(good("host.info", json::object())["devices"][0]["state"], "free");
}

TEST_F(NodeTest, WrongFieldsAreNamed) {
  const std::pair<const char*, json> cases[] = {
      {"vm.info", {}},
      {"vm.info", {{"vm", 3}}},
      {"vm.info", {{"vm", "../x"}}},
      {"vm.info", {{"vm", std::string(65, 'a')}}},
      {"device.reserve", {{"vm", "v1"}}},
      {"device.reserve", {{"vm", "v1"}, {"slots", 3}}},
      {"device.reserve", {{"vm", "v1"}, {"slots", {3}}}},
      {"device.reserve", {{"vm", "v1"}, {"slots", {{{"slot", "a-b"}, {"gres", "hca"}}}}}},
      {"device.reserve", {{"vm", "v1"}, {"slots", {{{"slot", "a"}}}}}},
      {"device.attach", json::object()},
      {"vm.start", {{"vm", "v1"}}},
      {"vm.start", {{"vm", "v1"}, {"xml", "<domain/>"}}},
      {"vm.start", {{"vm", "v1"}, {"xml", "<domain><name>v2</name></domain>"}}},
      {"vm.start",
       {{"vm", "v1"},
        {"xml", "<domain><name>v1</name></domain>"},
        {"overlays", {{{"path", "x"}}}}}},
      {"vm.stop", {{"vm", "v1"}, {"mode", "nicely"}}},
      {"vm.migrate", {{"vm", "v1"}}},
      {"vm.migrate", {{"vm", "v1"}, {"to", "hv1"}}},
      {"guest.call", {{"vm", "v1"}}},
      {"guest.call", {{"vm", "v1"}, {"method", "x"}, {"params", 3}}},
      {"lease.open", {{"vm", "v1"}, {"job_id", -1}}},
      {"lease.open", {{"vm", "v1"}, {"job_id", 1}, {"cpus", "all"}}},
      {"lease.wait", {{"vm", "v1"}}},
      {"device.attach", {{"vm", "v1"}, {"gen", "new"}}},
      {"no.such", json::object()},
  };
  for (const auto& [method, params] : cases)
    EXPECT_EQ(code_of(method, params), Code::kInvalidArgument) << method << " " << params.dump();
}

TEST_F(NodeTest, AStaleCoordinatorIsRefusedAlsoAfterARestart) {
  good("device.release", {{"vm", "v1"}, {"gen", 5}});
  EXPECT_EQ(code_of("device.release", {{"vm", "v1"}, {"gen", 4}}), Code::kPrecondition);
  restart();
  EXPECT_EQ(code_of("device.release", {{"vm", "v1"}, {"gen", 4}}), Code::kPrecondition);
  good("device.release", {{"vm", "v1"}, {"gen", 5}});
}

TEST_F(NodeTest, WhatChangesSomethingNamesItsCoordinator) {
  hypervisor_.put("v1", {});
  auto without = [&](const std::string& method, json params) {
    params["vm"] = "v1";
    return node_->handle(
        {method, std::move(params), 0, "test", Deadline::after(milliseconds(300)), {}, {}});
  };
  for (const char* method :
       {"device.reserve", "device.release", "device.detach", "device.attach", "vm.start", "vm.stop",
        "vm.suspend", "vm.resume", "vm.migrate", "vm.migrate_abort", "guest.call"}) {
    auto r = without(method, {{"method", "job.quiesce"}});
    ASSERT_FALSE(r) << method;
    EXPECT_EQ(r.error().code, Code::kInvalidArgument) << method;
    EXPECT_THAT(r.error().message, HasSubstr("gen")) << method;
  }
  EXPECT_TRUE(without("vm.info", json::object()));
  EXPECT_TRUE(without("host.info", json::object()));
  EXPECT_NE(without("guest.call", {{"method", "guest.ping"}}).error().code, Code::kInvalidArgument);
}

// Both requests were good when they came; the older one has waited behind a third.
TEST_F(NodeTest, AnOldCoordinatorsRequestDoesNotActAfterANewerOne) {
  hypervisor_.put("v1", {.aliases = {"ua-symvirt-ib0-0"}, .stuck = {"ua-symvirt-ib0-0"}});
  auto held = std::async(std::launch::async, [&] {
    return call("device.detach", {{"vm", "v1"}, {"gen", 5}}, 700);
  });
  std::this_thread::sleep_for(milliseconds(100));
  auto old = std::async(std::launch::async, [&] {
    return call("vm.stop", {{"vm", "v1"}, {"mode", "destroy"}, {"gen", 5}, {"op", "1/stop/v1/1"}},
                5000);
  });
  auto shared = std::async(std::launch::async, [&] {
    return call("vm.suspend", {{"vm", "v1"}, {"gen", 5}, {"op", "1/suspend/v1/1"}}, 5000);
  });
  std::this_thread::sleep_for(milliseconds(100));
  auto newer = std::async(std::launch::async, [&] {
    return call("vm.suspend", {{"vm", "v1"}, {"gen", 6}, {"op", "1/suspend/v1/1"}}, 5000);
  });
  EXPECT_FALSE(held.get());
  auto refused = old.get();
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::kPrecondition);
  EXPECT_THAT(refused.error().message, HasSubstr("generation 5 is old"));
  EXPECT_TRUE(hypervisor_.exists("v1"));
  EXPECT_TRUE(newer.get()) << "the same operation is the newer one's";
  EXPECT_TRUE(shared.get());
  EXPECT_EQ(hypervisor_.domain("v1").state, VmState::kPaused);
}

TEST_F(NodeTest, ReservationsAreExclusiveRepeatableAndDurable) {
  reserve("v1");
  reserve("v1");
  reserve("v2");
  EXPECT_EQ(
      code_of("device.reserve", {{"vm", "v3"}, {"slots", {{{"slot", "ib0"}, {"gres", "hca"}}}}}),
      Code::kExhausted);
  restart();
  EXPECT_EQ(
      code_of("device.reserve", {{"vm", "v3"}, {"slots", {{{"slot", "ib0"}, {"gres", "hca"}}}}}),
      Code::kExhausted);
  EXPECT_EQ(good("vm.info", {{"vm", "v2"}})["devices"][0]["device"], "hca1");
  good("device.release", {{"vm", "v2"}});
  // Another device when there is one, and it then is the VM's.
  auto other =
      good("device.reserve",
           {{"vm", "v1"}, {"slots", {{{"slot", "ib0"}, {"gres", "hca"}}}}, {"replace", true}});
  EXPECT_EQ(other["devices"][0]["device"], "hca1");
}

TEST_F(NodeTest, AttachedDevicesAreNotReplaced) {
  hypervisor_.put("v1", {});
  reserve();
  good("device.attach", {{"vm", "v1"}});
  auto same =
      good("device.reserve",
           {{"vm", "v1"}, {"slots", {{{"slot", "ib0"}, {"gres", "hca"}}}}, {"replace", true}});
  EXPECT_EQ(same["devices"][0]["device"], "hca0");
}

TEST_F(NodeTest, MemoryIsPromisedOnce) {
  const std::int64_t most = 600 << 20;
  good("device.reserve", {{"vm", "v1"}, {"slots", json::array()}, {"memory_bytes", most}});
  good("device.reserve", {{"vm", "v1"}, {"slots", json::array()}, {"memory_bytes", most}});
  EXPECT_EQ(
      code_of("device.reserve", {{"vm", "v2"}, {"slots", json::array()}, {"memory_bytes", most}}),
      Code::kExhausted);
  good("device.release", {{"vm", "v1"}});
  good("device.reserve", {{"vm", "v2"}, {"slots", json::array()}, {"memory_bytes", most}});
}

TEST_F(NodeTest, HalfADeviceIsTakenBack) {
  hypervisor_.put("v1", {});
  reserve();
  hypervisor_.fail("attach guard", {Code::kRefused, "no"});
  EXPECT_EQ(code_of("device.attach", {{"vm", "v1"}}), Code::kRefused);
  EXPECT_TRUE(hypervisor_.domain("v1").aliases.empty());
  good("device.attach", {{"vm", "v1"}});
  EXPECT_EQ(hypervisor_.domain("v1").aliases.size(), 2u);
}

TEST_F(NodeTest, DetachWaitsUntilTheDeviceHasGone) {
  hypervisor_.put(
      "v1", {.aliases = {"ua-symvirt-ib0-0", "ua-symvirt-ib0-1"}, .stuck = {"ua-symvirt-ib0-0"}});
  auto stuck = call("device.detach", {{"vm", "v1"}}, 1500);
  ASSERT_FALSE(stuck);
  EXPECT_EQ(stuck.error().code, Code::kDeadline);
  EXPECT_THAT(stuck.error().message, HasSubstr("slot ib0"));
  EXPECT_EQ(hypervisor_.count("ask_detach"), 2) << "asked twice, quickly";
  FakeDomain lost_event{.aliases = {"ua-symvirt-ib0-0"}};
  lost_event.silent_removal = true;
  hypervisor_.put("v1", lost_event);
  EXPECT_EQ(good("device.detach", {{"vm", "v1"}}, 3000)["detached"][0], "ib0");
  EXPECT_EQ(good("device.detach", {{"vm", "v1"}})["detached"].size(), 0u);
}

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
  good("vm.stop", {{"vm", "v1"}, {"mode", "destroy"}, {"only_incoming", true}});
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
  good("vm.stop", {{"vm", "v1"}, {"mode", "destroy"}, {"only_incoming", true}});
  EXPECT_TRUE(hypervisor_.exists("v1"));
  running.migrating = true;
  hypervisor_.put("v1", running);
  EXPECT_EQ(code_of("vm.stop", {{"vm", "v1"}, {"mode", "destroy"}}), Code::kPrecondition);
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

class NodeGuestTest : public NodeTest {
 protected:
  NodeGuestTest() {
    hypervisor_.put("v1", {});
    hypervisor_.guest = [this](const std::string& line) {
      ++lines_;
      const json j = json::parse(line);
      if (j["method"] == "silent") return std::string();
      if (j["method"] == "late" && lines_ < 2) return std::string();
      if (j["method"] == "bad")
        return json{
            {"id", j["id"]},
            {"error", {{"code", -32000}, {"message", "m"}, {"data", {{"code", "REFUSED"}}}}}}
            .dump();
      return json{{"id", j["id"]}, {"result", {{"echo", j["params"]}}}}.dump();
    };
  }
  json guest(const char* method, const char* op = "") {
    return {{"vm", "v1"}, {"method", method}, {"params", {{"x", 1}}}, {"op", op}};
  }
  std::atomic<int> lines_{0};
};

TEST_F(NodeGuestTest, AnswersAndErrorsAreRelayed) {
  json params = {{"vm", "v1"}, {"method", "echo"}, {"params", {{"x", 1}}}};
  EXPECT_EQ(good("guest.call", params)["echo"]["x"], 1);
  params["method"] = "bad";
  EXPECT_EQ(code_of("guest.call", params), Code::kRefused);
  EXPECT_EQ(good("vm.info", {{"vm", "v1"}})["guest_connected"], true);
}

TEST_F(NodeGuestTest, NobodyThereIsUnavailableAndSilenceIsDeadline) {
  json params = {{"vm", "v1"}, {"method", "silent"}};
  EXPECT_EQ(code_of("guest.call", params, 200), Code::kUnavailable);
  params["method"] = "echo";
  good("guest.call", params);
  params["method"] = "silent";
  EXPECT_EQ(code_of("guest.call", params, 200), Code::kDeadline);
  params["vm"] = "v9";
  EXPECT_EQ(code_of("guest.call", params, 200), Code::kNotFound);
}

TEST_F(NodeGuestTest, ALineIsRepeatedOverANewPort) {
  json params = {{"vm", "v1"}, {"method", "late"}, {"op", "1/q/v1/1"}};
  auto answer = std::async(std::launch::async, [&] { return call("guest.call", params, 3000); });
  while (lines_ < 1) std::this_thread::sleep_for(milliseconds(1));
  hypervisor_.close_ports();
  auto result = answer.get();
  EXPECT_TRUE(result) << result.error().message;
  EXPECT_EQ(hypervisor_.count("open_channel"), 2);
}

// A guest, whoever writes to its port, can say hello as often as it likes.
TEST_F(NodeGuestTest, AGuestThatAlwaysSaysHelloIsNotToldAsOften) {
  std::atomic<int> empty{0};
  hypervisor_.guest = [&](const std::string& line) {
    if (line.find("method") == std::string::npos)
      ++empty;
    else
      ++lines_;
    return std::string(R"({"event":"hello"})");
  };
  EXPECT_FALSE(call("guest.call", guest("echo", "1/q/v1/1"), 1100));
  EXPECT_GE(lines_, 3) << "it may be new, and is asked again";
  EXPECT_LE(lines_, 8);
  EXPECT_LE(empty, 8);
}

TEST_F(NodeGuestTest, AnOldCoordinatorsLineIsNotRepeated) {
  auto answer = std::async(std::launch::async, [&] {
    return call("guest.call", {{"vm", "v1"}, {"method", "silent"}, {"gen", 5}}, 5000);
  });
  while (lines_ < 1) std::this_thread::sleep_for(milliseconds(1));
  good("device.release", {{"vm", "v2"}, {"gen", 6}});
  auto refused = answer.get();
  EXPECT_EQ(refused.error().code, Code::kPrecondition) << refused.error().message;
}

TEST_F(NodeGuestTest, SeveralCallersOfOneIdGetOneAnswer) {
  json params = {{"vm", "v1"}, {"method", "late"}, {"op", "1/q/v1/1"}};
  auto first = std::async(std::launch::async, [&] { return call("guest.call", params, 5000); });
  while (lines_ < 1) std::this_thread::sleep_for(milliseconds(1));
  auto second = std::async(std::launch::async, [&] { return call("guest.call", params, 5000); });
  hypervisor_.close_ports();
  EXPECT_TRUE(first.get());
  EXPECT_TRUE(second.get());
}

TEST_F(NodeGuestTest, WhoWaitsIsToldThatTheVmHasLeft) {
  json params = {{"vm", "v1"}, {"method", "silent"}};
  auto answer = std::async(std::launch::async, [&] { return call("guest.call", params, 5000); });
  while (lines_ < 1) std::this_thread::sleep_for(milliseconds(1));
  hypervisor_.vanish("v1", VmEnd::kMigrated);
  EXPECT_EQ(answer.get().error().code, Code::kUnavailable);
}

TEST_F(NodeGuestTest, CallersThatAreGoneAreNotWaitedFor) {
  json params = {{"vm", "v1"}, {"method", "silent"}};
  auto r = call("guest.call", params, 10'000, [] { return true; });
  EXPECT_EQ(r.error().code, Code::kCancelled);
}

class NodeLeaseTest : public NodeTest {
 protected:
  std::future<Result<json>> open(int job, int ms = 10'000) {
    return std::async(std::launch::async, [this, job, ms] {
      return call("lease.open",
                  {{"vm", "v1"},
                   {"job_id", job},
                   {"cpus", {2, 3}},
                   {"memory_bytes", 7},
                   {"numa_node", 1},
                   {"gres", {0}}},
                  ms, [this] { return launcher_gone_.load(); });
    });
  }
  void wait(int job) { good("lease.wait", {{"vm", "v1"}, {"job_id", job}}); }
  std::atomic<bool> launcher_gone_{false};
};

TEST_F(NodeLeaseTest, IsSeenWhileItIsHeld) {
  EXPECT_EQ(code_of("lease.wait", {{"vm", "v1"}, {"job_id", 7}}, 100), Code::kDeadline);
  auto lease = open(7);
  EXPECT_EQ(good("lease.wait", {{"vm", "v1"}, {"job_id", 7}}),
            (json{{"cpus", {2, 3}}, {"memory_bytes", 7}, {"numa_node", 1}, {"gres", {0}}}));
  EXPECT_EQ(code_of("lease.wait", {{"vm", "v1"}, {"job_id", 8}}, 100), Code::kDeadline);
  EXPECT_EQ(code_of("lease.open", {{"vm", "v1"}, {"job_id", 8}}), Code::kAlreadyExists);
  EXPECT_EQ(good("host.info", json::object())["leases"][0],
            (json{{"vm", "v1"}, {"job_id", 7}, {"connected", true}}));
  node_->stop();
  EXPECT_EQ(lease.get().error().code, Code::kUnavailable);
}

TEST_F(NodeLeaseTest, EndsWithItsVmAndSaysWhy) {
  const std::pair<const char*, std::function<void()>> ways[] = {
      {"migrated",
       [this] {
         good("vm.migrate", {{"vm", "v1"}, {"to", "hv2"}});
       }},
      {"stopped",
       [this] {
         good("vm.stop", {{"vm", "v1"}, {"mode", "destroy"}});
       }},
      {"ended", [this] { hypervisor_.vanish("v1", VmEnd::kStopped); }},
  };
  int job = 10;
  for (const auto& [reason, end] : ways) {
    auto lease = open(++job);
    wait(job);
    good("vm.start", {{"vm", "v1"}, {"job_id", job}, {"xml", "<domain><name>v1</name></domain>"}});
    std::this_thread::sleep_for(milliseconds(1100));  // it is looked at each second
    end();
    auto result = lease.get();
    ASSERT_TRUE(result) << result.error().message;
    EXPECT_EQ((*result)["reason"], reason);
    EXPECT_EQ(good("host.info", json::object())["leases"].size(), 0u);
  }
}

TEST_F(NodeLeaseTest, AVmIsStartedOnlyForTheJobThatHoldsIt) {
  auto lease = open(7);
  wait(7);
  EXPECT_EQ(code_of("vm.start",
                    {{"vm", "v1"}, {"job_id", 8}, {"xml", "<domain><name>v1</name></domain>"}}),
            Code::kPrecondition);
  launcher_gone_ = true;
  (void)lease.get();
}

TEST_F(NodeLeaseTest, ALostLauncherDoesNotEndTheVm) {
  hypervisor_.put("v1", {});
  auto lease = open(7);
  wait(7);
  launcher_gone_ = true;
  EXPECT_EQ(lease.get().error().code, Code::kCancelled);
  EXPECT_TRUE(hypervisor_.exists("v1"));
  EXPECT_EQ(good("host.info", json::object())["leases"][0]["connected"], false);
  restart();
  EXPECT_EQ(good("host.info", json::object())["leases"][0]["job_id"], 7);
  launcher_gone_ = false;
  auto again = open(7);
  wait(7);
  launcher_gone_ = true;
  (void)again.get();
}

}  // namespace
}  // namespace symvirt::host
