#include "spank-symvirt/cli/power.h"

#include <gtest/gtest.h>

#include <vector>

namespace symvirt {
namespace {

using std::chrono::milliseconds;

// A clock that only sleeping and asking move, and answers given in advance; the last one repeats.
struct FakeWorld {
  std::vector<Result<nlohmann::json>> answers;
  milliseconds time{1'000};
  milliseconds ask_takes{0};
  std::size_t asked = 0;
  std::vector<std::string> nodes, warnings;
  milliseconds longest_timeout{0};

  PowerWorld world() {
    PowerWorld w;
    w.ask = [this](const std::string& list, milliseconds timeout) -> Result<nlohmann::json> {
      nodes.push_back(list);
      longest_timeout = std::max(longest_timeout, timeout);
      time += std::min(ask_takes, timeout);
      return answers[std::min(asked++, answers.size() - 1)];
    };
    w.now = [this] { return time; };
    w.sleep = [this](milliseconds d) { time += d; };
    w.warn = [this](const std::string& text) { warnings.push_back(text); };
    return w;
  }
};

const Error kAway{Code::kUnavailable, "ctl:6820: Connection refused"};
const Error kSilent{Code::kDeadline, "ctl:6820: no answer in time"};

TEST(Power, PassesTheListAsSlurmWroteIt) {
  FakeWorld fake{{nlohmann::json::object()}};
  ASSERT_TRUE(change_power("v[1-2,7]", milliseconds(50'000), fake.world()));
  EXPECT_EQ(fake.nodes, std::vector<std::string>{"v[1-2,7]"});
  EXPECT_TRUE(fake.warnings.empty());
}

TEST(Power, WaitsForADaemonThatRestarts) {
  FakeWorld fake{{kAway, kSilent, kAway, nlohmann::json::object()}};
  ASSERT_TRUE(change_power("v1", milliseconds(50'000), fake.world()));
  EXPECT_EQ(fake.asked, 4u);
  EXPECT_EQ(fake.warnings.size(), 1u);  // not a line for each try
}

TEST(Power, GivesUpWithinItsPatience) {
  FakeWorld fake{{kAway}};
  Status status = change_power("v1", milliseconds(50'000), fake.world());
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, Code::kUnavailable);
  EXPECT_NE(status.error().message.find("Connection refused"), std::string::npos);
  EXPECT_LE(fake.time, milliseconds(51'000));
  EXPECT_GT(fake.time, milliseconds(45'000));
  EXPECT_GT(fake.asked, 10u);
  EXPECT_LT(fake.asked, 25u);
}

TEST(Power, AHangingDaemonCostsNoMoreThanThePatience) {
  FakeWorld fake{{kSilent}};
  fake.ask_takes = milliseconds(60'000);
  EXPECT_FALSE(change_power("v1", milliseconds(50'000), fake.world()));
  EXPECT_LE(fake.time, milliseconds(51'000));
  EXPECT_LE(fake.longest_timeout, milliseconds(20'000));
}

TEST(Power, ARefusalIsNotRepeated) {
  for (Code code : {Code::kNotFound, Code::kPermission, Code::kInvalidArgument}) {
    FakeWorld fake{{Error{code, "v9: in no [[class]] of symvirtd.toml"}}};
    Status status = change_power("v9", milliseconds(50'000), fake.world());
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().code, code);
    EXPECT_EQ(fake.asked, 1u);
  }
}

}  // namespace
}  // namespace symvirt
