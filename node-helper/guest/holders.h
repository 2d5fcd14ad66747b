// Who uses the devices: processes with sockets over them, and the kernel itself (network mounts).
// For the plan: what is no member of the job would be cut off without having been asked, so the
// plan refuses and names it (docs/design.md, "An evacuation").
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "node-helper/guest/devices.h"

namespace symvirt::guest {

struct Holder {
  std::int32_t pid = 0;  // 0: the kernel
  std::string name;      // of the process, or of what the kernel does
  std::string what;      // "tcp 10.78.0.101:41000->10.78.0.102:1024 and 3 more"
  bool verbs = false;    // has a verbs context: an unplug would wait for it, tolerated or not
  bool member = false;   // or holds nothing that no member holds, too: a child that inherited it
};

// Why the job cannot be moved; nothing when no holder is in the way. tolerated: process names
// (comm) that the site lets be cut off.
std::vector<std::string> refusals(const std::vector<Holder>& holders,
                                  const std::vector<std::string>& tolerated);

// One entry a process. A kind of socket the kernel cannot list (its module is missing) is left out
// with a warning in the log, except TCP, which is an error. members: pids. Reads all of /proc: some
// milliseconds, more with thousands of processes.
Result<std::vector<Holder>> list_holders(const Devices::Reach& reach,
                                         const std::set<std::int32_t>& members,
                                         const std::string& proc = "/proc");
// Only those with a verbs context: the file open, or mapped (a child that was forked has its
// parent's queues in its memory).
Result<std::vector<Holder>> list_verbs_holders(const std::map<std::string, std::string>& files,
                                               const std::string& proc = "/proc");
Json to_json(const Holder& holder);

}  // namespace symvirt::guest
