#include "spank-symvirt/cli/server_address.h"

#include <gtest/gtest.h>

#include <cstdlib>

namespace symvirt {
namespace {

std::string nobody(const std::string&) { return ""; }

TEST(ServerAddress, HostAndPort) {
  auto s = parse_server("ctl.cluster.example:7000", "me", nobody);
  ASSERT_TRUE(s) << s.error().message;
  EXPECT_EQ(s->host, "ctl");
  EXPECT_EQ(s->address, "ctl.cluster.example");
  EXPECT_EQ(s->port, 7000);
  EXPECT_EQ(parse_server("ctl", "me", nobody)->port, 6820);
}

TEST(ServerAddress, LoopbackIsThisMachine) {
  for (const char* text : {"localhost", "127.0.0.1", "127.0.0.5:6820"})
    EXPECT_EQ(parse_server(text, "me", nobody)->host, "me") << text;
}

TEST(ServerAddress, AnAddressNeedsAName) {
  auto named = parse_server("10.77.0.10", "me", [](const std::string& a) {
    return a == "10.77.0.10" ? std::string("ctl") : std::string();
  });
  ASSERT_TRUE(named);
  EXPECT_EQ(named->host, "ctl");
  EXPECT_EQ(named->address, "10.77.0.10");
  auto unnamed = parse_server("10.77.0.10", "me", nobody);
  ASSERT_FALSE(unnamed);
  EXPECT_EQ(unnamed.error().code, Code::kInvalidArgument);
}

TEST(ServerAddress, NonsenseIsRefused) {
  for (const char* text : {"", ":6820", "ctl:", "ctl:0", "ctl:65536", "ctl:68x", "ctl:-1", "a:1:2"})
    EXPECT_FALSE(parse_server(text, "me", nobody)) << text;
}

TEST(ServerAddress, FromTheConfiguration) {
  auto any = server_from_config("[control]\nlisten = \"0.0.0.0:7001\"\n", "f.toml", "me");
  ASSERT_TRUE(any);
  EXPECT_EQ(any->host, "me");
  EXPECT_EQ(any->address, "127.0.0.1");
  EXPECT_EQ(any->port, 7001);
  auto one = server_from_config("[control]\nlisten = \"10.77.0.10:6820\"\n", "f.toml", "me");
  ASSERT_TRUE(one);
  EXPECT_EQ(one->host, "me");
  EXPECT_EQ(one->address, "10.77.0.10");
  EXPECT_EQ(server_from_config("", "f.toml", "me")->port, 6820);
  EXPECT_FALSE(server_from_config("[control", "f.toml", "me"));
  EXPECT_FALSE(server_from_config("[control]\nlisten = \"0.0.0.0:x\"\n", "f.toml", "me"));
}

TEST(ServerAddress, FlagThenEnvironmentThenAdvice) {
  setenv("SYMVIRTD_SERVER", "fromenv:1234", 1);
  EXPECT_EQ(find_server("fromflag", "/nonexistent.toml")->host, "fromflag");
  EXPECT_EQ(find_server("", "/nonexistent.toml")->host, "fromenv");
  EXPECT_EQ(find_server("", "/nonexistent.toml")->port, 1234);
  unsetenv("SYMVIRTD_SERVER");
  auto none = find_server("", "/nonexistent.toml");
  ASSERT_FALSE(none);
  EXPECT_NE(none.error().message.find("--server"), std::string::npos);
  EXPECT_NE(none.error().message.find("SYMVIRTD_SERVER"), std::string::npos);
}

TEST(ServerAddress, SlurmUser) {
  EXPECT_EQ(slurm_user_of(""), "root");
  EXPECT_EQ(slurm_user_of("ClusterName=c\nSlurmUser=slurm\n"), "slurm");
  EXPECT_EQ(slurm_user_of(" slurmuser = batch # ours\n"), "batch");
  EXPECT_EQ(slurm_user_of("#SlurmUser=no\nSlurmdUser=neither\n"), "root");
  EXPECT_EQ(slurm_user_of("SlurmUser=slurm(64030)\n"), "slurm");
}

}  // namespace
}  // namespace symvirt
