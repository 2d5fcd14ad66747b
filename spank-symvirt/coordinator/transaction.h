// A transaction: one coordinated change to a set of VMs (boot, evacuate, stop), as a fold of
// events.
//
//   apply(tx, event)     the only function that changes a Transaction. Pure: no clock, no I/O;
//   replay uses it unchanged. next_actions(tx)     what has to be done now, a function of the state
//   alone. May be called any number of times; the
//                        same state gives the same actions, and every action is safe to perform
//                        again (docs/protocols.md).
//
// There is one path, and it only goes forward. A VM that cannot be moved is *dropped*: it keeps its
// place, and the tail of the path (attach, link, resume, release) puts right whatever had been done
// to it. Undo is therefore the same code as success:
//
//   plan > acquire > prepare > quiesce > detach > migrate > (locate) > attach > link > resume >
//   release > end boot:    acquire > prepare > start > ready > attach > link > node_start > release
//   > end       (failure: stop > release) stop:    stop > release > end
//
// A phase begins when every VM of the set has finished the one before it: each boundary is a
// barrier for the set. Source of the phases and their undo: docs/design.md, section "An
// evacuation".
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "common/result.h"

namespace symvirt {

enum class TxKind { kBoot, kEvacuate, kStop };

enum class Phase {
  kPlan,       // ask guests who is a member and what would refuse
  kAcquire,    // a launcher job per moving VM, until Slurm has started it on a host
  kPrepare,    // target: lease, device reserved, memory
  kStart,      // boot: domain created
  kReady,      // boot: guestd answers, clock set, configured
  kQuiesce,    // rounds: ranks come to rest
  kDetach,     // guest lets go, device removed
  kMigrate,    // live migration
  kLocate,     // only after a migration that did not report success: ask both hosts
  kAttach,     // device at the place where the VM is now
  kLink,       // driver bound, carrier, addresses
  kNodeStart,  // boot: slurmd may start
  kResume,     // rounds: ranks go on
  kStop,       // stop, or boot that failed: domain gone
  kRelease,    // old launcher ended, reservations given back, notes on the job
  kEnd,
};

enum class Where { kNowhere, kSource, kTarget, kUnknown };
enum class StepStatus { kIdle, kPending, kDone, kFailed };
enum class Outcome { kNone, kDone, kPartial, kRestored, kRefused, kFailed };

// Limits of one transaction, copied into it when it begins so that a replay is not at the mercy of
// a changed configuration.
struct TxPolicy {
  std::int64_t quiesce_ms = 30'000;  // one round, all members answered
  std::int64_t acquire_ms =
      60'000;  // once one VM has a host: how long the others may wait for theirs
  std::int64_t boot_ms = 100'000;     // from the beginning to slurmd in the guest
  std::int64_t step_ms = 30'000;      // any other single call
  std::int64_t migrate_ms = 300'000;  // derived from memory size by whoever begins the transaction
  std::int64_t park_ms = 3'600'000;   // how long a job may stay at rest while we try to go forward
  std::int64_t fence_after_ms =
      30'000;  // a host that does not answer for so long is fenced, where a fence exists
  std::int64_t lease_ms = 60'000;  // ranks resume by themselves when nobody renews for so long
};

// A host that does not answer when it is asked where a VM is.
struct Silence {
  std::int64_t since_ns = 0;  // the first of the looks in a row; 0: it answered last
  int looks = 0;
};

// One VM of the set. Fields up to `failure` are facts; `step` is about the current phase only.
struct VmPart {
  std::string vm;
  std::string vm_class;
  std::vector<std::uint32_t> jobs;  // what runs on it; exclusive partitions: at most one
  bool wanted = false;              // was to move when the transaction began
  bool moving = false;              // still meant to end up on `to`
  std::string from;                 // host it runs on at the beginning; boot: empty
  std::uint32_t from_job = 0;       // launcher job there
  std::string to;
  std::uint32_t to_job = 0;

  // "begun" facts are set before the first attempt, because an unanswered call may have had its
  // effect.
  bool acquire_begun = false;
  bool prepare_begun = false;
  bool rest_begun = false;
  bool detach_begun = false;
  bool start_begun = false;
  Where at = Where::kNowhere;
  bool has_device = false;  // devices attached, link not yet known
  bool linked = false;
  bool more = false;  // its ranks want another round
  std::string waits;  // for what they do, as its guest says
  bool source_fenced = false;
  bool target_fenced = false;
  bool lost = false;  // could not be brought to a place where its ranks can go on: its node is
                      // given back to Slurm as DOWN
  std::string seen_source;  // locate: what the hosts said last
  std::string seen_target;
  Silence source_silence;
  Silence target_silence;
  std::optional<Error> failure;  // why it was dropped (first reason)

