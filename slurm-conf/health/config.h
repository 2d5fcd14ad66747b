// health.toml: what symvirt-health looks at and what it takes for failing. docs/man/health.toml.5
// is the manual.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/result.h"

namespace symvirt::health {

inline constexpr char kDefaultConfig[] = "/etc/symvirt/health.toml";

struct MemoryLimits {
  bool enabled = true;
  std::uint64_t corrected = 100;  // errors within the window; more is failing
  std::uint64_t uncorrected = 0;
};

enum class PortKind { kNet, kInfiniband };

struct Port {
  PortKind kind = PortKind::kNet;
  std::string device;             // "ens1f0np0", "mlx5_0"
  std::uint32_t port = 1;         // infiniband only
  bool link_up = true;            // whether it has to be
  std::int64_t down_ms = 30'000;  // a link that is down for less is not failing
  bool may_be_absent = true;      // a function that was given to a VM is not there
  std::uint64_t errors = 1000;    // of each counter within the window; more is failing
  std::uint64_t link_changes = 20;
  std::vector<std::string> counters;  // empty in the file: the kind's (default_counters)
};
std::vector<std::string> default_counters(PortKind kind);

struct SiteChecks {
  std::string folder = "/etc/symvirt/health.d";
  std::int64_t timeout_ms = 20'000;
};

struct Config {
  std::string state_file = "/var/lib/symvirt/health.json";
  std::int64_t window_ms = 3'600'000;  // over which errors are counted
  MemoryLimits memory;
  std::vector<Port> ports;
  SiteChecks checks;
};

// kInvalidArgument: "file:line:column: what". kNotFound: there is no such file.
Result<Config> load_config(const std::string& path);
Result<Config> parse_config(const std::string& text, const std::string& path);

}  // namespace symvirt::health
