// This machine's node in Slurm, through scontrol (which every slurmd's machine has): draining it
// with a reason of ours, never touching somebody else's.
#pragma once

#include <filesystem>
#include <string>

#include "common/deadline.h"
#include "common/result.h"

namespace symvirt {

inline constexpr char kOurReason[] = "symvirt: ";

struct NodeNow {
  std::string state;            // "IDLE+DRAIN"
  std::string reason;           // without who and when; empty: none
  bool out_of_service() const;  // draining, drained, down, failing
};

// $SLURMD_NODENAME, or the short host name.
std::string own_node_name();

// Whether this machine is a VM of SymVirt's, by what only such a one has. Not by our configuration
// files: an image may be used for both. root: "/" or a test's.
bool in_vm_node(const std::filesystem::path& root);

// From `scontrol -o show node`.
Result<NodeNow> parse_node(const std::string& line);
Result<NodeNow> node_now(const std::string& node, Deadline deadline);

enum class Drained { kNow, kAlready };
// Drains it for `why` (without the prefix). kAlready: it is out of service, and its reason, whoever
// gave it, is left alone.
Result<Drained> drain_node(const std::string& node, const std::string& why, Deadline deadline);

}  // namespace symvirt
