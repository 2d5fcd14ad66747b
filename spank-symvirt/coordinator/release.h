// The end of the way for one VM: what is given back where, who is told what. Pure functions of
// (transaction, action); the Executor carries it out.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "spank-symvirt/coordinator/calls.h"

namespace symvirt {

struct ReleaseWork {
  std::vector<Call> calls;          // devices at the places the VM does not live in
  std::vector<std::string> tags;    // prefixes: launcher jobs of this transaction that hold nothing
  std::vector<std::uint32_t> jobs;  // launcher jobs of earlier ones
  std::vector<std::uint32_t> noted;  // jobs to be told
  std::string note;
  std::string down_reason;  // of the VM's node; empty: it stays as it is
};

ReleaseWork release_work(const Context& c);
// Of the jobs that `work` is to tell: those whose ranks rested and whose new time limit is not in
// the journal yet. It is worked out once, so that a repetition does not give the pause twice.
std::vector<std::uint32_t> limits_to_work_out(const Transaction& tx, const ReleaseWork& work);
// Whole minutes, as Slurm counts: a job is not to lose a part of one to us.
std::uint32_t pause_minutes(const Transaction& tx);

// Comment of a launcher job: which attempt of which transaction it is.
std::string launcher_tag(std::int64_t tx, const std::string& vm, int attempt);

}  // namespace symvirt
