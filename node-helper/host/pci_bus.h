// What the host's kernel says of a PCI function that could be passed through: read from sysfs at
// the moment of asking, since drivers and links change. Nothing is written. Threads: any.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "common/result.h"

namespace symvirt::host {

struct PciSibling {
  std::string address;
  std::string driver;  // empty: none
  bool operator==(const PciSibling&) const = default;
};

// A network interface or an RDMA port of a function.
struct PciPort {
  std::string name;   // "ens3f0", "mlx5_0/1"
  std::string state;  // "up", "down", "active", "init" ..., as the kernel says it, in small letters
  std::string taken;  // why the host cannot spare it: "part of br0", "has the default route"
  bool operator==(const PciPort&) const = default;
};

struct PciLook {
  std::string address;  // "0000:5e:02.0"
  std::string model;    // vendor:device, "15b3:1018"
  unsigned pci_class = 0;
  std::string driver;                // empty: none
  int iommu_group = -1;              // -1: none
  int numa_node = -1;                // -1: the host has none, or does not say
  std::string pf;                    // of a virtual function: its physical function's address
  int vf = -1;                       // and its index there
  int vfs = 0;                       // of a physical function: how many virtual ones it has now
  bool pf_has_net = true;            // of a virtual function: somebody can set its MAC address
  std::vector<PciSibling> siblings;  // the others of its IOMMU group, bridges left out
  std::vector<PciPort> ports;  // of a virtual function without any: those of its physical function

  bool is_ethernet() const { return pci_class >> 8 == 0x0200; }
  bool is_bridge() const { return pci_class >> 16 == 0x06; }
};

// "5e:00.1" and "0000:5E:00.1" become "0000:5e:00.1"; nothing when it is no PCI address.
std::optional<std::string> normal_pci_address(const std::string& text);
// "15B3:1018" becomes "15b3:1018"; nothing when it is not vendor:device.
std::optional<std::string> normal_pci_model(const std::string& text);

class PciBus {
 public:
  // `root`: where /sys and /proc are; tests build their own.
  explicit PciBus(std::string root = "") : root_(std::move(root)) {}

  Result<PciLook> look(const std::string& address) const;
  // Functions of this model, in the order of their addresses.
  std::vector<std::string> of_model(const std::string& model) const;
  // The virtual function `vf` of a physical one, given as address, network interface or RDMA
  // device.
  Result<std::string> virtual_function(const std::string& pf, int vf) const;

 private:
  std::string device(const std::string& address) const;
  std::vector<PciPort> ports(const std::string& address) const;
  PciPort net_port(const std::string& name) const;
  void read_group(PciLook& look) const;

  const std::string root_;
};

}  // namespace symvirt::host
