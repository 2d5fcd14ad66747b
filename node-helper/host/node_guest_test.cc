// Calls to guests, and leases.
#include <future>

#include "node-helper/host/node_fixture.h"

namespace symvirt::host {
namespace {

class NodeGuestTest : public NodeTest {
 protected:
  NodeGuestTest() {
    hypervisor_.put("v1", {});
    // The guest may still be answering when the test is over.
    hypervisor_.guest = [lines = lines_](const std::string& line) {
      ++*lines;
      const json j = json::parse(line);
      if (j["method"] == "silent") return std::string();
      if (j["method"] == "late" && *lines < 2) return std::string();
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
  std::shared_ptr<std::atomic<int>> lines_ = std::make_shared<std::atomic<int>>(0);
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
  while (*lines_ < 1) std::this_thread::sleep_for(milliseconds(1));
  hypervisor_.close_ports();
  auto result = answer.get();
  EXPECT_TRUE(result) << result.error().message;
  EXPECT_EQ(hypervisor_.count("open_channel"), 2);
}

// A guest, whoever writes to its port, can say hello as often as it likes.
TEST_F(NodeGuestTest, AGuestThatAlwaysSaysHelloIsNotToldAsOften) {
  struct Heard {
    std::atomic<int> lines{0}, empty{0};
  };
  auto heard = std::make_shared<Heard>();  // the port's threads may outlive this test
  hypervisor_.guest = [heard](const std::string& line) {
    ++(line.find("method") == std::string::npos ? heard->empty : heard->lines);
    return std::string(R"({"event":"hello"})");
  };
  EXPECT_FALSE(call("guest.call", guest("echo", "1/q/v1/1"), 3000));
  EXPECT_GE(heard->lines, 3) << "it may be new, and is asked again";
  EXPECT_LE(heard->lines, 18);
  EXPECT_LE(heard->empty, 18);
}

TEST_F(NodeGuestTest, AnOldCoordinatorsLineIsNotRepeated) {
  auto answer = std::async(std::launch::async, [&] {
    return call("guest.call", {{"vm", "v1"}, {"method", "silent"}, {"gen", 5}}, 5000);
  });
  while (*lines_ < 1) std::this_thread::sleep_for(milliseconds(1));
  good("device.release", {{"vm", "v2"}, {"gen", 6}});
  auto refused = answer.get();
  EXPECT_EQ(refused.error().code, Code::kPrecondition) << refused.error().message;
}

TEST_F(NodeGuestTest, SeveralCallersOfOneIdGetOneAnswer) {
  json params = {{"vm", "v1"}, {"method", "late"}, {"op", "1/q/v1/1"}};
  auto first = std::async(std::launch::async, [&] { return call("guest.call", params, 5000); });
  while (*lines_ < 1) std::this_thread::sleep_for(milliseconds(1));
  auto second = std::async(std::launch::async, [&] { return call("guest.call", params, 5000); });
  hypervisor_.close_ports();
  EXPECT_TRUE(first.get());
  EXPECT_TRUE(second.get());
}

TEST_F(NodeGuestTest, WhoWaitsIsToldThatTheVmHasLeft) {
  json params = {{"vm", "v1"}, {"method", "silent"}};
  auto answer = std::async(std::launch::async, [&] { return call("guest.call", params, 5000); });
  while (*lines_ < 1) std::this_thread::sleep_for(milliseconds(1));
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
    std::this_thread::sleep_for(milliseconds(2500));  // it is looked at each second
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
