#include "spank-symvirt/coordinator/doctor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace symvirt {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::Not;

json info() {
  return json::parse(R"({"libvirt_ok": true, "devices": [
    {"device": "mlx5_0", "gres": "ib", "state": "free", "numa_node": 1, "pci": "0000:af:00.0",
     "driver": "mlx5_core", "iommu_group": 7, "ports": [{"port": "mlx5_0/1", "state": "active"}]},
    {"device": "v0", "gres": "vf", "state": "attached", "vm": "v1", "numa_node": -1,
     "pci": "0000:5e:00.2", "driver": "vfio-pci", "iommu_group": 12, "pf": "0000:5e:00.0", "vf": 0,
     "ports": [{"port": "ens3f0", "state": "up"}]},
    {"device": "bad", "gres": "vf", "state": "free", "numa_node": -1, "pci": "0000:5e:00.3",
     "driver": "", "iommu_group": -1, "ports": [],
     "problem": "PCI device 0000:5e:00.3 is in no IOMMU group"},
    {"device": "stand-in", "gres": "hca", "state": "free", "numa_node": -1}]})");
}

json named(const json& checks, const std::string& name) {
  for (const json& c : checks) {
    if (c["check"] == name) return c;
  }
  ADD_FAILURE() << name << " is not in " << checks;
  return json::object();
}

TEST(HostChecks, ShowWhatTheHostKnowsOfADevice) {
  const json checks = host_checks("hv1", "ib:1,vf:2", info());
  EXPECT_EQ(named(checks, "host hv1 device mlx5_0"),
            (json{{"check", "host hv1 device mlx5_0"},
                  {"ok", true},
                  {"detail",
                   "free: 0000:af:00.0, IOMMU group 7, driver mlx5_core, NUMA node 1, "
                   "mlx5_0/1 active"}}));
  EXPECT_EQ(named(checks, "host hv1 device v0")["detail"],
            "attached: 0000:5e:00.2, VF 0 of 0000:5e:00.0, IOMMU group 12, driver vfio-pci, "
            "ens3f0 up");
}

TEST(HostChecks, ADeviceWithAProblemIsNamedWithAdvice) {
  const json bad = named(host_checks("hv1", "", info()), "host hv1 device bad");
  EXPECT_EQ(bad["ok"], false);
  EXPECT_THAT(bad["detail"].get<std::string>(), HasSubstr("0000:5e:00.3 is in no IOMMU group"));
  EXPECT_THAT(bad["advice"].get<std::string>(), HasSubstr("host-preparation.md"));
}

TEST(HostChecks, AGuestThatHasNotGivenUpItsDevice) {
  json told = info();
  told["vms"] = json::parse(R"([{"vm": "v1", "unplugs_pending": ["ib0"]},
                                {"vm": "v2", "unplugs_pending": []}])");
  const json checks = host_checks("hv1", "", told);
  const json v1 = named(checks, "host hv1 VM v1");
  EXPECT_EQ(v1["ok"], false);
  EXPECT_THAT(v1["detail"].get<std::string>(), HasSubstr("ib0"));
  EXPECT_THAT(checks.dump(), Not(HasSubstr("VM v2")));
}

TEST(HostChecks, CountsAgreeWithSlurm) {
  auto ok = [](const std::string& gres, const char* kind) {
    return named(host_checks("hv1", gres, info()),
                 std::string("host hv1 devices of gres ") + kind)["ok"] == true;
  };
  EXPECT_TRUE(ok("ib:1,vf:2(S:0-1),hca:1", "vf"));
  EXPECT_TRUE(ok("ib:1,vf:2(S:0-1),hca:1", "hca"));
  EXPECT_FALSE(ok("ib:12,vf:1", "ib")) << "twelve are not one";
  EXPECT_FALSE(ok("nvf:2", "vf"));
  EXPECT_FALSE(ok("", "ib"));
}

TEST(HostChecks, NothingInAnAnswerIsTrusted) {
  for (const json& odd : {json(), json::array(), json{{"devices", 5}},
                          json{{"devices", {1, {{"pci", 3}, {"vf", "x"}, {"ports", {2}}}}}}})
    EXPECT_EQ(host_checks("hv1", "", odd)[0]["ok"], false) << odd;
}

}  // namespace
}  // namespace symvirt
