#include "spank-symvirt/plugin/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace symvirt::plugin {
namespace {

TEST(Config, DefaultsWithoutArguments) {
  const Result<Config> config = parse_config({});
  ASSERT_TRUE(config);
  EXPECT_EQ(config->guestd_socket, "/run/symvirt/guestd.sock");
  EXPECT_TRUE(config->hooks.empty());
  EXPECT_TRUE(config->environment);
}

TEST(Config, EveryKeyIsRead) {
  const Result<Config> config =
      parse_config({"guestd_socket=/a", "hooks=/b.so", "network=10.0.0.0/8", "enter_timeout=5",
                    "check_timeout=6", "environment=off"});
  ASSERT_TRUE(config);
  EXPECT_EQ(config->guestd_socket, "/a");
  EXPECT_EQ(config->hooks, "/b.so");
  EXPECT_EQ(config->network, "10.0.0.0/8");
  EXPECT_EQ(config->enter_timeout_s, 5u);
  EXPECT_EQ(config->check_timeout_s, 6u);
  EXPECT_FALSE(config->environment);
}

TEST(Config, EveryBadWordIsNamed) {
  for (const char* word :
       {"guestd_socket=", "guestd_socket=a", "hooks=b.so", "hooks", "network=10", "enter_timeout=0",
        "enter_timeout=x", "enter_timeout=", "enter_timeout=5s", "check_timeout=86401",
        "check_timeout=-1", "environment=yes", "unknown=1", "", "=", "GUESTD_SOCKET=/a"}) {
    const Result<Config> config = parse_config({"check_timeout=5", word});
    ASSERT_FALSE(config) << word;
    EXPECT_EQ(config.error().code, Code::kInvalidArgument);
    EXPECT_THAT(config.error().message, testing::HasSubstr("'" + std::string(word) + "'"));
  }
}

}  // namespace
}  // namespace symvirt::plugin
