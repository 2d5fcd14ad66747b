// The plugin's arguments in plugstack.conf: key=value words.
//
//   optional /usr/lib/symvirt/spank_symvirt.so guestd_socket=/run/symvirt/guestd.sock
//   enter_timeout=900
//
// A broken line must not touch jobs without --symvirt, so the error is kept and only shown to those
// with it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/result.h"

namespace symvirt::plugin {

struct Config {
  std::string guestd_socket = "/run/symvirt/guestd.sock";
  std::string hooks;    // path of libsymvirt_hooks.so; empty: beside the plugin
  std::string network;  // of the passthrough NIC, "10.78.0.0/24"; empty: as guestd says
  std::uint32_t enter_timeout_s = 900;  // longest time a new step waits for a transaction to end
  std::uint32_t check_timeout_s = 20;   // longest time for guestd's word on the node
  bool environment = true;              // environment=off: no Open MPI defaults for the tasks
};

// Unknown keys are errors that name them.
Result<Config> parse_config(const std::vector<std::string>& words);

}  // namespace symvirt::plugin
