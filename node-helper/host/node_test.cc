#include "node-helper/host/node.h"

#include <future>

#include "node-helper/host/node_fixture.h"

namespace symvirt::host {
namespace {

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
  hypervisor_.put("v1", {});
  hypervisor_.migrate_ms = 60'000;
  auto held = std::async(std::launch::async, [&] {
    return call("vm.migrate", {{"vm", "v1"}, {"to", "hv2"}, {"gen", 5}}, 60'000);
  });
  while (!hypervisor_.domain("v1").migrating) std::this_thread::sleep_for(milliseconds(1));
  auto old = std::async(std::launch::async, [&] {
    return call("vm.stop", {{"vm", "v1"}, {"mode", "destroy"}, {"gen", 5}, {"op", "1/stop/v1/1"}},
                60'000);
  });
  auto suspend = [&](int gen) {
    return std::async(std::launch::async, [this, gen] {
      return call("vm.suspend", {{"vm", "v1"}, {"gen", gen}, {"op", "1/suspend/v1/1"}}, 60'000);
    });
  };
  auto shared = suspend(5);
  std::this_thread::sleep_for(milliseconds(300));
  auto newer = suspend(6);
  std::this_thread::sleep_for(milliseconds(100));
  good("vm.migrate_abort", {{"vm", "v1"}, {"gen", 6}}, 60'000);
  EXPECT_FALSE(held.get());
  auto refused = old.get();
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::kPrecondition);
  EXPECT_THAT(refused.error().message, HasSubstr("generation 5 is old"));
  EXPECT_TRUE(hypervisor_.exists("v1"));
  EXPECT_TRUE(newer.get()) << "the operation that it joined is its own now";
  (void)shared.get();
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

}  // namespace
}  // namespace symvirt::host
