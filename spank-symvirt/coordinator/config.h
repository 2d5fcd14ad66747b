// symvirtd.toml: policy, hosts, VM classes. docs/man/symvirtd.toml.5 is the manual.
// Threads: read once at start; immutable afterwards.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "common/result.h"
#include "spank-symvirt/coordinator/transaction.h"

namespace symvirt {

// A passthrough device a VM of the class has. Patterns know {vm}, {index} (position of the VM in
// the class's node list, from 1), {index:02x} and {ip_index} (see address).
struct SlotConfig {
  std::string slot;          // "ib0"
  std::string gres;          // name in gres.conf and in noded's inventory
  std::string quiesce;       // tcp | verbs | idle | immovable
  std::string mac;           // pattern; empty: the device's own
  std::string match_driver;  // how the guest recognises it, one of: mac (the default when mac is
                             // set), driver, pci
  std::string match_pci;
  std::vector<std::string> addresses;  // "10.78.0.{100+index}/24"
  int mtu = 0;                         // 0: leave
  bool soft_roce = false;
};

struct ClassConfig {
  std::string name;
  std::vector<std::string> nodes;  // VM node names, expanded
  std::string domain_template;     // path of libvirt domain XML; patterns as above, with @VM@-style
                                   // names, see fill_domain
  std::string domain_xml;          // its contents
  std::int64_t memory_mib = 0;     // of the launcher job: guest memory plus QEMU's own
  int cpus = 1;
  std::string base_image;  // overlay's backing file; empty: no overlay (RAM-only guests)
  std::string base_format = "qcow2";
  std::string overlay;  // pattern of a path both hosts reach
  std::vector<SlotConfig> slots;
};

struct Config {
  std::string listen = "0.0.0.0:6820";
  int noded_port = 6821;
  std::string journal = "/var/lib/symvirt/journal.db";
  std::int64_t poll_ms = 250;
  std::string hosts_partition = "hosts";
  std::string vm_partition = "vm";
  std::string launcher_path;  // symvirt-launcher on the hosts
  std::string launcher_qos;
  std::string launcher_account;
  std::string spare_reservation;  // only evacuations use it
  int spares = 0;                 // host slots kept free by the capacity rule
  bool capacity = true;           // keep usable VM nodes at or below the healthy host slots
  std::int64_t retry_s = 30;      // a set that could not move is tried again after so long
  std::vector<std::uint32_t> admin_uids = {0};
  std::vector<std::string> fence_command;             // argv; {host} is replaced. Exit 0: it is off
  std::int64_t fence_ms = 120'000;                    // it is killed after so long
  std::map<std::string, std::string> host_addresses;  // where the name does not resolve
  TxPolicy policy;
  std::int64_t migrate_floor_bytes_s = 10 << 20;  // slowest rate that is waited for
  std::vector<ClassConfig> classes;

  const ClassConfig* find_class(const std::string& name) const;
  const ClassConfig* class_of_vm(const std::string& vm, int* index = nullptr) const;
};

// Reads and checks everything: unknown keys, types, ranges, duplicate VM names, template files. The
// error names file, line and column.
Result<Config> load_config(const std::string& path);
Result<Config> parse_config(const std::string& toml, const std::string& path_for_messages);

// "{vm}" -> name, "{index}" -> 3, "{100+index}" -> 103, "{index:02x}" -> 03. kInvalidArgument for
// anything else in braces.
Result<std::string> fill_pattern(const std::string& pattern, const std::string& vm, int index);

// "v[1-2,7]" -> v1 v2 v7. Leading zeros are kept. One level of brackets, as slurm.conf has them.
Result<std::vector<std::string>> expand_nodes(const std::string& list);

}  // namespace symvirt
