// The whole C interface of spank_symvirt.so (spank(7)). Each hook is a switch over the context,
// each branch one call.
//
//   sbatch, salloc (allocator), srun (local)   take the options, decide, hand the decision on with
//   the job slurmstepd (remote)                        read the decision; for a --symvirt job:
//   check the VM, hold the task back
//                                              during a transaction, set its environment, run the
//                                              step's agent
//   slurmd, prolog, epilog                     nothing
//
// Jobs that did not ask for VMs: nothing is done, nothing is asked, no error of ours is shown.
//
// Refusals. plugstack.conf lists us as `optional`, and Slurm ignores what an optional plugin
// returns. In a command we exit; in slurmstepd the task exits before its program runs. (An error
// from slurmstepd's init would also drain the node: "batch job complete failure", and a mistaken
// job must not take a host out of service.)
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/log.h"
#include "spank-symvirt/plugin/config.h"
#include "spank-symvirt/plugin/options.h"
#include "spank-symvirt/plugin/stepd.h"

#pragma GCC visibility push(default)  // this interface alone; the rest is built hidden
extern "C" {
#include <slurm/spank.h>
// SPANK_PLUGIN defines constants, which have internal linkage in C++ unless they were declared
// before.
extern const char plugin_name[];
extern const char plugin_type[];
extern const unsigned int plugin_version;
extern const unsigned int spank_plugin_version;
SPANK_PLUGIN(symvirt, 1)
}
#pragma GCC visibility pop

namespace symvirt::plugin {
namespace {

constexpr int kRefusedExit = 126;  // "found, but cannot be run", as shells have it

// One a process: sbatch, srun or a slurmstepd serve one job. Never destroyed (threads, exit order).
struct Plugin {
  Options options;
  Decision decision;
  std::optional<Error> refusal;
  std::unique_ptr<StepdPart> stepd;
};
Plugin& plugin() {
  static auto* const the_plugin = new Plugin;
  return *the_plugin;
}

void slurm_log_sink(LogLevel level, std::string_view message) {
  const std::string text(message);
  switch (level) {
    case LogLevel::kDebug:
      slurm_debug("symvirt: %s", text.c_str());
      return;
    case LogLevel::kInfo:
      slurm_verbose("symvirt: %s", text.c_str());
      return;
    case LogLevel::kWarning:
      slurm_info("symvirt: %s", text.c_str());
      return;
    case LogLevel::kError:
      slurm_error("symvirt: %s", text.c_str());
      return;
  }
}

Result<Config> read_config(int ac, char** av) {
  return parse_config(std::vector<std::string>(av, av + ac));
}

std::optional<std::string> process_environment(const char* name) {
  const char* value = std::getenv(name);
  if (value == nullptr) return std::nullopt;
  return value;
}

Lookup job_environment(spank_t spank) {
  return [spank](const char* name) -> std::optional<std::string> {
    std::vector<char> buffer(4096);
    while (true) {
      const spank_err_t error =
          spank_getenv(spank, name, buffer.data(), static_cast<int>(buffer.size()));
      if (error == ESPANK_SUCCESS) return std::string(buffer.data());
      if (error != ESPANK_NOSPACE || buffer.size() > (8u << 20)) return std::nullopt;
      buffer.resize(buffer.size() * 2);  // LD_PRELOAD and PATH can be long
    }
  };
}

// --- commands ---

int take_option(int id, const char* argument, int remote) {
  if (remote != 0) return 0;  // slurmstepd reads the decision, not the options it came from
  try {
    const Status given = plugin().options.give(static_cast<OptionId>(id), argument);
    if (given) return 0;
    slurm_error("%s", given.error().message.c_str());
  } catch (...) {
  }
  return -1;
}

void register_options(spank_t spank) {
  for (const OptionSpec& spec : option_table()) {
    // Slurm copies the structure; its non-const pointers are not written through.
    spank_option option{const_cast<char*>(spec.name),  const_cast<char*>(spec.arginfo),
                        const_cast<char*>(spec.usage), static_cast<int>(spec.argument),
                        static_cast<int>(spec.id),     take_option};
    spank_option_register(spank, &option);
  }
}

// For job_submit.lua, prolog and epilog (job control) and, as SLURM_SPANK_*, for the steps of an
// srun that makes its own allocation, to which Slurm does not give the job control variables.
void hand_on(spank_t spank, const char* name, const std::string& value) {
  const std::string in_job = std::string(kJobPrefix) + name;
  if (value.empty()) {
    spank_job_control_unsetenv(spank, name);
    unsetenv(in_job.c_str());
    return;
  }
  spank_job_control_setenv(spank, name, value.c_str(), 1);
  setenv(in_job.c_str(), value.c_str(), 1);
}

// Slurm's own variables of the options go the same way; they say the same thing afterwards, whether
// the user gave an option, its twin, or both --symvirt and --no-symvirt. In a step they are what
// the allocation got, and stay.
void hand_on_decision(spank_t spank, const Decision& decision) {
  const std::string timeout =
      decision.quiesce_timeout_s ? std::to_string(*decision.quiesce_timeout_s) : "";
  const std::string ft = decision.wanted() ? std::string(ft_name(decision.ft)) : "";
  hand_on(spank, kControlClass, decision.vm_class);
  hand_on(spank, kControlFt, ft);
  hand_on(spank, kControlTimeout, decision.wanted() ? timeout : "");
  for (const OptionSpec& spec : option_table()) {
    std::string name = std::string("_SLURM_SPANK_OPTION_symvirt_") + spec.name;
    for (char& c : name) c = c == '-' ? '_' : c;
    unsetenv(name.c_str());
    if (spec.id == OptionId::kSymvirt && decision.wanted()) {
      spank_job_control_setenv(spank, name.c_str(), decision.vm_class.c_str(), 1);
    } else {
      spank_job_control_unsetenv(spank, name.c_str());
      // From the allocation: an srun inside this step would take it for its own option.
      unsetenv((kJobPrefix + name).c_str());
    }
  }
}

void decide_in_command(spank_t spank, bool step_possible) {
  const bool step = step_possible && std::getenv("SLURM_JOB_ID") != nullptr;
  Result<Decision> decision = plugin().options.decide(process_environment, step);
  if (!decision) {
    slurm_error("%s", decision.error().message.c_str());
    std::exit(EXIT_FAILURE);  // nothing has been asked of Slurm yet
  }
  plugin().decision = *decision;
  hand_on_decision(spank, *decision);
}

// --- slurmstepd ---

template <typename T>
T job_item(spank_t spank, spank_item_t item) {
  T value{};
  spank_get_item(spank, item, &value);
  return value;
}

hooks::StepIdentity step_identity(spank_t spank) {
  hooks::StepIdentity step;
  step.job = job_item<std::uint32_t>(spank, S_JOB_ID);
  step.step = job_item<std::uint32_t>(spank, S_JOB_STEPID);
  step.uid = job_item<uid_t>(spank, S_JOB_UID);
  step.tasks = job_item<std::uint32_t>(spank, S_JOB_LOCAL_TASK_COUNT);
  step.pid = getpid();
  step.nspace = "slurm.pmix." + std::to_string(step.job) + "." + std::to_string(step.step);
  return step;
}

void prepare_step(spank_t spank, int ac, char** av) {
  Plugin& p = plugin();
  Result<Decision> decision = decision_from_job(job_environment(spank));
  if (!decision) {
    p.refusal = decision.error();
    return;
  }
  p.decision = *decision;
  if (!p.decision.wanted()) return;
  set_log_sink(slurm_log_sink);
  Result<Config> config = read_config(ac, av);
  if (!config) {
    p.refusal = config.error();
    return;
  }
  p.stepd = std::make_unique<StepdPart>(*config, step_identity(spank));
  // Slurm's PMIx server reads this before the tasks are there. With its default, tree, an empty
  // fence is no barrier between nodes, and Open MPI ranks now and then crash in MPI_Init.
  spank_setenv(spank, "SLURM_PMIX_FENCE", "ring", 0);
}

// In the task, as root, before its program. Does not return when the task may not run.
void admit_task(spank_t spank) {
  Plugin& p = plugin();
  Status admitted;
  if (p.refusal) {
    admitted = *p.refusal;
  } else if (p.stepd) {
    int task = 0;
    spank_get_item(spank, S_TASK_ID, &task);
    admitted = p.stepd->admit(static_cast<std::uint32_t>(task));
  }
  if (admitted) return;
  slurm_error("symvirt: task refused: %s", admitted.error().message.c_str());
  _exit(kRefusedExit);
}

void set_task_environment(spank_t spank) {
  const Plugin& p = plugin();
  if (!p.stepd) return;
  std::uint32_t rank = 1;
  if (spank_get_item(spank, S_TASK_GLOBAL_ID, &rank) == ESPANK_SUCCESS &&
      rank == 0) {  // once a step
    for (const std::string& warning :
         task_warnings(p.stepd->task_environment(), job_environment(spank)))
      slurm_error("symvirt: warning: %s", warning.c_str());
  }
  for (const auto& [name, value] :
       task_variables(p.stepd->task_environment(), job_environment(spank))) {
    spank_setenv(spank, name.c_str(), value.c_str(), 1);
  }
}

// No exception may reach Slurm. What fails in a --symvirt task this way is memory, and the task's
// exec would, too.
template <typename F>
int guarded(F&& body) {
  try {
    body();
  } catch (...) {
    return -1;
  }
  return 0;
}

}  // namespace
}  // namespace symvirt::plugin

