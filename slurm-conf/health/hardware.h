// What the kernel says about memory (EDAC) and about the ports whose functions are given to VMs,
// below a root that tests choose.
#pragma once

#include <string>
#include <vector>

#include "slurm-conf/health/config.h"
#include "slurm-conf/health/history.h"

namespace symvirt::health {

// One finding: "memory" and "mc0: 230 corrected errors within 60 min, limit 100".
struct Failure {
  std::string check;
  std::string reason;
};

// Both read files of at most a line, which do not block. root: "/sys" or a test's copy of it.
std::vector<Failure> check_memory(const MemoryLimits& limits, std::int64_t window_ms,
                                  const std::string& root, History& history);
std::vector<Failure> check_port(const Port& port, std::int64_t window_ms, const std::string& root,
                                History& history);

}  // namespace symvirt::health