  StepStatus status = StepStatus::kIdle;
  int attempt = 1;                 // grows with every repetition that is a new operation
  int tries = 1;                   // grows with every repetition at all
  std::int64_t not_before_ns = 0;  // for a repetition
  std::optional<Error> last_error;
  bool fencing = false;  // the next action is to fence `fence_host`
  std::string fence_host;
  std::int64_t migrate_bytes = 0;  // transferred, as libvirt reported it
  std::int64_t downtime_ms = 0;

  const std::string& host() const { return at == Where::kTarget ? to : from; }
};

struct PhaseTime {
  Phase phase;
  std::int64_t begin_ns = 0;
  std::int64_t end_ns = 0;
};

struct TimeLimit {
  std::uint32_t job = 0;
  std::uint32_t minutes = 0;  // 0: none
};

struct Transaction {
  std::int64_t id = 0;  // also the epoch the guests see
  TxKind kind = TxKind::kEvacuate;
  std::string cause;  // "hv1: drained: memory errors", "symvirtctl migrate", "resume"
  std::vector<std::string> avoid_hosts;  // acquire excludes them
  TxPolicy policy;
  std::vector<VmPart> vms;

  Phase phase = Phase::kPlan;
  int round = 1;  // quiesce and resume
  std::int64_t round_begin_ns = 0;
  nlohmann::json payloads = nlohmann::json::object();  // of the last round, by job and rank
  bool cancel_requested = false;
  bool boot_failed = false;
  bool hopeless =
      false;  // could not be brought forward within park_ms: jobs are given back to Slurm
  std::int64_t phase_begin_ns = 0;
  std::int64_t tried_since_ns = 0;  // patience counts from here: the phase's begin, or a restart
  std::vector<PhaseTime> times;
  std::vector<TimeLimit> time_limits;  // release: of the jobs that rested; worked out once
  std::int64_t begun_ns = 0;
  std::int64_t ended_ns = 0;
  Outcome outcome = Outcome::kNone;
  std::string parked;  // why it waits; empty when it does not

  bool ended() const { return phase == Phase::kEnd; }
  VmPart* find(const std::string& vm);
  const VmPart* find(const std::string& vm) const;
};

enum class EventType {
  kBegun,
  kStepDone,
  kStepFailed,
  kCancel,
  kRecovered,  // a coordinator that was started took it up again
};

// Everything a transaction ever learns. Journaled before it is applied.
struct Event {
  EventType type = EventType::kBegun;
  std::int64_t tx = 0;
  std::int64_t time_ns = 0;          // Unix; only for durations and back-off
  std::optional<Transaction> begun;  // kBegun
  // kStepDone, kStepFailed: which step it is the answer of. A stale one (other phase, round or try)
  // changes nothing.
  std::string vm;
  Phase phase = Phase::kPlan;
  int round = 1;
  int tries = 1;
  nlohmann::json result;       // kStepDone
  std::optional<Error> error;  // kStepFailed
  bool final = false;          // kStepFailed: do not try again, whatever the phase's patience
};

struct Action {
  std::int64_t tx = 0;
  Phase phase = Phase::kPlan;
  std::string vm;
  int round = 1;
  int attempt = 1;
  int tries = 1;
  bool fence = false;  // fence vm's fence_host instead of the phase's own work
  bool abort = false;  // migrate: end the running migration instead
  std::int64_t not_before_ns = 0;

  // Identifies the operation towards noded: the same for repetitions whose effect is to happen
  // once.
  std::string op() const;
  // Identifies this performance of it, so that the engine does not start it twice.
  std::string key() const;
};

void apply(std::optional<Transaction>& tx, const Event& event);
std::vector<Action> next_actions(const Transaction& tx);
// Waits that no call ends by itself: a VM whose launcher job stays pending while others of the set
// have their host. The events it returns are journaled and applied like any other.
std::vector<Event> overdue(const Transaction& tx, std::int64_t now_ns);

// The journal's form. from_json refuses what it cannot read in full, naming the field.
nlohmann::json to_json(const Transaction& tx);
nlohmann::json to_json(const Event& event);
Result<Transaction> transaction_from_json(const nlohmann::json& j);
Result<Event> event_from_json(const nlohmann::json& j);

// From the beginning of quiesce to the end of resume; 0: the ranks never rested.
std::int64_t pause_ns(const Transaction& tx);

std::string_view name_of(TxKind kind);
std::string_view name_of(Phase phase);
std::string_view name_of(Outcome outcome);
std::string_view name_of(Where where);
std::optional<Phase> phase_from_name(std::string_view name);

}  // namespace symvirt
