// One process of a step, as /proc and a pidfd show it.
//
// Holding is SIGSTOP, not the cgroup freezer: the freezer stops a whole cgroup, that is also the
// ranks that have not answered yet, its place in the tree differs between cgroup v1, v2 and Slurm's
// settings (none at all with proctrack/linuxproc), and Slurm itself owns and thaws it (scontrol
// suspend). SIGSTOP holds exactly the process that answered, cannot be caught or blocked, needs no
// configuration, and SIGKILL still ends the job. Its price: whoever may signal the process may
// continue it; the core therefore stops every held rank again in each further round, and somebody
// who waits with WUNTRACED (an interactive shell; not slurmstepd, not a script) sees it.
#pragma once

#include <cstdint>

#include "common/result.h"
#include "common/unique_fd.h"

namespace symvirt::hooks {

enum class StopProgress { kRunning, kStopped, kGone };

class Process {
 public:
  // kNotFound when it does not exist. The pidfd pins the identity: signals never reach a later
  // process of that pid.
  static Result<Process> open(std::int32_t pid);

  std::int32_t pid() const { return pid_; }
  // poll(2) for reading: readable when it has ended.
  int fd() const { return fd_.get(); }
  // kNotFound: it has ended already.
  Status signal(int number) const;
  // kStopped when every thread is: a SIGSTOP takes effect in each of them only when it next leaves
  // the kernel.
  StopProgress stop_progress() const;
  // Real uid as given, and `ancestor` among its parents. A daemonized process (its parent ended) is
  // no descendant.
  bool belongs_to(std::int32_t ancestor, std::uint32_t uid) const;

 private:
  Process(std::int32_t pid, UniqueFd fd) : pid_(pid), fd_(std::move(fd)) {}
  std::int32_t pid_;
  UniqueFd fd_;
};

}  // namespace symvirt::hooks
