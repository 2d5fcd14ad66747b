#include "spank-symvirt/coordinator/executor.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "common/log.h"
#include "spank-symvirt/coordinator/calls.h"
#include "spank-symvirt/coordinator/domain.h"
#include "spank-symvirt/coordinator/json_access.h"
#include "spank-symvirt/coordinator/locate.h"
#include "spank-symvirt/coordinator/release.h"

namespace symvirt {

using nlohmann::json;
using std::chrono::milliseconds;

namespace {

constexpr int kMissingPolls = 20;
constexpr int kAsksForRelease = 5;

Deadline slurm_deadline() { return Deadline::after(milliseconds(20'000)); }

Error lost_config(const std::string& vm) {
  return Error{
      Code::kPrecondition,
      vm + ": not in any [[class]] of symvirtd.toml any more; put it back and restart symvirtd"};
}

std::string state_of(const Result<json>& info) {
  if (!info) return "unknown";
  const json& j = *info;
  const std::string state = text_of(j, "state", "unknown");
  if (state == "shutoff") return "absent";
  if (flag_of(j, "migrating") && state == "running") return "migrating";
  return state;
}

}  // namespace

// Everything that callbacks need outlives the Executor by shared ownership: an answer may come
// while it is being destroyed.
struct Executor::Impl : std::enable_shared_from_this<Executor::Impl> {
  Parts p;

  struct Wait {
    std::uint32_t job_id;
    Event reply;      // filled in and emitted when squeue has decided
    int missing = 0;  // polls in a row that did not list it
  };
  std::mutex mutex;
  std::vector<Wait> waits;
  std::map<std::string, std::vector<Event>> fencing;  // host -> who waits for it

  explicit Impl(Parts parts) : p(std::move(parts)) {}

  void done(Event event, json result) {
    event.type = EventType::kStepDone;
    event.time_ns = p.clock->now_ns();
    event.result = std::move(result);
    p.emit(std::move(event));
  }

  void failed(Event event, Error error) {
    event.type = EventType::kStepFailed;
    event.time_ns = p.clock->now_ns();
    event.error = std::move(error);
    p.emit(std::move(event));
  }

  void finish(Event event, Result<json> result) {
    if (result)
      done(std::move(event), std::move(*result));
    else
      failed(std::move(event), result.error());
  }

  // One call after the other; the first failure ends it. Answers of several calls with "answers"
  // and "more" are merged.
  void chain(std::vector<Call> calls, Event event, Hypervisor::Progress progress = {},
             std::size_t next = 0, json merged = json::object()) {
    if (next == calls.size()) return done(std::move(event), std::move(merged));
    Call call = calls[next];
    auto self = shared_from_this();
    p.hypervisor->call(
        call.host, call.method, call.params, call.timeout, progress,
        [self, calls = std::move(calls), event, progress, next,
         merged](Result<json> result) mutable {
          if (!result) return self->failed(event, result.error());
          const std::string field = calls[next].hand_on;
          if (field.empty()) {
            merge(merged, *result);
          } else if (next + 1 < calls.size() && result->is_object() && result->contains(field)) {
            calls[next + 1].params[field] = (*result)[field];
          }
          self->chain(std::move(calls), std::move(event), std::move(progress), next + 1,
                      std::move(merged));
        });
  }

  static void merge(json& into, const json& from) {
    if (!from.is_object()) return;
    for (const auto& [key, value] : from.items()) {
      if (key == "more" && value.is_boolean())
        into[key] = flag_of(into, "more") || value.get<bool>();
      else if (value.is_array() && into.contains(key) && into[key].is_array())
        into[key].insert(into[key].end(), value.begin(), value.end());
      else
        into[key] = value;
    }
  }

  void slurm(std::function<void(SlurmApi&)> work) {
    auto self = shared_from_this();
    p.slurm_post([self, work = std::move(work)] { work(*self->p.slurm); });
  }
};

// The Slurm half of release. In order of harm: nobody's job is told that it moved before its old
// launcher has ended.
void Executor::finish_release(Impl& impl, SlurmApi& slurm, const Event& reply,
                              const ReleaseWork& work, const std::vector<TimeLimit>& limits) {
  for (const std::string& tag : work.tags) {
    if (Status s = slurm.cancel_launchers(tag, slurm_deadline()); !s)
      return impl.failed(reply, s.error());
  }
  for (std::uint32_t job : work.jobs) {
    if (Status s = slurm.cancel_job(job, slurm_deadline()); !s && s.error().code != Code::kNotFound)
      return impl.failed(reply, s.error());
  }
  if (!work.down_reason.empty()) {
    if (Status s = slurm.set_node_down(reply.vm, work.down_reason, slurm_deadline()); !s)
      return impl.failed(reply, s.error());
  }
  for (std::uint32_t job : work.noted) {
    auto limit = std::find_if(limits.begin(), limits.end(),
                              [&](const TimeLimit& l) { return l.job == job && l.minutes > 0; });
    if (limit != limits.end()) {
      Status s = slurm.set_time_limit(job, limit->minutes, slurm_deadline());
      if (!s && s.error().unknown_effect()) return impl.failed(reply, s.error());
      if (!s) log_warning(s.error().message);  // the job may have ended meanwhile
    }
    // A note is not worth a failure.
    if (Status s = slurm.set_admin_comment(job, work.note, slurm_deadline()); !s)
      log_warning(s.error().message);
  }
  impl.done(reply, json::object());
}

Executor::Executor(Parts parts) : impl_(std::make_shared<Impl>(std::move(parts))) {}
Executor::~Executor() = default;

namespace {

Event reply_to(const Action& action) {
  Event event;
  event.tx = action.tx;
  event.vm = action.vm;
  event.phase = action.phase;
  event.round = action.round;
  event.tries = action.tries;
  return event;
}

}  // namespace

void Executor::start(const Transaction& tx, const Action& action, std::int64_t generation) {
  const VmPart* vm = tx.find(action.vm);
  Event reply = reply_to(action);
  if (vm == nullptr) return;
  int index = 0;
  const ClassConfig* vm_class = impl_->p.config->class_of_vm(action.vm, &index);
  auto impl = impl_;
  if (vm_class == nullptr) return impl->failed(reply, lost_config(action.vm));
  const Context c{tx, *vm, action, generation, vm_class, index};

  if (action.fence) return fence(tx.id, vm->fence_host, reply);

  auto run = [&](Result<std::vector<Call>> calls) {
    if (!calls) return impl->failed(reply, calls.error());
    impl->chain(std::move(*calls), reply);
  };

  switch (action.phase) {
    case Phase::kPlan:
      return run(plan_calls(c));
    case Phase::kAcquire:
      return acquire(c, reply);
    case Phase::kPrepare:
      return run(prepare_calls(c));
    case Phase::kStart:
      return run(start_calls(c));
    case Phase::kReady:
      return run(ready_calls(c, impl->p.clock->now_ns()));
    case Phase::kQuiesce:
      return run(round_calls(c, "job.quiesce"));
    case Phase::kDetach:
      return run(detach_calls(c));
    case Phase::kMigrate:
      return migrate(c, reply);
    case Phase::kLocate:
      return locate(c, reply);
    case Phase::kAttach:
      return run(attach_calls(c));
    case Phase::kLink:
      return run(link_calls(c, impl->p.clock->now_ns()));
    case Phase::kNodeStart:
      return run(
          std::vector<Call>{c.guest(vm->host(), "guest.start_node", c.step(), json::object())});
    case Phase::kResume:
      return run(round_calls(c, "job.resume"));
    case Phase::kStop: {
      const bool gently = tx.kind == TxKind::kStop;
      const std::string host = tx.kind == TxKind::kStop ? vm->from : vm->to;
      return run(
          std::vector<Call>{c.call(host, "vm.stop", {{"mode", gently ? "shutdown" : "destroy"}})});
    }
    case Phase::kRelease:
      return release(c, reply);
    case Phase::kEnd:
      return;
  }
}

void Executor::acquire(const Context& c, const Event& reply) {
  const Config& config = *impl_->p.config;
  const bool evacuates = c.tx.kind == TxKind::kEvacuate;
  LauncherSpec spec;
  spec.vm = c.vm.vm;
  spec.vm_class = c.vm_class->name;
  spec.tag = launcher_tag(c.tx.id, c.vm.vm, c.action.attempt);
  spec.partition = config.hosts_partition;
  spec.gres = launcher_gres(*c.vm_class);
  spec.cpus = c.vm_class->cpus;
  spec.memory_mib = c.vm_class->memory_mib;
  spec.exclude_hosts = c.tx.avoid_hosts;
  if (evacuates && !c.vm.from.empty()) spec.exclude_hosts.push_back(c.vm.from);
  if (!c.vm.to.empty()) spec.only_hosts = {c.vm.to};
  spec.reservation = evacuates ? config.spare_reservation : "";
  spec.qos = config.launcher_qos;
  spec.account = config.launcher_account;
  spec.launcher_path = config.launcher_path;
  impl_->slurm([impl = impl_, reply, spec](SlurmApi& slurm) {
    auto job = slurm.submit_launcher(spec, slurm_deadline());
    if (!job) return impl->failed(reply, job.error());
    std::lock_guard lock(impl->mutex);
    impl->waits.push_back({*job, reply, 0});
  });
}

void Executor::migrate(const Context& c, const Event& reply) {
  auto impl = impl_;
  if (c.action.abort) {
    const Call abort = c.call(c.vm.from, "vm.migrate_abort");
    return impl->p.hypervisor->call(
        abort.host, abort.method, abort.params, abort.timeout, {}, [impl, reply](Result<json>) {
          impl->failed(reply, Error{Code::kCancelled, "cancelled by request"});
        });
  }
  const milliseconds timeout(c.tx.policy.migrate_ms);
  impl->chain({c.call(c.vm.from, "vm.migrate", timeout, {{"to", c.vm.to}})}, reply,
              [impl, tx = c.tx.id, vm = c.vm.vm](const json& progress) {
                if (impl->p.on_progress) impl->p.on_progress(tx, vm, progress);
              });
}

// Once for all who wait for it: to cut the power of a host that has just come back harms others.
void Executor::fence(std::int64_t tx, const std::string& host, const Event& reply) {
  auto impl = impl_;
  if (!impl->p.fence->available()) {
    return impl->failed(
        reply, Error{Code::kNotFound,
                     fmt::format("{} does not answer and no fence_command is configured: make sure "
                                 "that it is off, or bring it back",
                                 host)});
  }
  {
    std::lock_guard lock(impl->mutex);
    std::vector<Event>& waiting = impl->fencing[host];
    waiting.push_back(reply);
    if (waiting.size() > 1) return;
  }
  log_warning(fmt::format("transaction {}: fencing {}", tx, host));
  impl->p.fence->fence(host, [impl, host](Status status) {
    std::unique_lock lock(impl->mutex);
    const std::vector<Event> waiting = std::move(impl->fencing.extract(host).mapped());
    lock.unlock();
    for (const Event& event : waiting) {
      impl->finish(event, status ? Result<json>(json::object()) : Result<json>(status.error()));
    }
  });
}

// Both hosts at once; whichever answers last reports.
void Executor::locate(const Context& c, const Event& reply) {
  struct Seen {
    std::mutex mutex;
    json answer = json::object();
    int missing = 2;
  };
  auto seen = std::make_shared<Seen>();
  auto impl = impl_;
  auto ask = [&](const char* side, const std::string& host) {
    const Call call = c.call(host, "vm.info", milliseconds(5'000), json::object());
    impl->p.hypervisor->call(call.host, call.method, call.params, call.timeout, {},
                             [impl, seen, reply, side = std::string(side)](Result<json> info) {
                               std::unique_lock lock(seen->mutex);
                               seen->answer[side] = state_of(info);
                               if (--seen->missing > 0) return;
                               lock.unlock();
                               impl->done(reply, seen->answer);
                             });
  };
  nudge(c);
  ask("source", c.vm.from);
  ask("target", c.vm.to);
}

// Fire and forget; the next look decides.
void Executor::nudge(const Context& c) {
  auto send = [&](const std::string& host, const char* method, json extra) {
    const Call call = c.call(host, method, milliseconds(5'000), std::move(extra));
    impl_->p.hypervisor->call(call.host, call.method, call.params, call.timeout, {},
                              [](Result<json>) {});
  };
  switch (help_for(c.vm)) {
    case Help::kNone:
      return;
    case Help::kAbortMigration:
      return send(c.vm.from, "vm.migrate_abort", json::object());
    case Help::kResumeAtSource:
      return send(c.vm.from, "vm.resume", json::object());
    case Help::kEndLeftover:
      return send(c.vm.to, "vm.stop", {{"mode", "leftover"}});
  }
}

// New time limits are worked out and journaled first, and set with everything else in the next try:
// nothing that is added to what Slurm shows may be asked for twice.
void Executor::work_out_limits(const Transaction& tx, std::vector<std::uint32_t> jobs,
                               const Event& reply) {
  impl_->slurm([impl = impl_, reply, jobs = std::move(jobs),
                minutes = pause_minutes(tx)](SlurmApi& slurm) {
    auto list = slurm.poll_jobs(slurm_deadline());
    if (!list) return impl->failed(reply, list.error());
    json limits = json::array();
    for (std::uint32_t id : jobs) {
      auto job =
          std::find_if(list->begin(), list->end(), [&](const JobInfo& j) { return j.id == id; });
      const bool limited = job != list->end() && job->time_limit_min > 0;
      limits.push_back({{"job", id}, {"minutes", limited ? job->time_limit_min + minutes : 0}});
    }
    impl->done(reply, json{{"time_limits", std::move(limits)}});
  });
}

// Slurm first gets its device count back when the device is free again, so hosts come before
// launcher jobs.
void Executor::release(const Context& c, const Event& reply) {
  ReleaseWork work = release_work(c);
  if (auto jobs = limits_to_work_out(c.tx, work); !jobs.empty())
    return work_out_limits(c.tx, std::move(jobs), reply);
  give_back(*impl_, 0, reply, std::make_shared<const ReleaseWork>(std::move(work)),
            c.tx.time_limits);
}

void Executor::give_back(Impl& i, std::size_t next, const Event& reply,
                         std::shared_ptr<const ReleaseWork> work,
                         const std::vector<TimeLimit>& limits) {
  auto impl = i.shared_from_this();
  if (next == work->calls.size()) {
    return impl->slurm([impl, reply, work, limits](SlurmApi& slurm) {
      finish_release(*impl, slurm, reply, *work, limits);
    });
  }
  const Call& call = work->calls[next];
  impl->p.hypervisor->call(call.host, call.method, call.params, call.timeout, {},
                           [impl, next, reply, work, limits](Result<json> result) {
                             // A host that stays silent must not keep its launcher job, nor the
                             // transaction, for ever: the VM is known not to be there, and noded
                             // gives the devices of absent VMs back when it is asked again.
                             const bool give_up = !result && result.error().unknown_effect() &&
                                                  reply.tries >= kAsksForRelease;
                             if (!result && !give_up) return impl->failed(reply, result.error());
                             if (give_up)
                               log_warning(result.error().with("devices not released").message);
                             give_back(*impl, next + 1, reply, work, limits);
                           });
}

void Executor::on_jobs(const std::vector<JobInfo>& jobs) {
  std::vector<std::pair<Event, Result<json>>> decided;
  {
    std::lock_guard lock(impl_->mutex);
    std::erase_if(impl_->waits, [&](Impl::Wait& wait) {
      auto job = std::find_if(jobs.begin(), jobs.end(),
                              [&](const JobInfo& j) { return j.id == wait.job_id; });
      if (job == jobs.end()) {
        // slurmctld lists a job at once and keeps ended ones for MinJobAge. The first lists may be
        // older than the submission.
        if (++wait.missing < kMissingPolls) return false;
        decided.emplace_back(
            wait.reply,
            Error{Code::kUnavailable,
                  fmt::format("launcher job {} is not known to Slurm any more", wait.job_id)});
        return true;
      }
      if (job->state == JobState::kPending || job->state == JobState::kConfiguring) return false;
      if (job->state == JobState::kRunning && !job->nodes.empty()) {
        decided.emplace_back(wait.reply,
                             json{{"host", job->nodes.front()}, {"job_id", wait.job_id}});
        return true;
      }
      if (job->state == JobState::kRunning || job->state == JobState::kCompleting) return false;
      decided.emplace_back(
          wait.reply,
          Error{Code::kUnavailable,
                fmt::format("launcher job {} ended before it held a host; see scontrol show "
                            "job {}",
                            wait.job_id, wait.job_id)});
      return true;
    });
  }
  for (auto& [event, result] : decided) impl_->finish(event, std::move(result));
}

void Executor::forget_waits(std::int64_t tx) {
  std::lock_guard lock(impl_->mutex);
  std::erase_if(impl_->waits, [&](const Impl::Wait& wait) { return wait.reply.tx == tx; });
}

void Executor::renew_leases(const Transaction& tx, std::int64_t generation) {
  for (const VmPart& vm : tx.vms) {
    if (!vm.rest_begun || vm.host().empty()) continue;
    for (std::uint32_t job : vm.jobs) {
      json params = {
          {"vm", vm.vm},
          {"gen", generation},
          {"op", fmt::format("{}/renew/{}/{}", tx.id, vm.vm, impl_->p.clock->now_ns())},
          {"deadline_ms", 5'000},
          {"method", "job.renew"},
          {"params", {{"job", job}, {"epoch", tx.id}, {"lease_ms", tx.policy.lease_ms}}}};
      impl_->p.hypervisor->call(vm.host(), "guest.call", std::move(params), milliseconds(5'000), {},
                                [](Result<json>) {});
    }
  }
}

}  // namespace symvirt
