#include "spank-symvirt/coordinator/transaction.h"

#include <fmt/format.h>

#include <algorithm>

#include "spank-symvirt/coordinator/json_access.h"
#include "spank-symvirt/coordinator/locate.h"
#include "spank-symvirt/coordinator/phases.h"

namespace symvirt {
namespace {

constexpr std::int64_t kMs = 1'000'000;
constexpr std::int64_t kFirstBackoffMs = 200;
constexpr int kEagerRounds = 8;  // more are asked for by ranks that wait for something

void drop(VmPart& vm, const Error& why) {
  vm.moving = false;
  if (!vm.failure) vm.failure = why;
}

void drop_all(Transaction& tx, const Error& why) {
  for (VmPart& vm : tx.vms) {
    if (vm.moving) drop(vm, why);
  }
}

std::int64_t backoff_ns(Phase phase, int earlier_tries) {
  return std::min(kFirstBackoffMs << std::min(earlier_tries, 6), longest_backoff_ms(phase)) * kMs;
}

void begin_step(const Transaction& tx, VmPart& vm, std::int64_t now) {
  vm.status = StepStatus::kPending;
  vm.attempt = 1;
  vm.tries = 1;
  const int late = tx.round - kEagerRounds;
  vm.not_before_ns = late > 0 ? now + backoff_ns(tx.phase, late - 1) : 0;
  vm.more = false;
  vm.waits.clear();
  vm.last_error.reset();
  vm.fencing = false;
  vm.source_silence = vm.target_silence = {};
  switch (tx.phase) {
    case Phase::kAcquire:
      vm.acquire_begun = true;
      break;
    case Phase::kPrepare:
      vm.prepare_begun = true;
      break;
    case Phase::kStart:
      vm.start_begun = true;
      break;
    case Phase::kQuiesce:
      vm.rest_begun = true;
      break;
    case Phase::kDetach:
      vm.detach_begun = true;
      vm.has_device = false;
      vm.linked = false;
      break;
    case Phase::kStop:
      // Until it has been answered: an unanswered start may have had its effect.
      if (tx.kind == TxKind::kBoot) vm.at = Where::kTarget;
      break;
    case Phase::kPlan:
    case Phase::kReady:
    case Phase::kMigrate:
    case Phase::kLocate:
    case Phase::kAttach:
    case Phase::kLink:
    case Phase::kNodeStart:
    case Phase::kResume:
    case Phase::kRelease:
    case Phase::kEnd:
      break;
  }
}

void enter(Transaction& tx, Phase phase, int round, std::int64_t now) {
  tx.phase = phase;
  tx.round = round;
  tx.round_begin_ns = now;
  tx.parked.clear();
  if (round == 1) tx.phase_begin_ns = tx.tried_since_ns = now;
  bool work = false;
  for (VmPart& vm : tx.vms) {
    vm.status = StepStatus::kIdle;
    if (!participates(tx, phase, vm)) continue;
    begin_step(tx, vm, now);
    work = true;
  }
  if (work && round == 1) tx.times.push_back({phase, now, 0});
  if (phase == Phase::kEnd) {
    tx.ended_ns = now;
    tx.outcome = outcome_of(tx);
  }
}

bool all_settled(const Transaction& tx) {
  return std::none_of(tx.vms.begin(), tx.vms.end(),
                      [](const VmPart& v) { return v.status == StepStatus::kPending; });
}

const VmPart* first_failed(const Transaction& tx) {
  auto it = std::find_if(tx.vms.begin(), tx.vms.end(),
                         [](const VmPart& v) { return v.status == StepStatus::kFailed; });
  return it == tx.vms.end() ? nullptr : &*it;
}

Error reason_of(const VmPart& vm) {
  return vm.last_error ? vm.last_error->with(vm.vm)
                       : Error{Code::kInternal, vm.vm + ": failed without a reason"};
}

void drop_bound(Transaction& tx, const VmPart& failed) {
  const Error why = reason_of(failed);
  for (const std::string& name : bound_to(tx, failed)) {
    if (VmPart* vm = tx.find(name); vm->moving) drop(*vm, why);
  }
}

// Consequences of failures for the whole set, when every VM has finished the phase.
void judge(Transaction& tx) {
  if (first_failed(tx) == nullptr) return;
  switch (tx.phase) {
    case Phase::kPlan:
    case Phase::kQuiesce:  // one job, one decision; but a job of somebody else is not kept by it
      for (const VmPart& vm : tx.vms) {
        if (vm.status == StepStatus::kFailed) drop_bound(tx, vm);
      }
      break;
    case Phase::kAcquire:
    case Phase::kPrepare:
    case Phase::kDetach:
      for (VmPart& vm : tx.vms) {
        if (vm.status == StepStatus::kFailed) drop(vm, *vm.last_error);
      }
      if (tx.kind == TxKind::kBoot) tx.boot_failed = true;
      break;
    case Phase::kStart:
    case Phase::kReady:
    case Phase::kNodeStart:
      tx.boot_failed = true;
      break;
    case Phase::kAttach:
    case Phase::kLink:
    case Phase::kResume:
    case Phase::kLocate:
      (tx.kind == TxKind::kBoot ? tx.boot_failed : tx.hopeless) = true;
      for (VmPart& vm : tx.vms) vm.lost = vm.lost || vm.status == StepStatus::kFailed;
      break;
    case Phase::kMigrate:
    case Phase::kStop:
    case Phase::kRelease:
    case Phase::kEnd:
      break;
  }
  for (VmPart& vm : tx.vms) {
    if (vm.status == StepStatus::kFailed && !vm.failure) vm.failure = vm.last_error;
  }
}

// Cancelling is simply not wanting to move any more; what had been begun is put right by the tail
// of the path.
void give_up_moving(Transaction& tx) {
  const Error why{Code::kCancelled, "cancelled by request"};
  for (VmPart& vm : tx.vms) {
    if (vm.moving && vm.at == Where::kSource) drop(vm, why);
  }
  // A VM that is up already is no failed boot: whoever cancelled it has it stopped (watch.cc).
  if (tx.kind == TxKind::kBoot && is_before(tx.kind, tx.phase, Phase::kStop)) tx.boot_failed = true;
}

bool wants_more(const Transaction& tx, const VmPart& vm) {
  return vm.more && vm.status == StepStatus::kDone && participates(tx, tx.phase, vm);
}

// Ranks that ask for another round for ever must not rest for ever.
void end_rounds(Transaction& tx, std::int64_t now) {
  const std::int64_t limit_ms =
      tx.phase == Phase::kQuiesce ? tx.policy.quiesce_ms : tx.policy.park_ms;
  if (now - tx.tried_since_ns < limit_ms * kMs) return;
  for (VmPart& vm : tx.vms) {
    if (!wants_more(tx, vm)) continue;
    vm.status = StepStatus::kFailed;
    vm.last_error =
        Error{Code::kDeadline,
              fmt::format("ranks still want another round after {} s ({} "
                          "rounds){}",
                          limit_ms / 1000, tx.round, vm.waits.empty() ? "" : ": " + vm.waits)};
  }
}

void settle(Transaction& tx, std::int64_t now) {
  while (tx.phase != Phase::kEnd && all_settled(tx)) {
    const bool rounds = tx.phase == Phase::kQuiesce || tx.phase == Phase::kResume;
    if (rounds) end_rounds(tx, now);
    judge(tx);
    const bool more = std::any_of(tx.vms.begin(), tx.vms.end(),
                                  [&](const VmPart& v) { return wants_more(tx, v); });
    const bool others_go_on = tx.phase == Phase::kQuiesce && any_moving(tx);
    if (rounds && more && (first_failed(tx) == nullptr || others_go_on)) {
      enter(tx, tx.phase, tx.round + 1, now);
      continue;
    }
    if (!tx.times.empty() && tx.times.back().phase == tx.phase && tx.times.back().end_ns == 0) {
      tx.times.back().end_ns = now;
    }
    if (tx.cancel_requested) give_up_moving(tx);
    enter(tx, phase_after(tx.kind, tx.phase), 1, now);
  }
}

void again(const Transaction& tx, VmPart& vm, std::int64_t now, bool new_operation) {
  vm.not_before_ns = now + backoff_ns(tx.phase, vm.tries - 1);
  vm.tries += 1;
  vm.attempt += new_operation;
}

bool being_fenced(const Transaction& tx, const std::string& host) {
  return std::any_of(tx.vms.begin(), tx.vms.end(),
                     [&](const VmPart& v) { return v.fencing && v.fence_host == host; });
}

void on_located(Transaction& tx, VmPart& vm, const nlohmann::json& seen, std::int64_t now) {
  note_look(vm, text_of(seen, "source"), text_of(seen, "target"), now);
  const Located found = locate(vm);
  if (found.where == Where::kUnknown) {
    tx.parked = found.why;
    vm.last_error = Error{Code::kUnavailable, found.why};
    vm.fence_host = found.ask_fence;
    vm.fencing = !found.ask_fence.empty() && !being_fenced(tx, found.ask_fence) &&
                 silent_for_long(vm, found.ask_fence, tx.policy.fence_after_ms, now);
    again(tx, vm, now,
          true);  // a look has no effect of its own; what helps the VM on is new each time
    return;
  }
  vm.at = found.where;
  vm.status = StepStatus::kDone;
  if (found.where == Where::kTarget) {
    vm.moving = true;
    return;
  }
  drop(vm, vm.last_error.value_or(Error{Code::kInternal, "migration failed"}));
  if (found.where == Where::kNowhere) {
    vm.last_error = Error{Code::kInternal, found.why};
    vm.failure = vm.last_error;
    vm.status = StepStatus::kFailed;
  }
}

void collect_round(Transaction& tx, VmPart& vm, const nlohmann::json& result) {
  vm.more = flag_of(result, "more");
  vm.waits = text_of(result, "waits");
  auto answers = result.find("answers");
  if (answers == result.end() || !answers->is_array() || vm.jobs.empty()) return;
  for (const nlohmann::json& answer : *answers) {
    if (!answer.is_object() || !answer.contains("payload")) continue;
    // With the process: a rank may be several (a script that starts verbs programs). With the job:
    // jobs that share a VM rest together.
    const std::string process =
        fmt::format("{}.{}.{}.{}", vm.jobs.front(), number_of(answer, "step"),
                    number_of(answer, "rank"), number_of(answer, "pid"));
    tx.payloads[process] = answer["payload"];
  }
}

std::string refusals(const nlohmann::json& plan) {
  std::string why;
  auto list = plan.find("refusals");
  if (list == plan.end() || !list->is_array()) return why;
  for (const nlohmann::json& r : *list)
    why += (why.empty() ? "" : "; ") + (r.is_string() ? r.get<std::string>() : r.dump());
  return why;
}

// The step is still pending: hosts are asked again, and the fenced one now counts as absent.
void on_fenced(Transaction& tx, VmPart& vm) {
  for (VmPart& other : tx.vms) {
    other.source_fenced = other.source_fenced || other.from == vm.fence_host;
    other.target_fenced = other.target_fenced || other.to == vm.fence_host;
  }
  vm.fencing = false;
  vm.not_before_ns = 0;
  vm.tries += 1;
}

void on_done(Transaction& tx, VmPart& vm, const Event& event) {
  const nlohmann::json& result = event.result;
  if (vm.fencing) return on_fenced(tx, vm);
  if (tx.phase == Phase::kLocate) return on_located(tx, vm, result, event.time_ns);
  vm.status = StepStatus::kDone;
  switch (tx.phase) {
    case Phase::kPlan:
      if (const std::string why = refusals(result); !why.empty()) {
        vm.last_error = Error{Code::kRefused, why};
        vm.status = StepStatus::kFailed;
      }
      break;
    case Phase::kAcquire:
      vm.to = text_of(result, "host");
      vm.to_job = static_cast<std::uint32_t>(number_of(result, "job_id"));
      break;
    case Phase::kStart:
      vm.at = Where::kTarget;
      break;
    case Phase::kQuiesce:
    case Phase::kResume:
      collect_round(tx, vm, result);
      break;
    case Phase::kMigrate:
      vm.at = Where::kTarget;
      vm.migrate_bytes = number_of(result, "transferred_bytes");
      vm.downtime_ms = number_of(result, "downtime_ms");
      break;
    case Phase::kAttach:
      vm.has_device = true;
      break;
    case Phase::kLink:
      vm.linked = true;
      break;
    case Phase::kStop:
      vm.at = Where::kNowhere;
      break;
    case Phase::kRelease:
      for (const nlohmann::json& limit : objects_of(result, "time_limits")) {
        tx.time_limits.push_back({static_cast<std::uint32_t>(number_of(limit, "job")),
                                  static_cast<std::uint32_t>(number_of(limit, "minutes"))});
        vm.status = StepStatus::kPending;  // now they can be set
      }
      vm.tries += vm.status == StepStatus::kPending;
      break;
    case Phase::kPrepare:
    case Phase::kReady:
    case Phase::kDetach:
    case Phase::kLocate:
    case Phase::kNodeStart:
    case Phase::kEnd:
      break;
  }
}

void on_failed(Transaction& tx, VmPart& vm, const Event& event) {
  const Error error = event.error.value_or(Error{Code::kInternal, "failed without a reason"});
  vm.last_error = error;
  if (vm.fencing) {  // no fence agent, or it failed: stay parked and look again
    vm.fencing = false;
    tx.parked = error.message;
    return again(tx, vm, event.time_ns, false);
  }
  // Slurm's ResumeTimeout runs from the beginning of a boot, whatever the time goes into.
  const bool booting = tx.kind == TxKind::kBoot && is_before(tx.kind, tx.phase, Phase::kStop);
  const std::int64_t spent = event.time_ns - (booting ? tx.begun_ns : tx.tried_since_ns);
  const bool cancelled_migration = tx.phase == Phase::kMigrate && tx.cancel_requested;
  if (spent < patience_ns(tx, error) && !cancelled_migration && !event.final) {
    const bool at_rest = tx.phase == Phase::kAttach || tx.phase == Phase::kLink ||
                         tx.phase == Phase::kResume || tx.phase == Phase::kLocate;
    if (at_rest && vm.tries >= 3) tx.parked = error.message;
    // After a plain failure the operation is a new one; after silence it is the same one, asked
    // about again.
    return again(tx, vm, event.time_ns, !error.unknown_effect());
  }
  if (tx.phase == Phase::kMigrate) {  // whatever it says, both hosts are asked
    vm.status = StepStatus::kDone;
    vm.at = Where::kUnknown;
    return;
  }
  vm.status = StepStatus::kFailed;
}

void on_cancel(Transaction& tx, std::int64_t now) {
  tx.cancel_requested = true;
  const Error why{Code::kCancelled, "cancelled by request"};
  if (tx.phase != Phase::kAcquire)
    return;  // other phases end by themselves; settle() looks at the request then
  drop_all(tx, why);
  for (VmPart& vm : tx.vms) {
    if (vm.status != StepStatus::kPending) continue;
    vm.last_error = why;
    vm.status = StepStatus::kFailed;
  }
  settle(tx, now);
}

// Nothing was tried while the coordinator was away: patience begins anew, and what a host did not
// answer before says nothing now.
void on_recovered(Transaction& tx, std::int64_t now) {
  tx.tried_since_ns = now;
  for (VmPart& vm : tx.vms) {
    vm.not_before_ns = 0;
    vm.fencing = false;
    vm.source_silence = vm.target_silence = {};
  }
}

}  // namespace

VmPart* Transaction::find(const std::string& name) {
  auto it = std::find_if(vms.begin(), vms.end(), [&](const VmPart& v) { return v.vm == name; });
  return it == vms.end() ? nullptr : &*it;
}

const VmPart* Transaction::find(const std::string& name) const {
  return const_cast<Transaction*>(this)->find(name);
}

void apply(std::optional<Transaction>& tx, const Event& event) {
  switch (event.type) {
    case EventType::kBegun:
      tx = event.begun;
      if (!tx) return;
      tx->begun_ns = event.time_ns;
      enter(*tx, first_phase(tx->kind), 1, event.time_ns);
      settle(*tx, event.time_ns);
      return;
    case EventType::kCancel:
      if (tx && !tx->ended()) on_cancel(*tx, event.time_ns);
      return;
    case EventType::kRecovered:
      if (tx && !tx->ended()) on_recovered(*tx, event.time_ns);
      return;
    case EventType::kStepDone:
    case EventType::kStepFailed: {
      if (!tx || tx->ended() || event.phase != tx->phase || event.round != tx->round) return;
      VmPart* vm = tx->find(event.vm);
      if (vm == nullptr || vm->status != StepStatus::kPending || vm->tries != event.tries) return;
      if (event.type == EventType::kStepDone) {
        on_done(*tx, *vm, event);
      } else {
        on_failed(*tx, *vm, event);
      }
      settle(*tx, event.time_ns);
      return;
    }
  }
}

std::vector<Action> next_actions(const Transaction& tx) {
  std::vector<Action> actions;
  for (const VmPart& vm : tx.vms) {
    if (vm.status != StepStatus::kPending) continue;
    Action action;
    action.tx = tx.id;
    action.phase = tx.phase;
    action.vm = vm.vm;
    action.round = tx.round;
    action.attempt = vm.attempt;
    action.tries = vm.tries;
    action.fence = vm.fencing;
    action.abort = tx.phase == Phase::kMigrate && tx.cancel_requested;
    action.not_before_ns = vm.not_before_ns;
    actions.push_back(std::move(action));
  }
  return actions;
}

std::vector<Event> overdue(const Transaction& tx, std::int64_t now_ns) {
  std::vector<Event> events;
  if (tx.phase != Phase::kAcquire) return events;
  const bool some = std::any_of(tx.vms.begin(), tx.vms.end(),
                                [](const VmPart& v) { return v.status == StepStatus::kDone; });
  // Without any host there is nothing to hurry for: the launcher jobs stay in Slurm's queue and the
  // job runs on.
  if (!some && tx.kind == TxKind::kEvacuate) return events;
  const std::int64_t limit = tx.kind == TxKind::kBoot ? tx.policy.boot_ms : tx.policy.acquire_ms;
  if (now_ns - tx.tried_since_ns < limit * kMs) return events;
  for (const VmPart& vm : tx.vms) {
    if (vm.status != StepStatus::kPending) continue;
    Event event;
    event.type = EventType::kStepFailed;
    event.tx = tx.id;
    event.time_ns = now_ns;
    event.final = true;
    event.vm = vm.vm;
    event.phase = tx.phase;
    event.tries = vm.tries;
    event.error = Error{Code::kExhausted, "no host: none within " + std::to_string(limit / 1000) +
                                              " s: its launcher job is still pending; see squeue"};
    events.push_back(std::move(event));
  }
  return events;
}

std::int64_t pause_ns(const Transaction& tx) {
  std::int64_t begin = 0, end = 0;
  for (const PhaseTime& t : tx.times) {
    if (t.phase == Phase::kQuiesce) begin = t.begin_ns;
    if (t.phase == Phase::kResume) end = t.end_ns;
  }
  return begin != 0 && end > begin ? end - begin : 0;
}

std::string Action::op() const {
  std::string name = std::to_string(tx) + "/" + std::string(name_of(phase));
  if (round > 1) name += "." + std::to_string(round);
  return name + "/" + vm + "/" + std::to_string(attempt);
}

std::string Action::key() const {
  return op() + "/" + std::to_string(tries) + (fence ? "/fence" : "") + (abort ? "/abort" : "");
}

}  // namespace symvirt
