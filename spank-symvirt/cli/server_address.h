// Where symvirtd is. The envelope of a request names the machine it is for (docs/protocols.md
// section 1), so besides an address to connect to, its short host name is needed.
// Threads: free functions; find_server() reads files and asks the resolver.
#pragma once

#include <sys/types.h>

#include <functional>
#include <optional>
#include <string>

#include "common/result.h"

namespace symvirt {

inline constexpr int kSymvirtdPort = 6820;

struct ServerAddress {
  std::string host;     // short name, as symvirtd's machine calls itself
  std::string address;  // what to connect to
  int port = kSymvirtdPort;
};

std::string short_host_name();

// "HOST" or "HOST:PORT". A loopback name or address is this machine; another IPv4 address needs the
// name that belongs to it: `name_of_address` finds it or returns nothing. kInvalidArgument.
using NameOfAddress = std::function<std::string(const std::string& address)>;
Result<ServerAddress> parse_server(const std::string& text, const std::string& own_name,
                                   const NameOfAddress& name_of_address);

// [control] listen of symvirtd.toml: symvirtd runs on this machine, there. An unspecified address
// (0.0.0.0) is reached through loopback.
Result<ServerAddress> server_from_config(const std::string& toml, const std::string& path,
                                         const std::string& own_name);

// `flag` (--server), else $SYMVIRTD_SERVER, else the configuration file, else an error that says
// what to do.
Result<ServerAddress> find_server(const std::string& flag, const std::string& config_path);

// SlurmUser of slurm.conf's text; "root" when it is not there, as in Slurm.
std::string slurm_user_of(const std::string& slurm_conf);

// Whose answers are believed: root's and those of Slurm's own user, as $SLURM_CONF,
// /etc/slurm/slurm.conf or the copy that slurmd keeps of it names that user.
std::function<bool(uid_t)> trusted_repliers();

}  // namespace symvirt
