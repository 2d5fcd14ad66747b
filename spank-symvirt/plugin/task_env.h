// The environment a task of a --symvirt job gets. Set in the task, not at submission: `sbatch
// --export=X=1` would drop it, and MPI would quietly use the management network.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "pmix-hooks/server/guest_protocol.h"

namespace symvirt::plugin {

struct TaskEnvironment {
  std::string hooks;                  // path of libsymvirt_hooks.so
  std::vector<std::string> networks;  // of the passthrough NICs
  std::string quiesce;                // tcp, verbs ...; empty counts as tcp
  bool defaults = true;               // false: only LD_PRELOAD
  std::vector<std::string> rdma;      // RDMA ports, "mlx5_0:1"; empty: any
  bool soft_roce = false;             // one of them is
};

using Lookup = std::function<std::optional<std::string>(const char* name)>;
using Variables = std::vector<std::pair<std::string, std::string>>;

// The variables to set, given what the task has. What the user set stays, but for LD_PRELOAD, which
// is appended to.
Variables task_variables(const TaskEnvironment& environment, const Lookup& lookup);

// What the user set that makes a job of class verbs immovable, or leaves it without a transport: a
// sentence each, for the user. Nothing is changed.
std::vector<std::string> task_warnings(const TaskEnvironment& environment, const Lookup& lookup);

}  // namespace symvirt::plugin