using symvirt::plugin::guarded;

extern "C" int slurm_spank_init(spank_t spank, int, char**) {
  return guarded([spank] {
    switch (spank_context()) {
      case S_CTX_ALLOCATOR:
      case S_CTX_LOCAL:
      case S_CTX_REMOTE:
        symvirt::plugin::register_options(spank);
        return;
      case S_CTX_SLURMD:
      case S_CTX_JOB_SCRIPT:
      case S_CTX_ERROR:
        return;
    }
  });
}

extern "C" int slurm_spank_init_post_opt(spank_t spank, int ac, char* av[]) {
  return guarded([=] {
    switch (spank_context()) {
      case S_CTX_ALLOCATOR:
        symvirt::plugin::decide_in_command(spank, false);
        return;
      case S_CTX_LOCAL:
        symvirt::plugin::decide_in_command(spank, true);
        return;
      case S_CTX_REMOTE:
        symvirt::plugin::prepare_step(spank, ac, av);
        return;
      case S_CTX_SLURMD:
      case S_CTX_JOB_SCRIPT:
      case S_CTX_ERROR:
        return;
    }
  });
}

// The hooks below are called in slurmstepd only.

extern "C" int slurm_spank_task_init_privileged(spank_t spank, int, char**) {
  return guarded([spank] { symvirt::plugin::admit_task(spank); });
}

extern "C" int slurm_spank_task_init(spank_t spank, int, char**) {
  return guarded([spank] { symvirt::plugin::set_task_environment(spank); });
}

extern "C" int slurm_spank_task_post_fork(spank_t, int, char**) {
  return guarded([] {
    auto& p = symvirt::plugin::plugin();
    if (p.stepd && !p.refusal) p.stepd->start_agent();
  });
}

extern "C" int slurm_spank_exit(spank_t, int, char**) {
  return guarded([] {
    auto& p = symvirt::plugin::plugin();
    if (p.stepd) p.stepd->stop_agent();
  });
}
