// noded.toml: what this host offers. docs/man/symvirt-noded.8 is the manual.
// Threads: read once at start; immutable afterwards.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "common/result.h"

namespace symvirt::host {

// Which PCI function a device is. Exactly one of the three, or none of them: then snippets say it.
struct DeviceSource {
  std::string pci;    // address
  std::string model;  // vendor:device, and which of them in the order of addresses, from 0
  int nth = 0;
  std::string pf;  // address, network interface or RDMA device of the physical function
  int vf = -1;
  std::string as;  // "interface" (libvirt sets MAC and VLAN), "hostdev"; empty: by what it is
  int vlan = 0;    // 0: none

  bool empty() const { return pci.empty() && model.empty() && pf.empty(); }
};

// One passthrough device of the host. It may consist of several libvirt devices that come in the
// order given and go in the opposite one.
struct DeviceConfig {
  std::string name;  // "hca0"
  std::string gres;  // what Slurm counts it as
  int numa_node = -1;
  std::string mac;  // where the device has one of its own
  std::string description;
  DeviceSource source;
  // Models whose place it can take in a guest that has known one of them; its own need not be here.
  std::vector<std::string> compatible;
  // libvirt device XML; {vm}, {slot}, {mac}, {device}, {index} are filled in ({index}: position of
  // the slot among the VM's). An <address> in it is the guest's, and is kept.
  std::vector<std::string> snippets;
};

struct NodedConfig {
  std::string address = "0.0.0.0";
  int port = 6821;
  std::string host;  // short host name; default gethostname
  std::string libvirt_uri = "qemu:///system";
  bool pin = true;                      // CPUs and NUMA node as Slurm gave them to the launcher
  std::int64_t memory_reserve_mib = 0;  // kept free for the host itself
  std::int64_t shutdown_s = 60;         // a guest asked to shut down is destroyed after so long
  std::string migrate_uri = "qemu+tcp://{host}/system";
  bool migrate_unsafe = false;     // shared overlays with a cache mode other than none
  int migrate_parallel = 0;        // connections; 0: one, not multifd
  std::int64_t migrate_mib_s = 0;  // 0: unlimited
  std::string munge_socket;        // empty: libmunge's default
  std::string state_dir = "/var/lib/symvirt";
  std::string qemu_img = "/usr/bin/qemu-img";
  std::vector<uid_t> allowed_uids = {0};
  std::vector<DeviceConfig> devices;

  const DeviceConfig* find_device(const std::string& name) const;
  bool allows(uid_t uid) const;
};

// The error names file, line and column.
Result<NodedConfig> load_config(const std::string& path);
Result<NodedConfig> parse_config(const std::string& toml, const std::string& path_for_messages);

}  // namespace symvirt::host
