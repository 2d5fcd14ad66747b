#include "node-helper/host/passthrough.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "node-helper/host/domain_xml.h"
#include "tests/fakes/fake_sysfs.h"

namespace symvirt::host {
namespace {

using fakes::FakeSysfs;
using testing::AllOf;
using testing::HasSubstr;

DeviceConfig device(const std::string& how) {
  auto c = parse_config("[[device]]\nname = \"d\"\ngres = \"g\"\n" + how + "\n", "noded.toml");
  EXPECT_TRUE(c) << c.error().message;
  return c ? c->devices.front() : DeviceConfig();
}

class PassthroughTest : public testing::Test {
 protected:
  PassthroughTest() {
    sys_.device("0000:5e:00.0", "15b3:1017", "0x020000", 3, "mlx5_core");
    sys_.net("0000:5e:00.0", "ens3f0", "up");
    sys_.write(sys_.at("0000:5e:00.0") + "/sriov_numvfs", "1");
    sys_.device("0000:5e:02.1", "15b3:1018", "0x020000", 4, "mlx5_core");
    sys_.virtual_function("0000:5e:00.0", 0, "0000:5e:02.1");
    sys_.device("0000:af:00.0", "15b3:101b", "0x020700", 7, "mlx5_core");
    sys_.device("0000:b0:00.0", "15b3:101b", "0x020700", 8);
  }
  PassthroughDevice find(const std::string& how) {
    return find_passthrough(device(how), PciBus(sys_.root()));
  }
  std::string problem(const std::string& how) {
    const PassthroughDevice d = find(how);
    return d.problem ? d.problem->message : "";
  }
  FakeSysfs sys_;
};

TEST_F(PassthroughTest, AWholeAdapterIsAHostdev) {
  const PassthroughDevice d = find("pci = \"af:00.0\"");
  EXPECT_FALSE(d.problem);
  ASSERT_EQ(d.snippets.size(), 1u);
  EXPECT_THAT(d.snippets[0],
              AllOf(HasSubstr("<hostdev mode='subsystem' type='pci' managed='yes'>"),
                    HasSubstr("domain='0x0000' bus='0xaf' slot='0x00' function='0x0'")));
  EXPECT_EQ(source_pci_address(d.snippets[0]), "0000:af:00.0");
  EXPECT_EQ(d.model(), "15b3:101b");
}

TEST_F(PassthroughTest, ByModelInTheOrderOfAddresses) {
  EXPECT_EQ(find("model = \"15B3:101B\"").functions.front().address, "0000:af:00.0");
  EXPECT_EQ(find("model = \"15b3:101b\"\nnth = 1").functions.front().address, "0000:b0:00.0");
  EXPECT_THAT(problem("model = \"15b3:101b\"\nnth = 2"),
              AllOf(HasSubstr("has 2 PCI devices of model 15b3:101b"), HasSubstr("lspci")));
}

TEST_F(PassthroughTest, AnEthernetVirtualFunctionIsAnInterface) {
  const PassthroughDevice d = find("pf = \"ens3f0\"\nvf = 0\nvlan = 12");
  EXPECT_FALSE(d.problem);
  ASSERT_EQ(d.snippets.size(), 1u);
  auto xml = make_device_xml(d.snippets[0], {"v1", "s", "d", "52:54:00:00:00:01", 0, ""}, "ua-x");
  ASSERT_TRUE(xml) << xml.error().message;
  EXPECT_THAT(*xml, AllOf(HasSubstr("<interface type=\"hostdev\" managed=\"yes\">"),
                          HasSubstr("52:54:00:00:00:01"), HasSubstr("<tag id=\"12\"/>"),
                          HasSubstr("bus=\"0x5e\" slot=\"0x02\" function=\"0x1\"")));
  EXPECT_EQ(source_pci_address(*xml), "0000:5e:02.1");
  EXPECT_THAT(find("pf = \"ens3f0\"\nvf = 0\nas = \"hostdev\"").snippets[0], HasSubstr("<hostdev"));
}

TEST_F(PassthroughTest, VirtualFunctionsThatAreNoEthernetAreHostdevs) {
  sys_.device("0000:af:00.1", "15b3:101c", "0x020700", 9);  // InfiniBand
  sys_.virtual_function("0000:af:00.0", 0, "0000:af:00.1");
  EXPECT_THAT(find("pf = \"af:00.0\"\nvf = 0").snippets[0], HasSubstr("<hostdev"));
  sys_.device("0000:03:00.1", "1b36:0010", "0x010802", 10);  // NVMe
  sys_.device("0000:03:00.0", "1b36:0010", "0x010802", 11, "nvme");
  sys_.virtual_function("0000:03:00.0", 0, "0000:03:00.1");
  EXPECT_THAT(find("pf = \"0000:03:00.0\"\nvf = 0").snippets[0], HasSubstr("<hostdev"));
}

TEST_F(PassthroughTest, SnippetsAreLookedAtToo) {
  const std::string how =
      "snippets = [\"<hostdev type='pci'><source><address domain='0' bus='0xaf' slot='0' "
      "function='0'/></source></hostdev>\", \"<shmem name='g'/>\"]";
  const PassthroughDevice d = find(how);
  EXPECT_FALSE(d.problem);
  EXPECT_EQ(d.snippets.size(), 2u);
  ASSERT_EQ(d.functions.size(), 1u);
  EXPECT_EQ(d.functions[0].address, "0000:af:00.0");
  // The stand-in: nothing is known of it, and nothing is wrong with it.
  const PassthroughDevice stand_in = find("snippets = [\"<interface type='bridge'/>\"]");
  EXPECT_FALSE(stand_in.problem);
  EXPECT_TRUE(stand_in.functions.empty());
  EXPECT_EQ(stand_in.model(), "");
}

TEST_F(PassthroughTest, NoIommu) {
  sys_.device("0000:01:00.0", "8086:10d3", "0x020000", -1, "e1000e");
  const PassthroughDevice d = find("pci = \"01:00.0\"");
  ASSERT_TRUE(d.problem);
  EXPECT_EQ(d.problem->code, Code::kPrecondition);
  EXPECT_THAT(d.problem->message, AllOf(HasSubstr("0000:01:00.0"), HasSubstr("without an IOMMU"),
                                        HasSubstr("VT-d"), HasSubstr("intel_iommu=on")));
}

TEST_F(PassthroughTest, ASiblingThatTheHostUses) {
  sys_.device("0000:02:00.0", "8086:10d3", "0x020000", 5, "e1000e");
  sys_.device("0000:02:00.1", "8086:10d3", "0x020000", 5, "e1000e");
  EXPECT_THAT(problem("pci = \"02:00.0\""),
              AllOf(HasSubstr("IOMMU group 5"), HasSubstr("0000:02:00.1"), HasSubstr("e1000e"),
                    HasSubstr("vfio-pci")));
  sys_.bind("0000:02:00.1", "vfio-pci");
  EXPECT_EQ(problem("pci = \"02:00.0\""), "");
  sys_.bind("0000:02:00.1", "mlx5_vfio_pci");
  EXPECT_EQ(problem("pci = \"02:00.0\""), "");
}

TEST_F(PassthroughTest, AbsentDevices) {
  const PassthroughDevice d = find("pci = \"77:00.0\"");
  ASSERT_TRUE(d.problem);
  EXPECT_EQ(d.problem->code, Code::kNotFound);
  EXPECT_TRUE(d.snippets.empty());
  EXPECT_THAT(problem("pf = \"ens3f0\"\nvf = 4"), HasSubstr("there is no number 4"));
  EXPECT_THAT(problem("snippets = [\"<hostdev type='pci'><source><address bus='0x77'/></source>"
                      "</hostdev>\"]"),
              HasSubstr("0000:77:00.0"));
}

TEST_F(PassthroughTest, WhatTheHostCannotSpare) {
  EXPECT_THAT(problem("pci = \"5e:00.0\""), HasSubstr("has 1 virtual functions"));
  sys_.device("0000:01:00.0", "8086:10d3", "0x020000", 1, "e1000e");
  sys_.net("0000:01:00.0", "eno1", "up");
  sys_.link(sys_.root() + "/sys/class/net/eno1/master", "../bond0");
  EXPECT_THAT(problem("pci = \"01:00.0\""), AllOf(HasSubstr("eno1"), HasSubstr("part of bond0")));
  sys_.device("0000:00:01.0", "8086:2030", "0x060400", 2, "pcieport");
  EXPECT_THAT(problem("pci = \"00:01.0\""), HasSubstr("is a bridge"));
}

TEST_F(PassthroughTest, AMacNeedsAPhysicalFunctionWithAnInterface) {
  EXPECT_THAT(problem("pci = \"af:00.0\"\nas = \"interface\""), HasSubstr("no virtual function"));
  std::filesystem::remove_all(sys_.at("0000:5e:00.0") + "/net");
  EXPECT_THAT(problem("pf = \"5e:00.0\"\nvf = 0"), HasSubstr("has no network interface"));
}

TEST(ExplainAttach, SaysWhatToDo) {
  auto explain = [](const char* text) {
    return explain_attach(Error{Code::kRefused, std::string("attach: v1: ") + text});
  };
  Error e = explain("internal error: No more available PCI slots");
  EXPECT_EQ(e.code, Code::kExhausted);
  EXPECT_THAT(e.message, HasSubstr("pcie-root-port"));
  e = explain(
      "Requested operation is not valid: PCI device 0000:01:00.0 is in use by driver QEMU, "
      "domain w1");
  EXPECT_EQ(e.code, Code::kPrecondition);
  EXPECT_THAT(e.message, AllOf(HasSubstr("domain w1"), HasSubstr("detach it there")));
  e = explain("something else");
  EXPECT_EQ(e.code, Code::kRefused);
  EXPECT_EQ(e.message, "attach: v1: something else");
}

}  // namespace
}  // namespace symvirt::host
