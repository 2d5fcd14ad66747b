// VM nodes that Slurm wants up (ResumeProgram), until a boot has been begun for each. Not
// journaled: after a restart the wishes are found again in Slurm's own node states.
//
// One thread (the daemon's loop).
#pragma once

#include <map>
#include <string>
#include <vector>

#include "spank-symvirt/coordinator/watch.h"

namespace symvirt {

class ResumeWishes {
 public:
  // Asked for again while it is wished for, or being booted, is asked once: symvirt-resume repeats
  // a call whose answer was lost.
  void add(const std::string& vm, std::int64_t now_ns) { since_ns_.try_emplace(vm, now_ns); }
  void remove(const std::string& vm) { since_ns_.erase(vm); }

  // What to begin now: boots, and stops of VMs that still run where Slurm takes the node for off
  // and wants it fresh. A stopped one is booted by a later call.
  std::vector<Transaction> take(const View& view);

 private:
  void adopt(const View& view);

  bool adopted_ = false;
  std::map<std::string, std::int64_t> since_ns_;
};

}  // namespace symvirt
