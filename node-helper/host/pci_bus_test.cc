#include "node-helper/host/pci_bus.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/fakes/fake_sysfs.h"

namespace symvirt::host {
namespace {

using fakes::FakeSysfs;
using testing::ElementsAre;
using testing::HasSubstr;

TEST(PciBus, Addresses) {
  EXPECT_EQ(normal_pci_address("0000:5E:00.1"), "0000:5e:00.1");
  EXPECT_EQ(normal_pci_address("5e:1f.7"), "0000:5e:1f.7");
  EXPECT_EQ(normal_pci_address("10000:5e:00.0"), std::nullopt);
  for (const char* wrong : {"", "5e:00", "0000:5e:20.0", "0000:5e:00.8", "0000:5e:00.0 ", "eth0"})
    EXPECT_EQ(normal_pci_address(wrong), std::nullopt) << wrong;
  EXPECT_EQ(normal_pci_model("15B3:1018"), "15b3:1018");
  for (const char* wrong : {"", "15b3", "15b3:101", "15b3:10189", "15b3-1018"})
    EXPECT_EQ(normal_pci_model(wrong), std::nullopt) << wrong;
}

TEST(PciBus, AWholeAdapter) {
  FakeSysfs sys;
  sys.device("0000:af:00.0", "15b3:101b", "0x020700", 7, "mlx5_core", 1);
  sys.rdma("0000:af:00.0", "mlx5_0", "4: ACTIVE");
  sys.net("0000:af:00.0", "ib0", "up");
  sys.device("0000:ae:00.0", "8086:2030", "0x060400", 7, "pcieport");
  auto look = PciBus(sys.root()).look("0000:af:00.0");
  ASSERT_TRUE(look) << look.error().message;
  EXPECT_EQ(look->model, "15b3:101b");
  EXPECT_EQ(look->driver, "mlx5_core");
  EXPECT_EQ(look->iommu_group, 7);
  EXPECT_EQ(look->numa_node, 1);
  EXPECT_TRUE(look->siblings.empty()) << "a bridge is in everybody's way and in nobody's";
  EXPECT_EQ(look->vf, -1);
  EXPECT_FALSE(look->is_ethernet());
  EXPECT_THAT(look->ports,
              ElementsAre(PciPort{"ib0", "up", ""}, PciPort{"mlx5_0/1", "active", ""}));
}

TEST(PciBus, AVirtualFunctionShowsThePortOfItsPhysicalOne) {
  FakeSysfs sys;
  sys.device("0000:5e:00.0", "15b3:1017", "0x020000", 3, "mlx5_core");
  sys.net("0000:5e:00.0", "ens3f0", "up");
  sys.link(sys.root() + "/sys/class/net/ens3f0/master", "../br0");
  sys.write(sys.at("0000:5e:00.0") + "/sriov_numvfs", "2");
  sys.write(sys.at("0000:5e:00.0") + "/sriov_totalvfs", "8");
  for (int i = 0; i < 2; ++i) {
    const std::string vf = "0000:5e:00." + std::to_string(2 + i);
    sys.device(vf, "15b3:1018", "0x020000", 10 + i, "vfio-pci");
    sys.virtual_function("0000:5e:00.0", i, vf);
  }
  const PciBus bus(sys.root());
  auto look = bus.look("0000:5e:00.3");
  ASSERT_TRUE(look) << look.error().message;
  EXPECT_EQ(look->pf, "0000:5e:00.0");
  EXPECT_EQ(look->vf, 1);
  EXPECT_EQ(look->iommu_group, 11);
  EXPECT_THAT(look->ports, ElementsAre(PciPort{"ens3f0", "up", ""})) << "the port stays the host's";
  EXPECT_EQ(bus.look("0000:5e:00.0")->vfs, 2);
  EXPECT_EQ(bus.look("0000:5e:00.0")->ports[0].taken, "part of br0");
  EXPECT_EQ(*bus.virtual_function("ens3f0", 0), "0000:5e:00.2");
  EXPECT_EQ(*bus.virtual_function("0000:5e:00.0", 1), "0000:5e:00.3");
  EXPECT_EQ(*bus.virtual_function("5e:00.0", 1), "0000:5e:00.3");
  EXPECT_THAT(bus.virtual_function("ens3f0", 2).error().message,
              testing::AllOf(HasSubstr("2 virtual functions, of 8"), HasSubstr("sriov_numvfs")));
  EXPECT_EQ(bus.virtual_function("ens9", 0).error().code, Code::kNotFound);
  EXPECT_EQ(bus.virtual_function("../net/ens3f0", 0).error().code, Code::kNotFound);
  EXPECT_THAT(bus.of_model("15b3:1018"), ElementsAre("0000:5e:00.2", "0000:5e:00.3"));
  EXPECT_TRUE(bus.of_model("15b3:ffff").empty());
}

TEST(PciBus, WhatIsNotThereIsNamed) {
  FakeSysfs sys;
  auto look = PciBus(sys.root()).look("0000:77:00.0");
  ASSERT_FALSE(look);
  EXPECT_EQ(look.error().code, Code::kNotFound);
  EXPECT_THAT(look.error().message, HasSubstr("0000:77:00.0"));
  sys.device("0000:01:00.0", "8086:10d3", "0x020000", 1);
  EXPECT_THAT(PciBus(sys.root()).virtual_function("0000:01:00.0", 0).error().message,
              HasSubstr("no SR-IOV"));
}

TEST(PciBus, TheInterfaceOfTheDefaultRouteIsTheHostsOwn) {
  FakeSysfs sys;
  sys.device("0000:01:00.0", "8086:10d3", "0x020000", 1, "e1000e");
  sys.net("0000:01:00.0", "eno1", "up");
  sys.write(sys.root() + "/proc/net/route",
            "Iface\tDestination\tGateway\neno2\t00000000\t0102A8C0\neno1\t0002A8C0\t00000000");
  EXPECT_EQ(PciBus(sys.root()).look("0000:01:00.0")->ports[0].taken, "");
  sys.write(sys.root() + "/proc/net/route",
            "Iface\tDestination\tGateway\neno1\t00000000\t0102A8C0");
  EXPECT_EQ(PciBus(sys.root()).look("0000:01:00.0")->ports[0].taken, "the host's way out");
}

}  // namespace
}  // namespace symvirt::host
