// What the plugin does for a --symvirt job in slurmstepd, inside the VM. Slurm's types stay in
// plugin.cc.
#pragma once

#include <memory>
#include <string>

#include "common/result.h"
#include "pmix-hooks/server/guest_protocol.h"
#include "pmix-hooks/server/step_agent.h"
#include "spank-symvirt/plugin/config.h"
#include "spank-symvirt/plugin/task_env.h"

namespace symvirt::plugin {

// Batch script, extern step and the like (SLURM_BATCH_SCRIPT ... in slurm.h): no PMIx server, and
// no step to register.
inline constexpr std::uint32_t kFirstSpecialStep = 0xfffffff0u;

class StepdPart {
 public:
  StepdPart(Config config, hooks::StepIdentity step)
      : config_(std::move(config)), step_(std::move(step)) {}

  // In each task, as root, before its program: waits until no transaction holds new tasks back,
  // then asks whether this is a healthy VM for the job (in that order: during a move the device is
  // away). The error is in the user's words.
  Status admit(std::uint32_t task);
  // hooks library beside the plugin unless configured.
  TaskEnvironment task_environment() const;
  // Once, when all tasks are forked. Problems are logged: the step runs on, and is refused a move.
  void start_agent();
  void stop_agent() { agent_.reset(); }

 private:
  Status enter(std::uint32_t task) const;
  Status check_node();

  const Config config_;
  const hooks::StepIdentity step_;
  hooks::NodeCheck check_;  // set by admit(), so in the task only
  std::unique_ptr<hooks::StepAgent> agent_;
};

// The hooks library in the folder this object was loaded from.
std::string hooks_beside_plugin();

}  // namespace symvirt::plugin
