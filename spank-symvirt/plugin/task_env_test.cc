#include "spank-symvirt/plugin/task_env.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

namespace symvirt::plugin {
namespace {

std::map<std::string, std::string> set_by(const TaskEnvironment& environment,
                                          std::map<std::string, std::string> task = {}) {
  std::map<std::string, std::string> result;
  for (const auto& [name, value] :
       task_variables(environment, [&](const char* key) -> std::optional<std::string> {
         const auto found = task.find(key);
         if (found == task.end()) return std::nullopt;
         return found->second;
       })) {
    result[name] = value;
  }
  return result;
}

const TaskEnvironment kTcp{"/l/hooks.so", {"10.78.0.0/24", "10.79.0.0/24"}, "tcp", true, {}, false};

TEST(TaskEnvironment, KeepsAJobOnThePassthroughNic) {
  EXPECT_EQ(set_by(kTcp), (std::map<std::string, std::string>{
                              {"LD_PRELOAD", "/l/hooks.so"},
                              {"OMPI_MCA_pml", "ob1"},
                              {"OMPI_MCA_btl", "tcp,vader,self"},
                              {"OMPI_MCA_osc", "^ucx"},
                              {"OMPI_MCA_btl_tcp_if_include", "10.78.0.0/24,10.79.0.0/24"},
                          }));
}

TEST(TaskEnvironment, WhatTheUserSetStays) {
  const auto variables =
      set_by(kTcp, {{"OMPI_MCA_pml", "cm"}, {"OMPI_MCA_btl_tcp_if_exclude", "lo"}});
  EXPECT_FALSE(variables.contains("OMPI_MCA_pml"));
  EXPECT_FALSE(variables.contains("OMPI_MCA_btl_tcp_if_include"));
  EXPECT_TRUE(variables.contains("OMPI_MCA_btl"));
  EXPECT_FALSE(set_by(kTcp, {{"OMPI_MCA_btl_tcp_if_include", "eth1"}})
                   .contains("OMPI_MCA_btl_tcp_if_include"));
}

TEST(TaskEnvironment, PreloadIsAppendedOnce) {
  EXPECT_EQ(set_by(kTcp, {{"LD_PRELOAD", "/x.so"}})["LD_PRELOAD"], "/x.so:/l/hooks.so");
  for (const char* there :
       {"/l/hooks.so", "/x.so:/l/hooks.so", "/l/hooks.so /x.so", "/x.so /l/hooks.so:/y.so"}) {
    EXPECT_FALSE(set_by(kTcp, {{"LD_PRELOAD", there}}).contains("LD_PRELOAD")) << there;
  }
  EXPECT_EQ(set_by(kTcp, {{"LD_PRELOAD", "/l/hooks.so.1"}})["LD_PRELOAD"],
            "/l/hooks.so.1:/l/hooks.so");
  EXPECT_EQ(set_by(kTcp, {{"LD_PRELOAD", ""}})["LD_PRELOAD"], "/l/hooks.so");
}

std::vector<std::string> warned(const char* quiesce, const char* name, const char* value) {
  TaskEnvironment environment = kTcp;
  environment.quiesce = quiesce;
  return task_warnings(environment, [&](const char* key) -> std::optional<std::string> {
    if (std::string(key) != name) return std::nullopt;
    return value;
  });
}

TEST(TaskEnvironment, AVerbsJobIsWarnedOfWhatTheUserSet) {
  using ::testing::ElementsAre;
  using ::testing::HasSubstr;
  using ::testing::IsEmpty;
  EXPECT_THAT(warned("verbs", "UCX_TLS", "self,rc_x"),
              ElementsAre(HasSubstr("UCX_TLS=self,rc_x: rc_x ")));
  EXPECT_THAT(warned("verbs", "UCX_TLS", "dc"), ElementsAre(HasSubstr("rc_v,ud_v")));
  EXPECT_THAT(warned("verbs", "UCX_IB_REG_METHODS", "rcache,odp"),
              ElementsAre(HasSubstr("immovable")));
  EXPECT_THAT(warned("verbs", "OMPI_MCA_btl", "openib,self"), ElementsAre(HasSubstr("openib")));
  for (const char* fine : {"rc_v,ud_v,self,sm", "rc_verbs", "rc,ud,self", "all", "^dc_x", ""})
    EXPECT_THAT(warned("verbs", "UCX_TLS", fine), IsEmpty()) << fine;
  EXPECT_THAT(warned("verbs", "OMPI_MCA_btl", "^openib,uct"), IsEmpty());
  EXPECT_THAT(warned("tcp", "UCX_TLS", "rc_x"), IsEmpty());
}

TEST(TaskEnvironment, AVerbsJobUsesOnlyWhatTheLayerCarries) {
  TaskEnvironment verbs = kTcp;
  verbs.quiesce = "verbs";
  verbs.rdma = {"mlx5_0:1", "mlx5_2:1"};
  EXPECT_EQ(set_by(verbs), (std::map<std::string, std::string>{
                               {"LD_PRELOAD", "/l/hooks.so"},
                               {"OMPI_MCA_pml", "ucx"},
                               {"OMPI_MCA_osc", "ucx,sm"},
                               {"OMPI_MCA_btl", "vader,self"},
                               {"UCX_TLS", "rc_v,ud_v,self,sm"},
                               {"UCX_NET_DEVICES", "mlx5_0:1,mlx5_2:1"},
                               {"UCX_IB_MLX5_DEVX", "n"},
                               {"UCX_IB_REG_METHODS", "rcache,direct"},
                           }));
  EXPECT_FALSE(set_by(verbs, {{"UCX_TLS", "rc_x"}}).contains("UCX_TLS"));
  verbs.soft_roce = true;
  EXPECT_EQ(set_by(verbs)["UCX_UD_VERBS_ETH_DGID_CHECK"], "n");
  verbs.rdma.clear();
  EXPECT_FALSE(set_by(verbs).contains("UCX_NET_DEVICES"));
}

TEST(TaskEnvironment, DefaultsCanBeSwitchedOffAndAreForCommunicationOnly) {
  TaskEnvironment off = kTcp;
  off.defaults = false;
  EXPECT_EQ(set_by(off).size(), 1u);
  TaskEnvironment idle = kTcp;
  idle.quiesce = "idle";
  EXPECT_EQ(set_by(idle).size(), 1u);
  TaskEnvironment unknown_network = kTcp;
  unknown_network.networks.clear();
  EXPECT_FALSE(set_by(unknown_network).contains("OMPI_MCA_btl_tcp_if_include"));
}

}  // namespace
}  // namespace symvirt::plugin
