#include "spank-symvirt/coordinator/watch.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "spank-symvirt/coordinator/capacity.h"

namespace symvirt {
namespace {

constexpr std::int64_t kSecond = 1'000'000'000;
constexpr std::int64_t kUsualGrant = 3 * kSecond;  // Slurm's scheduler needs one or two

bool contains(const std::vector<std::string>& list, const std::string& item) {
  return std::find(list.begin(), list.end(), item) != list.end();
}

bool leaving(const View& view, const std::string& host) {
  const NodeInfo* node = view.node(host);
  return node != nullptr && (node->drain || node->fail);
}

bool opted_out(const JobInfo& job) {
  return job.admin_comment.find("ft=none") != std::string::npos;
}

// "quiesce_timeout=20" in the line that job_submit.lua left; 0: the site's.
std::int64_t wanted_quiesce_ms(const JobInfo& job) {
  static constexpr std::string_view kKey = "quiesce_timeout=";
  const std::size_t at = job.admin_comment.find(kKey);
  if (at == std::string::npos) return 0;
  std::int64_t seconds = 0;
  const char* begin = job.admin_comment.data() + at + kKey.size();
  std::from_chars(begin, job.admin_comment.data() + job.admin_comment.size(), seconds);
  return seconds > 0 && seconds <= 3600 ? seconds * 1000 : 0;
}

// A set that could not be moved is not tried again at once.
const Transaction* tried_lately(const View& view, const std::string& vm) {
  for (auto it = view.transactions->rbegin(); it != view.transactions->rend(); ++it) {
    const Transaction& tx = it->second;
    if (tx.kind != TxKind::kEvacuate || tx.find(vm) == nullptr) continue;
    const bool moved = tx.outcome == Outcome::kDone;
    return tx.ended() && !moved && view.now_ns - tx.ended_ns < view.config->retry_s * kSecond
               ? &tx
               : nullptr;
  }
  return nullptr;
}

std::string why_left(const Transaction& tx) {
  for (const VmPart& vm : tx.vms) {
    if (vm.failure) return vm.failure->message;
  }
  return std::string(name_of(tx.outcome));
}

VmPart part_of(const View& view, const std::string& name, bool moves) {
  const VmRecord& record = view.vms->at(name);
  VmPart vm;
  vm.vm = name;
  vm.vm_class = record.vm_class;
  for (const JobInfo* job : view.jobs_on(name)) vm.jobs.push_back(job->id);
  vm.wanted = vm.moving = moves;
  vm.from = record.host;
  vm.from_job = record.launcher_job;
  vm.at = Where::kSource;
  vm.has_device = vm.linked = true;
  return vm;
}

void begin_evacuations(const View& view, const NodeInfo& host, Decisions& out,
                       std::set<std::string>& handled) {
  const std::string cause =
      kDrainCause + host.name + (host.reason.empty() ? "" : ": " + host.reason);
  for (const auto& [name, record] : *view.vms) {
    if (record.host != host.name || handled.count(name) > 0 || view.live_with(name) != nullptr)
      continue;
    const std::vector<const JobInfo*> jobs = view.jobs_on(name);
    const NodeInfo* node = view.node(name);
    if (jobs.empty()) {
      if (node != nullptr && node->idle && !node->powering_down && !node->powered_down &&
          !node->powering_up) {
        out.list.push_back({Decision::Kind::kPowerDown,
                            {},
                            0,
                            name,
                            "symvirt: host " + host.name + " is drained"});
      }
      continue;
    }
    if (const Transaction* tx = tried_lately(view, name)) {
      out.notes[name] = fmt::format("not moved by transaction {}: {}; tried again every {} s",
                                    tx->id, why_left(*tx), view.config->retry_s);
      continue;
    }
    // VMs whose jobs have nothing to do with each other have a transaction each: all go at the same
    // time, and a job that does not come to rest keeps nobody else's.
    auto tx = plan_evacuation(view, {name}, cause);
    if (!tx) {
      out.notes[name] = tx.error().message;
      continue;
    }
    for (const VmPart& vm : tx->vms) handled.insert(vm.vm);
    out.list.push_back({Decision::Kind::kBegin, std::move(*tx)});
  }
}

// Waiting for a host costs nothing and can be given up: the drain was undone, or the job is over.
void cancel_needless(const View& view, Decisions& out) {
  for (const auto& [id, tx] : *view.transactions) {
    if (tx.ended() || tx.cancel_requested || tx.kind != TxKind::kEvacuate ||
        tx.phase != Phase::kAcquire)
      continue;
    const bool by_drain = tx.cause.rfind(kDrainCause, 0) == 0;
    const bool needed =
        !by_drain || std::any_of(tx.vms.begin(), tx.vms.end(), [&](const VmPart& v) {
          return v.moving && leaving(view, v.from);
        });
    const bool jobs_gone = std::all_of(tx.vms.begin(), tx.vms.end(),
                                       [&](const VmPart& v) { return view.jobs_on(v.vm).empty(); });
    if (!needed || (by_drain && jobs_gone)) {
      Decision d{Decision::Kind::kCancel};
      d.id = id;
      d.reason = needed ? "its jobs have ended" : "no host of it is drained any more";
      out.list.push_back(d);
    }
  }
}

// Waiting is no failure, but an administrator who drained a host wants to know why it is still
// DRAINING.
void note_waiting(const View& view, Decisions& out) {
  for (const auto& [id, tx] : *view.transactions) {
    if (tx.ended() || tx.kind != TxKind::kEvacuate || tx.phase != Phase::kAcquire) continue;
    if (view.now_ns - tx.phase_begin_ns < kUsualGrant) continue;
    for (const VmPart& vm : tx.vms) {
      if (vm.status != StepStatus::kPending) continue;
      out.notes[vm.vm] = fmt::format(
          "transaction {} waits for a host: no healthy one has a free device; its launcher job is "
          "pending (squeue -p {})",
          id, view.config->hosts_partition);
    }
  }
}

// Slurm takes the node for up, but there is no VM: somebody set its state by hand, or the VM ended
// when nobody looked. Only powering it down brings the node back to where Slurm starts it again.
void power_down_ghosts(const View& view, Decisions& out) {
  for (const ClassConfig& c : view.config->classes) {
    for (const std::string& vm : c.nodes) {
      const NodeInfo* node = view.node(vm);
      if (node == nullptr || !node->idle || node->powered_down || node->powering_down ||
          node->powering_up)
        continue;
      if (view.up(vm) || view.live_with(vm) != nullptr || !view.jobs_on(vm).empty()) continue;
      out.list.push_back(
          {Decision::Kind::kPowerDown, {}, 0, vm, "symvirt: Slurm has it up, but its VM is off"});
    }
  }
}

// A boot that was cancelled when its VM was up already: nobody wants that VM. (Its next transaction
// makes the record another one.)
void stop_cancelled_boots(const View& view, Decisions& out) {
  for (const auto& [id, tx] : *view.transactions) {
    if (!tx.ended() || tx.kind != TxKind::kBoot || !tx.cancel_requested) continue;
    for (const VmPart& vm : tx.vms) {
      auto record = view.vms->find(vm.vm);
      if (record == view.vms->end() || !record->second.up() ||
          record->second.since_ns != tx.ended_ns || view.live_with(vm.vm) != nullptr)
        continue;
      out.list.push_back(
          {Decision::Kind::kBegin,
           stop_of(view, record->second, "its boot, " + std::to_string(id) + ", was cancelled")});
    }
  }
}

void find_lost(const View& view, Decisions& out) {
  if (view.hosts == nullptr) return;
  for (const auto& [name, record] : *view.vms) {
    if (!record.up() || view.live_with(name) != nullptr) continue;
    auto seen = view.hosts->find(record.host);
    if (seen == view.hosts->end() || !seen->second.answered || seen->second.vms.count(name) > 0)
      continue;
    // An answer from before the VM came to the host proves nothing.
    if (seen->second.asked_ns <= record.since_ns) continue;
    Decision d{Decision::Kind::kVmLost};
    d.node = name;
    d.reason =
        fmt::format("symvirt: the VM ended on {} without being asked to; see its console log there",
                    record.host);
    out.list.push_back(d);
  }
}

// A launcher job that is gone holds nothing any more, so Slurm may give the VM's CPUs, memory and
// device to somebody else: the host is closed for new work and the drain moves the VM away.
void find_lost_launchers(const View& view, Decisions& out) {
  for (const auto& [name, record] : *view.vms) {
    if (!record.up() || record.launcher_job == 0 || view.live_with(name) != nullptr) continue;
    if (leaving(view, record.host)) continue;
    const bool held = std::any_of(view.jobs->begin(), view.jobs->end(),
                                  [launcher = record.launcher_job](const JobInfo& job) {
                                    return job.id == launcher && job.state != JobState::kEnded;
                                  });
    if (held) continue;
    Decision d{Decision::Kind::kLauncherLost};
    d.node = name;
    d.host = record.host;
    d.reason = fmt::format("symvirt: launcher job {} of {} was lost", record.launcher_job, name);
    out.list.push_back(std::move(d));
  }
}

// A VM that nobody can find (its hosts do not answer, and nobody could fence them) must not keep
// its job for ever. Its transaction goes on looking, so that no second copy is started meanwhile.
void give_back_parked(const View& view, Decisions& out) {
  for (const auto& [id, tx] : *view.transactions) {
    if (tx.ended() || tx.phase != Phase::kLocate) continue;
    if (view.now_ns - tx.tried_since_ns < tx.policy.park_ms * (kSecond / 1000)) continue;
    for (const VmPart& vm : tx.vms) {
      const NodeInfo* node = view.node(vm.vm);
      if (node == nullptr || node->down || vm.at != Where::kUnknown) continue;
      Decision d{Decision::Kind::kGiveBack};
      d.id = id;
      d.node = vm.vm;
      d.reason = fmt::format("symvirt: transaction {} is parked for {} s: {}", id,
                             (view.now_ns - tx.phase_begin_ns) / kSecond, tx.parked);
      out.list.push_back(std::move(d));
    }
  }
}

}  // namespace

const NodeInfo* View::node(const std::string& name) const {
  auto it =
      std::find_if(nodes->begin(), nodes->end(), [&](const NodeInfo& n) { return n.name == name; });
  return it == nodes->end() ? nullptr : &*it;
}

bool View::up(const std::string& vm) const {
  auto it = vms->find(vm);
  return it != vms->end() && it->second.up();
}

std::vector<const JobInfo*> View::jobs_on(const std::string& vm) const {
  std::vector<const JobInfo*> list;
  for (const JobInfo& job : *jobs) {
    const bool there = job.state == JobState::kRunning || job.state == JobState::kSuspended ||
                       job.state == JobState::kCompleting || job.state == JobState::kConfiguring;
    if (there && contains(job.nodes, vm)) list.push_back(&job);
  }
  return list;
}

const Transaction* View::live_with(const std::string& vm) const {
  for (const auto& [id, tx] : *transactions) {
    if (!tx.ended() && tx.find(vm) != nullptr) return &tx;
  }
  return nullptr;
}

Result<Transaction> plan_evacuation(const View& view, const std::set<std::string>& moving,
                                    const std::string& cause) {
  std::set<std::string> set = moving;
  std::set<std::uint32_t> jobs;
  std::int64_t quiesce_ms = 0;
  // Closed over "runs a job that also runs there".
  for (bool grown = true; grown;) {
    grown = false;
    for (const std::string& vm : std::set<std::string>(set)) {
      for (const JobInfo* job : view.jobs_on(vm)) {
        if (!jobs.insert(job->id).second) continue;
        if (job->state == JobState::kCompleting)
          return Error{Code::kPrecondition, fmt::format("job {} is completing", job->id)};
        if (job->state == JobState::kConfiguring)
          return Error{Code::kPrecondition, fmt::format("job {} is starting", job->id)};
        if (job->state == JobState::kSuspended) {
          return Error{
              Code::kPrecondition,
              fmt::format("job {} is suspended: resume it (scontrol resume {})", job->id, job->id)};
        }
        if (opted_out(*job))
          return Error{Code::kPrecondition,
                       fmt::format("job {} was submitted with --symvirt-ft=none", job->id)};
        quiesce_ms = std::max(quiesce_ms, wanted_quiesce_ms(*job));
        for (const std::string& node : job->nodes) {
          if (set.insert(node).second) grown = true;
        }
      }
    }
  }
  Transaction tx;
  tx.kind = TxKind::kEvacuate;
  tx.cause = cause;
  tx.policy = view.config->policy;
  if (quiesce_ms > 0) tx.policy.quiesce_ms = quiesce_ms;
  std::int64_t largest_mib = 0;
  for (const std::string& name : set) {
    if (!view.up(name))
      return Error{Code::kPrecondition, fmt::format("{} is not a running VM of ours", name)};
    if (const Transaction* other = view.live_with(name)) {
      return Error{Code::kPrecondition, fmt::format("{} is in transaction {} ({})", name, other->id,
                                                    name_of(other->phase))};
    }
    const bool moves = moving.count(name) > 0 || leaving(view, view.vms->at(name).host);
    tx.vms.push_back(part_of(view, name, moves));
    if (const ClassConfig* c = view.config->class_of_vm(name))
      largest_mib = std::max(largest_mib, c->memory_mib);
  }
  // Twice the time that the memory takes at the slowest rate we wait for, all VMs sharing one wire.
  const std::int64_t bytes = (largest_mib << 20) * static_cast<std::int64_t>(set.size());
  tx.policy.migrate_ms =
      std::max<std::int64_t>(60'000, 2'000 * (bytes / view.config->migrate_floor_bytes_s));
  return tx;
}

Transaction stop_of(const View& view, const VmRecord& record, const std::string& cause) {
  Transaction tx;
  tx.kind = TxKind::kStop;
  tx.cause = cause;
  tx.policy = view.config->policy;
  VmPart part;
  part.vm = record.vm;
  part.vm_class = record.vm_class;
  part.at = Where::kSource;
  part.from = record.host;
  part.from_job = record.launcher_job;
  tx.vms.push_back(std::move(part));
  return tx;
}

Decisions decide(const View& view) {
  Decisions out;
  std::set<std::string> handled;
  cancel_needless(view, out);
  note_waiting(view, out);
  find_lost(view, out);
  find_lost_launchers(view, out);
  give_back_parked(view, out);
  for (const Decision& d : out.list) {
    if (d.kind == Decision::Kind::kVmLost) handled.insert(d.node);
  }
  for (const NodeInfo& node : *view.nodes) {
    if (node.drain || node.fail) begin_evacuations(view, node, out, handled);
  }
  stop_cancelled_boots(view, out);
  power_down_ghosts(view, out);
  keep_capacity(view, out);
  return out;
}

}  // namespace symvirt
