// guestd.toml. Every key has a default, so that an empty file is a working configuration; an
// unknown key is an error.
#pragma once

#include <string>
#include <vector>

#include "common/log.h"
#include "common/result.h"

namespace symvirt::guest {

struct Config {
  std::string socket = "/run/symvirt/guestd.sock";  // where plugins and tools connect
  std::string state = "/run/symvirt/guestd.json";  // what a restarted guestd has to know; on a file
                                                   // system that a boot empties
  std::string port = "org.symvirt.guest.0";        // name of the virtio-serial port
  std::string port_path;  // the port's device by path instead, or a Unix socket
  std::vector<std::string>
      start_command;  // what guest.start_node runs: program and arguments, no shell
  std::vector<std::string> tolerated_holders;  // names of processes that may hold the device's
                                               // sockets through a move without being asked
  LogLevel log_level = LogLevel::kInfo;
};

// Errors: "file:line:column: key: why".
Result<Config> parse_config(std::string_view text, const std::string& file);
Result<Config> load_config(const std::string& file);

}  // namespace symvirt::guest
