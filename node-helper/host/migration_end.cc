#include "node-helper/host/migration_end.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <thread>

#include "common/log.h"

namespace symvirt::host {
namespace {

constexpr std::chrono::milliseconds kPoll{50};
constexpr std::chrono::milliseconds kResume{5'000};  // also past the deadline: no VM stays paused

class MigrationEnd {
 public:
  MigrationEnd(Hypervisor& hypervisor, const std::string& vm, Deadline deadline,
               const MigrationEndTimes& times)
      : hypervisor_(hypervisor),
        vm_(vm),
        deadline_(deadline),
        switchover_(std::min(times.switchover, deadline.left() / 2)),
        stuck_(std::min(times.stuck, deadline.left() / 3)) {}

  Status run(const std::function<bool()>& stopping) {
    for (;;) {
      auto look = hypervisor_.look(vm_, deadline_);
      if (!look) return let_run(look.error());
      if (look->state == VmState::kAbsent || look->state == VmState::kShutoff ||
          look->state == VmState::kIncoming)
        return Error{Code::kPrecondition, fmt::format("{}: has left this host", vm_)};
      if (!look->migrating) return let_run({});
      if (deadline_.expired() || stopping()) return let_run(not_ended());
      if (Status s = step(*look); !s) return let_run(s);
      std::this_thread::sleep_for(kPoll);
    }
  }

 private:
  using Clock = std::chrono::steady_clock;

  Status step(const VmLook& look) {
    const bool paused = look.state == VmState::kPaused;
    const auto now = Clock::now();
    if (!taken_) {
      if (paused && !paused_since_) paused_since_ = now;
      if (!paused) paused_since_.reset();
      if (paused && now - *paused_since_ < switchover_) return {};
      Status s = hypervisor_.abort_migration(vm_, deadline_);
      // Nothing is known, and QEMU may be too busy to be told: once more.
      if (!s && s.error().unknown_effect()) {
        log_warning(s.error().message);
        return {};
      }
      if (!s) return s.error().code == Code::kPrecondition ? Status() : s;  // it has just ended
      taken_ = now;
      return {};
    }
    if (paused || nudged_ || now - *taken_ < stuck_) return {};
    log_warning(fmt::format(
        "{}: libvirt still waits for the migration that was aborted; a short pause ends that",
        vm_));
    nudged_ = true;
    return hypervisor_.suspend(vm_, deadline_);
  }

  Error not_ended() const {
    if (!taken_)
      return Error{Code::kDeadline, fmt::format("{}: its migration has not been aborted in time: "
                                                "it is in its last phase, or QEMU hangs",
                                                vm_)};
    return Error{Code::kDeadline,
                 fmt::format("{}: libvirt has taken the abort, and the migration has not ended in "
                             "time; if it never does, restart libvirtd here (guests run on)",
                             vm_)};
  }

  // What we have paused runs again, whatever else there is to say.
  Status let_run(Status otherwise) {
    if (!nudged_) return otherwise;
    const Deadline soon = Deadline::after(kResume);
    auto look = hypervisor_.look(vm_, soon);
    if (!look || look->state != VmState::kPaused) return otherwise;
    Status s = hypervisor_.resume(vm_, soon);
    if (s || !otherwise) return otherwise;
    look = hypervisor_.look(vm_, soon);  // libvirt may have been quicker
    if (look && look->state == VmState::kRunning) return {};
    return s.error().with(vm_ + ": is paused");
  }

  Hypervisor& hypervisor_;
  const std::string& vm_;
  const Deadline deadline_;
  const std::chrono::milliseconds switchover_, stuck_;
  std::optional<Clock::time_point> paused_since_, taken_;
  bool nudged_ = false;
};

}  // namespace

Status end_migration(Hypervisor& hypervisor, const std::string& vm, Deadline deadline,
                     const std::function<bool()>& stopping, const MigrationEndTimes& times) {
  return MigrationEnd(hypervisor, vm, deadline, times).run(stopping);
}

}  // namespace symvirt::host
