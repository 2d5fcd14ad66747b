// Leases: a launcher job's hold on this host's resources for one VM. The connection is the hold; a
// launcher that is lost does not end its VM.
#include <fmt/format.h>

#include "common/log.h"
#include "node-helper/host/node.h"
#include "node-helper/host/params.h"

namespace symvirt::host {

using nlohmann::json;
using std::chrono::milliseconds;

namespace {
constexpr milliseconds kLookEvery{1'000};
constexpr milliseconds kLookWithin{5'000};
}  // namespace

json Node::lease_to_json(const Lease& lease) const {
  return {{"cpus", lease.cpus},
          {"memory_bytes", lease.memory_bytes},
          {"numa_node", lease.numa_node},
          {"gres", lease.gres}};
}

Result<json> Node::lease_wait(const RpcRequest& request, const OperationLog::Progress&) {
  Params p(request.params);
  const std::string vm = p.name("vm");
  const std::int64_t job_id = p.number("job_id", 1, UINT32_MAX);
  if (Status s = p.status(); !s) return s.error();
  std::unique_lock lock(mutex_);
  for (;;) {
    auto it = leases_.find(vm);
    if (it != leases_.end() && it->second.connected && it->second.job_id == job_id) break;
    if (stopping_) return Error{Code::kUnavailable, "noded is ending"};
    if (request.deadline.expired()) {
      return Error{Code::kDeadline,
                   fmt::format("{}: launcher job {} has not come to {} in time; is its "
                               "symvirt-launcher running there?",
                               vm, job_id, config_.host)};
    }
    if (request.caller_gone && request.caller_gone())
      return Error{Code::kCancelled, "caller has gone"};
    changed_.wait_until(lock, std::min(request.deadline.time(),
                                       std::chrono::steady_clock::now() + milliseconds(500)));
  }
  lock.unlock();
  return lease_to_json(store_.vm(vm).lease);
}

Status Node::begin_lease(const std::string& vm, const Lease& lease, std::uint64_t& token) {
  const VmRecord before = store_.vm(vm);
  {
    std::lock_guard lock(mutex_);
    LiveLease& live = leases_[vm];
    if (live.connected && live.job_id != lease.job_id) {
      return Error{Code::kAlreadyExists, fmt::format("{}: launcher job {} holds the lease on {}",
                                                     vm, live.job_id, config_.host)};
    }
    if (live.job_id != lease.job_id) live = LiveLease();
    live.job_id = lease.job_id;
    live.connected = true;
    live.token = token = next_token_++;
  }
  Status s = store_.update([&](NodeState& state) -> Status {
    state.vms[vm].lease = lease;
    return {};
  });
  if (!s) {
    end_lease(vm, token, false);
    return s;
  }
  std::lock_guard lock(mutex_);
  changed_.notify_all();
  return {};
}

// forget: the VM has left, and the hold with it.
void Node::end_lease(const std::string& vm, std::uint64_t token, bool forget) {
  {
    std::lock_guard lock(mutex_);
    auto it = leases_.find(vm);
    if (it == leases_.end() || it->second.token != token) return;
    it->second.connected = false;
    if (forget) leases_.erase(it);
    changed_.notify_all();
  }
  if (!forget) return;
  Status s = store_.update([&](NodeState& state) -> Status {
    auto it = state.vms.find(vm);
    if (it != state.vms.end()) it->second.lease = Lease();
    return {};
  });
  if (!s) log_error(fmt::format("{}: {}", vm, s.error().message));
}

Result<json> Node::lease_open(const RpcRequest& request, const OperationLog::Progress&) {
  Params p(request.params);
  const std::string vm = p.name("vm");
  Lease lease;
  lease.job_id = p.number("job_id", 1, UINT32_MAX);
  lease.cpus = p.numbers_or_none("cpus", 1 << 16);
  lease.memory_bytes = p.number_or("memory_bytes", 0, std::int64_t{1} << 50, 0);
  lease.numa_node = static_cast<int>(p.number_or("numa_node", -1, 1023, -1));
  lease.gres = p.numbers_or_none("gres", 1 << 16);
  const bool seen_before = p.flag_or("seen", false);
  if (Status s = p.status(); !s) return s.error();
  std::uint64_t token = 0;
  if (Status s = begin_lease(vm, lease, token); !s) return s.error();
  if (seen_before) {
    // We were restarted, and the VM may have left meanwhile.
    std::lock_guard lock(mutex_);
    if (auto it = leases_.find(vm); it != leases_.end() && it->second.token == token)
      it->second.seen = true;
  }
  log_info(fmt::format("{}: launcher job {} holds the lease", vm, lease.job_id));

  std::string told;
  int absent_looks = 0;
  for (;;) {
    auto look = hypervisor_.look(vm, Deadline::after(kLookWithin));
    std::unique_lock lock(mutex_);
    auto it = leases_.find(vm);
    if (it == leases_.end() || it->second.token != token)
      return Error{Code::kCancelled, fmt::format("{}: the lease was opened again", vm)};
    if (look) {
      const bool here = look->state == VmState::kRunning || look->state == VmState::kPaused;
      if (here && !it->second.seen) {
        it->second.seen = true;
        ends_.erase(vm);
        stopped_by_us_.erase(vm);
      }
      const bool gone = look->state == VmState::kAbsent || look->state == VmState::kShutoff;
      auto end = ends_.find(vm);
      // Saving makes a domain vanish; it comes back.
      const bool saved = end != ends_.end() && end->second == VmEnd::kSaved;
      absent_looks = gone && it->second.seen && !saved ? absent_looks + 1 : 0;
      // The event tells why; a moment for it to come, unless it has.
      if (absent_looks > 0 && (end != ends_.end() || absent_looks > 2)) {
        const bool migrated = end != ends_.end() && end->second == VmEnd::kMigrated;
        const char* reason = migrated                      ? "migrated"
                             : stopped_by_us_.contains(vm) ? "stopped"
                                                           : "ended";
        lock.unlock();
        end_lease(vm, token, true);
        log_info(fmt::format("{}: lease of job {} is over: {}", vm, lease.job_id, reason));
        return json{{"reason", reason}};
      }
    }
    const std::uint64_t seen_changes = changes_;
    const std::string state = look ? state_name(look->state) : "unknown";
    lock.unlock();
    if (state != told && request.progress) {
      request.progress({{"state", state}});
      told = state;
    }
    lock.lock();
    changed_.wait_for(lock, absent_looks > 0 ? milliseconds(100) : kLookEvery,
                      [&] { return stopping_ || changes_ != seen_changes; });
    lock.unlock();
    const bool lost = request.caller_gone && request.caller_gone();
    if (!stopping_ && !lost && !request.deadline.expired()) continue;
    end_lease(vm, token, false);
    if (stopping_) return Error{Code::kUnavailable, "noded is ending"};
    if (!lost) return Error{Code::kDeadline, "the lease goes on; open it again"};
    log_warning(fmt::format("{}: launcher job {} is lost; the VM goes on", vm, lease.job_id));
    return Error{Code::kCancelled, "caller has gone"};
  }
}

}  // namespace symvirt::host
