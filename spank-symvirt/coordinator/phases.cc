#include "spank-symvirt/coordinator/phases.h"

#include <algorithm>
#include <array>

namespace symvirt {
namespace {

constexpr std::int64_t kMs = 1'000'000;

constexpr std::array kEvacuatePath = {Phase::kPlan,    Phase::kAcquire, Phase::kPrepare,
                                      Phase::kQuiesce, Phase::kDetach,  Phase::kMigrate,
                                      Phase::kLocate,  Phase::kAttach,  Phase::kLink,
                                      Phase::kResume,  Phase::kRelease, Phase::kEnd};
constexpr std::array kBootPath = {
    Phase::kAcquire, Phase::kPrepare,   Phase::kStart, Phase::kReady,   Phase::kAttach,
    Phase::kLink,    Phase::kNodeStart, Phase::kStop,  Phase::kRelease, Phase::kEnd};
constexpr std::array kStopPath = {Phase::kStop, Phase::kRelease, Phase::kEnd};

template <typename Of>
auto on_path(TxKind kind, Of of) {
  switch (kind) {
    case TxKind::kEvacuate:
      return of(kEvacuatePath);
    case TxKind::kBoot:
      return of(kBootPath);
    case TxKind::kStop:
      break;
  }
  return of(kStopPath);
}

bool moves_with(const Transaction& tx, const VmPart& vm) {
  const std::set<std::string> names = bound_to(tx, vm);
  return std::any_of(tx.vms.begin(), tx.vms.end(),
                     [&](const VmPart& v) { return v.moving && names.count(v.vm) > 0; });
}

bool is_here(const VmPart& vm) { return vm.at == Where::kSource || vm.at == Where::kTarget; }

}  // namespace

Phase first_phase(TxKind kind) {
  return on_path(kind, [](const auto& path) { return path.front(); });
}

Phase phase_after(TxKind kind, Phase phase) {
  return on_path(kind, [&](const auto& path) {
    const auto it = std::find(path.begin(), path.end(), phase);
    return it == path.end() || it + 1 == path.end() ? Phase::kEnd : *(it + 1);
  });
}

bool is_before(TxKind kind, Phase phase, Phase other) {
  return on_path(kind, [&](const auto& path) {
    return std::find(path.begin(), path.end(), phase) < std::find(path.begin(), path.end(), other);
  });
}

bool any_moving(const Transaction& tx) {
  return std::any_of(tx.vms.begin(), tx.vms.end(), [](const VmPart& v) { return v.moving; });
}

std::set<std::string> bound_to(const Transaction& tx, const VmPart& vm) {
  std::set<std::string> names = {vm.vm};
  std::set<std::uint32_t> jobs(vm.jobs.begin(), vm.jobs.end());
  for (bool grown = true; grown;) {
    grown = false;
    for (const VmPart& other : tx.vms) {
      const bool shares = std::any_of(other.jobs.begin(), other.jobs.end(),
                                      [&](std::uint32_t j) { return jobs.count(j) > 0; });
      if (!shares || !names.insert(other.vm).second) continue;
      jobs.insert(other.jobs.begin(), other.jobs.end());
      grown = true;
    }
  }
  return names;
}

bool participates(const Transaction& tx, Phase phase, const VmPart& vm) {
  const bool booting = tx.kind == TxKind::kBoot && !tx.boot_failed;
  switch (phase) {
    case Phase::kPlan:
      return tx.kind == TxKind::kEvacuate;
    case Phase::kAcquire:
    case Phase::kPrepare:
      return vm.moving;
    case Phase::kStart:
    case Phase::kReady:
    case Phase::kNodeStart:
      return booting;
    case Phase::kQuiesce:
      return !vm.jobs.empty() && moves_with(tx, vm);
    case Phase::kDetach:
    case Phase::kMigrate:
      return vm.moving;
    case Phase::kLocate:
      return vm.at == Where::kUnknown;
    case Phase::kAttach:
      return tx.kind == TxKind::kBoot ? booting : vm.detach_begun && is_here(vm) && !vm.has_device;
    case Phase::kLink:
      return tx.kind == TxKind::kBoot ? booting : vm.has_device && is_here(vm) && !vm.linked;
    case Phase::kResume:
      return vm.rest_begun && is_here(vm);
    case Phase::kStop:
      return tx.kind == TxKind::kStop || (tx.boot_failed && vm.start_begun);
    case Phase::kRelease:
      return vm.acquire_begun || vm.prepare_begun || vm.rest_begun || tx.kind == TxKind::kStop;
    case Phase::kEnd:
      return false;
  }
  return false;
}

Outcome outcome_of(const Transaction& tx) {
  if (tx.hopeless || tx.boot_failed) return Outcome::kFailed;
  if (tx.kind != TxKind::kEvacuate) {
    const bool failed = std::any_of(tx.vms.begin(), tx.vms.end(),
                                    [](const VmPart& v) { return v.failure.has_value(); });
    return failed ? Outcome::kFailed : Outcome::kDone;
  }
  std::size_t wanted = 0, moved = 0;
  bool touched = false;
  for (const VmPart& vm : tx.vms) {
    wanted += vm.wanted;
    moved += vm.wanted && vm.at == Where::kTarget;
    touched = touched || vm.acquire_begun;
  }
  if (moved == wanted) return Outcome::kDone;
  if (moved > 0) return Outcome::kPartial;
  return touched ? Outcome::kRestored : Outcome::kRefused;
}

// Ranks wait while a step is repeated after the detach, and a booting guest is asked often: short
// pauses there. Slurm and the clean-up have time.
std::int64_t longest_backoff_ms(Phase phase) {
  switch (phase) {
    case Phase::kReady:
      return 400;
    case Phase::kPlan:
    case Phase::kPrepare:
    case Phase::kStart:
    case Phase::kQuiesce:
    case Phase::kDetach:
    case Phase::kMigrate:
    case Phase::kLocate:
    case Phase::kAttach:
    case Phase::kLink:
    case Phase::kNodeStart:
    case Phase::kResume:
      return 2'000;
    case Phase::kAcquire:
    case Phase::kStop:
    case Phase::kRelease:
    case Phase::kEnd:
      return 10'000;
  }
  return 10'000;
}

std::int64_t patience_ns(const Transaction& tx, const Error& error) {
  const bool booting = tx.kind == TxKind::kBoot;
  switch (tx.phase) {
    case Phase::kPlan:
      // A refusal is an answer; only silence is asked again.
      return error.unknown_effect() ? tx.policy.step_ms * kMs : 0;
    case Phase::kAcquire:
      return (booting ? tx.policy.boot_ms : tx.policy.park_ms) * kMs;
    case Phase::kPrepare:
    case Phase::kDetach:
      return error.unknown_effect() ? tx.policy.step_ms * kMs : 0;
    case Phase::kQuiesce:
      return error.unknown_effect() ? tx.policy.quiesce_ms * kMs : 0;
    case Phase::kStart:
      return error.unknown_effect() ? tx.policy.boot_ms * kMs : 0;
    case Phase::kReady:
      return tx.policy.boot_ms * kMs;
    case Phase::kMigrate:
      return error.unknown_effect() ? tx.policy.migrate_ms * kMs : 0;
    case Phase::kAttach:
    case Phase::kLink:
    case Phase::kNodeStart:
      return (booting ? tx.policy.boot_ms : tx.policy.park_ms) * kMs;
    case Phase::kLocate:
    case Phase::kResume:
    case Phase::kStop:
    case Phase::kRelease:
      return tx.policy.park_ms * kMs;
    case Phase::kEnd:
      return 0;
  }
  return 0;
}

std::int64_t round_ms(const Transaction& tx) {
  constexpr std::int64_t kShortest = 1'000;
  if (tx.phase != Phase::kQuiesce) return tx.policy.quiesce_ms;
  const std::int64_t spent_ns = std::max<std::int64_t>(tx.round_begin_ns - tx.tried_since_ns, 0);
  return std::max(tx.policy.quiesce_ms - spent_ns / kMs, kShortest);
}

}  // namespace symvirt
