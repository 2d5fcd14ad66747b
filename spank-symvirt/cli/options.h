// symvirtctl's command line.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

namespace symvirt {

enum class Command {
  kStatus,
  kList,
  kShow,
  kEvacuate,
  kMigrate,
  kCancel,
  kEvents,
  kDevices,
  kDoctor,
  kCheckConfig,
};

struct CtlOptions {
  Command command = Command::kStatus;
  std::string server;
  std::string config = "/etc/symvirt/symvirtd.toml";
  bool json = false;
  bool all = false;     // list
  std::int64_t id = 0;  // show, cancel
  std::string host;     // evacuate
  std::string vm, to;   // migrate
  bool wait = false;    // evacuate, migrate (unless --no-wait); show --wait
  std::int64_t timeout_s = 0;
  bool follow = false;  // events
  std::int64_t since = 0;
};

// What to print instead of doing something: help, version, or what is wrong with the command line.
struct ParseEnd {
  int exit_code = 0;
  std::string out, err;
};

// Never throws.
std::variant<CtlOptions, ParseEnd> parse_options(const std::vector<std::string>& arguments,
                                                 const std::string& version);

}  // namespace symvirt
