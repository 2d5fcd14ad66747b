// Which of two hosts has a VM after a migration that did not report success, from what both say
// (docs/recovery.md has the table). Pure functions.
#pragma once

#include <string>

#include "spank-symvirt/coordinator/transaction.h"

namespace symvirt {

struct Located {
  Where where = Where::kUnknown;
  std::string ask_fence;  // the host whose silence keeps it undecided
  std::string why;
};

// A VM that was seen between two states is helped on; the next look decides.
enum class Help {
  kNone,
  kAbortMigration,  // of the source: nobody waits for it any more
  kResumeAtSource,  // it was left paused there
  kEndLeftover,     // of the target: a copy that never came to run
};

// Takes down what the hosts said at one look: "unknown" is a host that did not answer.
void note_look(VmPart& vm, const std::string& source, const std::string& target, std::int64_t now);
Located locate(const VmPart& vm);
// `host`, one of the VM's two, has not answered for as long as it takes to fence it, and more than
// once: one lost answer is no silence, nor is the time in which nobody asked.
bool silent_for_long(const VmPart& vm, const std::string& host, std::int64_t fence_after_ms,
                     std::int64_t now);
Help help_for(const VmPart& vm);

}  // namespace symvirt
