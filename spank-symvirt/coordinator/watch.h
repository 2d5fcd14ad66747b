// What should happen next, from what Slurm and the hosts show: a pure function of one look at the
// world. The daemon looks every poll_ms, decides, and carries the decisions out; nothing is
// remembered between two looks but the transactions themselves.
//
// What a drain does to each VM on the host (docs/design.md): running a job: evacuated with all VMs
// of that job's closure; idle: powered down; booting or completing: looked at again later; job with
// ft=none: left, and the reason shown.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "spank-symvirt/coordinator/config.h"
#include "spank-symvirt/coordinator/engine.h"
#include "spank-symvirt/coordinator/slurm_api.h"

namespace symvirt {

struct HostSeen {
  bool answered = false;
  std::int64_t asked_ns = 0;               // the answer says nothing of what happened after that
  std::map<std::string, std::string> vms;  // name -> state, of VMs that are there
};

struct View {
  const Config* config = nullptr;
  const std::vector<NodeInfo>* nodes = nullptr;
  const std::vector<JobInfo>* jobs = nullptr;
  const std::map<std::string, VmRecord>* vms = nullptr;
  const std::map<std::int64_t, Transaction>* transactions = nullptr;
  const std::map<std::string, HostSeen>* hosts =
      nullptr;  // what each host said last; may be incomplete
  std::int64_t now_ns = 0;
  std::uint32_t own_uid = 0;  // who submits launcher jobs

  const NodeInfo* node(const std::string& name) const;  // nullptr: Slurm does not know it
  bool up(const std::string& vm) const;
  const Transaction* live_with(const std::string& vm) const;
  std::vector<const JobInfo*> jobs_on(const std::string& vm) const;  // that have begun
};

struct Decision {
  enum class Kind {
    kBegin,         // tx
    kCancel,        // id
    kPowerDown,     // node
    kDrainNode,     // node, reason
    kResumeNode,    // node
    kVmLost,        // node, reason
    kLauncherLost,  // node: the VM; host, reason
    kGiveBack,      // node, reason: its job is given back to Slurm, its transaction goes on
  };
  Kind kind;
  Transaction tx = {};
  std::int64_t id = 0;
  std::string node = {};
  std::string reason = {};
  std::string host = {};
};

struct Decisions {
  std::vector<Decision> list;
  // Why something that should move is left alone; for symvirtctl status and the log. VM -> reason.
  std::map<std::string, std::string> notes;
};

Decisions decide(const View& view);

// The transaction that moves `vms` (all of them up) and lets the others of their jobs rest.
// kPrecondition, with the reason, when one of the closure is busy, completing, or not to be moved.
Result<Transaction> plan_evacuation(const View& view, const std::set<std::string>& moving,
                                    const std::string& cause);

Transaction stop_of(const View& view, const VmRecord& record, const std::string& cause);

// Of nodes that the capacity rule drained, and (with ": ...") of those whose boot found no host.
inline constexpr const char* kNoHostReason = "symvirt: no host";
inline constexpr const char* kDrainCause = "drain of ";

}  // namespace symvirt
