#include "spank-symvirt/launcher/launcher.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <filesystem>
#include <fstream>
#include <map>

namespace symvirt {
namespace {

using nlohmann::json;
using std::chrono::milliseconds;

TEST(CpuList, AsTheKernelAndSlurmWriteIt) {
  EXPECT_EQ(parse_cpu_list("0-2,5,7-8"), (std::vector<int>{0, 1, 2, 5, 7, 8}));
  EXPECT_EQ(parse_cpu_list("3"), std::vector<int>{3});
  for (const char* broken :
       {"", "a", "1-", "-1", "3-1", "1,,2", "1 2", "0-999999999", "99999999999999"})
    EXPECT_TRUE(parse_cpu_list(broken).empty()) << broken;
}

TEST(NumaNode, TheOneAllCpusAreOf) {
  const auto root = std::filesystem::temp_directory_path() / "symvirt-launcher-test-numa";
  for (const auto& [node, list] : {std::pair("node0", "0-3"), std::pair("node1", "4-7")}) {
    std::filesystem::create_directories(root / node);
    std::ofstream(root / node / "cpulist") << list << "\n";
  }
  std::filesystem::create_directories(root / "power");
  EXPECT_EQ(numa_node_of({4, 6}, root), 1);
  EXPECT_EQ(numa_node_of({0}, root), 0);
  EXPECT_EQ(numa_node_of({3, 4}, root), -1);
  EXPECT_EQ(numa_node_of({}, root), -1);
  EXPECT_EQ(numa_node_of({1}, root / "absent"), -1);
  std::filesystem::remove_all(root);
}

Variables variables(std::map<std::string, std::string> map) {
  return [map](const char* name) {
    auto it = map.find(name);
    return it == map.end() ? std::string() : it->second;
  };
}

TEST(Lease, IsWhatSlurmGave) {
  const json lease = lease_of("v1", 77, {2, 3}, variables({{"SLURM_MEM_PER_NODE", "700"}}));
  EXPECT_EQ(lease["vm"], "v1");
  EXPECT_EQ(lease["job_id"], 77);
  EXPECT_EQ(lease["cpus"], (json{2, 3}));
  EXPECT_EQ(lease["memory_bytes"], std::int64_t{700} << 20);
  const json by_cpu = lease_of(
      "v1", 77, {2, 3}, variables({{"SLURM_MEM_PER_CPU", "100"}, {"SLURM_CPUS_ON_NODE", "4"}}));
  EXPECT_EQ(by_cpu["memory_bytes"], std::int64_t{400} << 20);
  EXPECT_EQ(lease_of("v1", 77, {}, variables({{"SLURM_MEM_PER_NODE", "7x"}}))["memory_bytes"], 0);
}

struct FakeNoded {
  std::deque<Result<json>> answers;
  std::vector<std::string> states;  // told in every call
  std::vector<json> asked;
  std::vector<milliseconds> pauses;

  LauncherWorld world() {
    return {[this](const json& lease, const RpcProgress& progress) {
              asked.push_back(lease);
              for (const std::string& state : states) progress({{"state", state}});
              auto answer = answers.front();
              answers.pop_front();
              return answer;
            },
            [this](milliseconds time) { pauses.push_back(time); }};
  }
};
const json kLease = {{"vm", "v1"}, {"job_id", 77}};
const Error kAway{Code::kUnavailable, "hv1:6821: Connection refused"};

TEST(Launcher, EndsWhenTheVmHasLeft) {
  FakeNoded noded{{json{{"reason", "migrated"}}}, {"absent", "running"}};
  auto reason = hold(kLease, noded.world());
  ASSERT_TRUE(reason);
  EXPECT_EQ(*reason, "migrated");
  EXPECT_TRUE(noded.pauses.empty());
}

TEST(Launcher, OutlivesNodedAndTellsTheNextOneWhatItSaw) {
  FakeNoded noded{{kAway, Error{Code::kDeadline, "the lease goes on"}, json{{"reason", "ended"}}},
                  {"running"}};
  ASSERT_TRUE(hold(kLease, noded.world()));
  ASSERT_EQ(noded.asked.size(), 3u);
  EXPECT_FALSE(noded.asked[0].contains("seen"));
  EXPECT_EQ(noded.asked[1]["seen"], true);
  EXPECT_EQ(noded.pauses.size(), 1u);  // none after the end of an hour
}

TEST(Launcher, AVmThatHasYetToComeIsNotOneThatWasSeen) {
  FakeNoded noded{{kAway, json{{"reason", "ended"}}}, {"absent", "incoming"}};
  ASSERT_TRUE(hold(kLease, noded.world()));
  EXPECT_FALSE(noded.asked[1].contains("seen"));
}

TEST(Launcher, KeepsTheHostThroughWhatMayPass) {
  FakeNoded noded;
  for (int i = 0; i < 20; ++i) noded.answers.push_back(kAway);
  noded.answers.push_back(Error{Code::kPermission, "credential refused"});
  noded.answers.push_back(Error{Code::kAlreadyExists, "launcher job 76 holds the lease"});
  noded.answers.push_back(Error{Code::kInternal, "?"});
  noded.answers.push_back(json{{"reason", "stopped"}});
  ASSERT_TRUE(hold(kLease, noded.world()));
  EXPECT_EQ(noded.pauses.front(), milliseconds(200));
  EXPECT_EQ(*std::max_element(noded.pauses.begin(), noded.pauses.end()), milliseconds(5000));
}

TEST(Launcher, DoesNotInsistOnAWrongRequest) {
  FakeNoded noded{{Error{Code::kInvalidArgument, "vm: not a name"}}, {}};
  auto reason = hold(kLease, noded.world());
  ASSERT_FALSE(reason);
  EXPECT_EQ(reason.error().code, Code::kInvalidArgument);
}

TEST(Launcher, AnswersOfAnotherShapeDoNoHarm) {
  FakeNoded noded{{json::array({1})}, {}};
  auto reason = hold(kLease, noded.world());
  ASSERT_TRUE(reason);
  EXPECT_EQ(*reason, "ended");
}

}  // namespace
}  // namespace symvirt
