// What symvirt-launcher does: holds what Slurm gave its job for one VM, tells symvirt-noded of it,
// and ends when the VM has left this host. It is not QEMU's parent: ending it does not end the VM.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "node-helper/protocol/rpc.h"

namespace symvirt {

using Variables = std::function<std::string(const char* name)>;  // empty: not set

// Slurm's numbers: "8", "4,5,7-9". Nothing when it is not a list.
std::vector<int> parse_cpu_list(const std::string& text);

// The NUMA node all of `cpus` belong to, by `sysfs`/node<N>/cpulist; -1: several, or not known.
int numa_node_of(const std::vector<int>& cpus,
                 const std::string& sysfs = "/sys/devices/system/node");

// lease.open's parameters (docs/protocols.md section 1). Slurm tells a job nothing of a GRES that
// has no device files: it counts, and noded picks the devices.
nlohmann::json lease_of(const std::string& vm, std::uint32_t job, const std::vector<int>& cpus,
                        const Variables& variables);

struct LauncherWorld {
  // lease.open with the parameters; kept open until the VM has left.
  std::function<Result<nlohmann::json>(const nlohmann::json& lease, const RpcProgress& progress)>
      open;
  std::function<void(std::chrono::milliseconds)> sleep;
};

// Until the VM has left: its reason. While noded does not answer, or refuses for a cause that may
// pass (another launcher still has the lease, munged restarts), it tries again, for as long as
// Slurm lets it: the VM may be alive all the while, and a launcher that ends gives its host to
// others. kInvalidArgument ends it: asking again would not help.
Result<std::string> hold(const nlohmann::json& lease, const LauncherWorld& world);

}  // namespace symvirt
