// RDMA devices of this VM, as sysfs shows them: which of them belongs to an interface, and whether
// its port can be used. Nothing here needs libibverbs: guestd must not hold a device open.
#pragma once

#include <string>
#include <vector>

#include "common/result.h"
#include "node-helper/guest/address.h"

namespace symvirt::guest {

struct RdmaPort {
  std::string device;  // "mlx5_0", "rxe_eth0"
  int port = 1;
};

// The RDMA port that sends through the interface: of the same PCI function, or a soft device on top
// of it (rxe tells its interface as "parent"). Empty device: none.
RdmaPort rdma_port_of(const std::string& netdev, const std::string& sys = "/sys");

// Why applications cannot use the port yet, in words; empty when they can: ACTIVE, and with the
// GIDs that peers will ask for. RoCE: one for each of the interface's addresses (the kernel makes
// them some time after the address was set). InfiniBand: a LID, which its subnet manager gives.
std::string rdma_not_ready(const RdmaPort& port, const std::vector<Address>& addresses,
                           const std::string& sys = "/sys");

// How many verbs contexts processes have of the device. An unplug waits for each of them, for ever
// when its process does not know. (Queue pairs of the kernel's own are no contexts, and go by
// themselves.)
Result<std::uint64_t> verbs_contexts(const std::string& device);

// The file that a process with a context of the device has open: "/dev/infiniband/uverbs0"; empty:
// none.
std::string verbs_file_of(const std::string& device, const std::string& sys = "/sys");

}  // namespace symvirt::guest
