#include "spank-symvirt/coordinator/daemon.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>

#include "common/file_limit.h"
#include "common/log.h"
#include "common/subprocess.h"
#include "spank-symvirt/coordinator/json_access.h"

namespace symvirt {

using nlohmann::json;
using std::chrono::milliseconds;

namespace {

constexpr std::int64_t kSecond = 1'000'000'000;
constexpr std::int64_t kInventoryEvery = 5 * kSecond;
constexpr std::size_t kKeptEvents = 4000;
// A VM is not on its host: the look may have crossed a move that had just ended.
constexpr int kLooksUntilLost = 3;

}  // namespace

// Unix time as it was when the daemon started, and what passed since. A wall clock that is stepped
// would end deadlines early, or let leases run out that nobody renews.
class Daemon::SystemClock : public Clock {
 public:
  std::int64_t now_ns() override { return offset_ns_ + read(CLOCK_BOOTTIME); }

 private:
  static std::int64_t read(clockid_t clock) {
    timespec t{};
    clock_gettime(clock, &t);
    return static_cast<std::int64_t>(t.tv_sec) * kSecond + t.tv_nsec;
  }
  const std::int64_t offset_ns_ = read(CLOCK_REALTIME) - read(CLOCK_BOOTTIME);
};

class Daemon::Hosts : public Hypervisor {
 public:
  explicit Hosts(RpcPool& pool) : pool_(pool) {}
  void call(const std::string& host, const std::string& method, json params, milliseconds timeout,
            Progress progress, Done done) override {
    pool_.call(host, method, std::move(params), timeout, std::move(progress), std::move(done));
  }

 private:
  RpcPool& pool_;
};

// The site's command; its exit code is the answer. A thread each: fencing takes as long as a power
// controller.
class Daemon::CommandFence : public Fence {
 public:
  CommandFence(std::vector<std::string> command, milliseconds limit)
      : command_(std::move(command)), limit_(limit) {}
  bool available() const override { return !command_.empty(); }
  void fence(const std::string& host, Done done) override {
    std::thread([command = command_, limit = limit_, host, done = std::move(done)]() mutable {
      for (std::string& word : command) {
        if (const std::size_t at = word.find("{host}"); at != std::string::npos)
          word.replace(at, 6, host);
      }
      auto result = run_program(command, Deadline::after(limit));
      if (!result) return done(result.error().with("fence of " + host));
      if (result->ok()) return done({});
      done(Error{Code::kRefused, fmt::format("fence of {}: {}: {}; is the host off?", host,
                                             command[0], result->why())});
    }).detach();
  }

 private:
  std::vector<std::string> command_;
  milliseconds limit_;
};

// libslurm takes one caller at a time and blocks: it has a thread of its own, which also polls.
struct Daemon::SlurmThread {
  SlurmThread(SlurmApi& slurm, milliseconds every,
              std::function<void(Result<Snapshot>)> on_snapshot)
      : api(slurm), period(every), report(std::move(on_snapshot)), thread([this] { work(); }) {}
  ~SlurmThread() {
    {
      std::lock_guard lock(mutex);
      stopping = true;
    }
    wake.notify_all();
    thread.join();
  }
  void post(std::function<void()> task) {
    {
      std::lock_guard lock(mutex);
      queue.push_back(std::move(task));
    }
    wake.notify_all();
  }
  Result<Snapshot> poll() {
    const Deadline deadline = Deadline::after(milliseconds(20'000));
    auto nodes = api.poll_nodes(deadline);
    if (!nodes) return nodes.error();
    auto jobs = api.poll_jobs(deadline);
    if (!jobs) return jobs.error();
    return Snapshot{std::move(*nodes), std::move(*jobs)};
  }
  void work() {
    auto next = Deadline::Clock::now();
    for (;;) {
      std::function<void()> task;
      {
        std::unique_lock lock(mutex);
        wake.wait_until(lock, next, [this] { return stopping || !queue.empty(); });
        if (stopping) return;
        if (!queue.empty()) {
          task = std::move(queue.front());
          queue.pop_front();
        }
      }
      if (task) {
        task();
        continue;
      }
      report(poll());
      next = Deadline::Clock::now() + period;
    }
  }

  SlurmApi& api;
  milliseconds period;
  std::function<void(Result<Snapshot>)> report;
  std::mutex mutex;
  std::condition_variable wake;
  std::deque<std::function<void()>> queue;
  bool stopping = false;
  std::thread thread;
};

Daemon::Daemon(Parts parts) : p_(std::move(parts)) {
  clock_ = std::make_unique<SystemClock>();
  RpcPool::Options pool;
  pool.port = p_.config.noded_port;
  pool.addresses = p_.config.host_addresses;
  pool.max_spare = std::min(pool.max_spare, file_limit() / 4);
  pool.replier_allowed = [this](uid_t uid) { return is_admin(uid); };
  pool_ = std::make_unique<RpcPool>(std::move(pool), *p_.credentials);
  hypervisor_ = std::make_unique<Hosts>(*pool_);
  fence_ =
      std::make_unique<CommandFence>(p_.config.fence_command, milliseconds(p_.config.fence_ms));

  Executor::Parts e;
  e.hypervisor = hypervisor_.get();
  e.slurm = p_.slurm.get();
  e.clock = clock_.get();
  e.fence = fence_.get();
  e.config = &p_.config;
  e.slurm_post = [this](std::function<void()> work) { slurm_->post(std::move(work)); };
  e.emit = [this](Event event) {
    loop_.post([this, event = std::move(event)]() mutable { engine_->post(std::move(event)); });
  };
  e.on_progress = [this](std::int64_t tx, const std::string& vm, const json& p) {
    loop_.post([this, tx, vm, p] {
      progress_[{tx, vm}] = p;
      json line = {{"schema_version", kSchemaVersion},
                   {"event", "progress"},
                   {"tx", tx},
                   {"vm", vm},
                   {"time_s", static_cast<double>(clock_->now_ns()) / 1e9},
                   {"progress", p}};
      publish(std::move(line));
    });
  };
  executor_ = std::make_unique<Executor>(std::move(e));

  Engine::Parts parts_of_engine;
  parts_of_engine.journal = p_.journal.get();
  parts_of_engine.clock = clock_.get();
  parts_of_engine.start = [this](const Transaction& tx, const Action& a, std::int64_t generation) {
    executor_->start(tx, a, generation);
  };
  parts_of_engine.forget = [this](std::int64_t tx) { executor_->forget_waits(tx); };
  parts_of_engine.renew = [this](const Transaction& tx, std::int64_t generation) {
    executor_->renew_leases(tx, generation);
  };
  parts_of_engine.observe = [this](const Event& event, const Transaction& tx) {
    observe(event, tx);
  };
  engine_ = std::make_unique<Engine>(std::move(parts_of_engine));
}

Daemon::~Daemon() {
  {
    std::lock_guard lock(events_mutex_);
    stopping_ = true;
  }
  events_wake_.notify_all();
  if (server_) server_->stop();
  slurm_.reset();
  pool_.reset();
}

Status Daemon::run(const std::function<void()>& ready) {
  if (Status status = engine_->recover(); !status) return status;
  slurm_ = std::make_unique<SlurmThread>(
      *p_.slurm, milliseconds(p_.config.poll_ms), [this](Result<Snapshot> snapshot) {
        auto shared = std::make_shared<Result<Snapshot>>(std::move(snapshot));
        loop_.post([this, shared] {
          slurm_answers_ = shared->has_value();
          if (!*shared) {
            if (slurm_error_ != shared->error().message) log_warning(shared->error().message);
            slurm_error_ = shared->error().message;
            return;
          }
          slurm_error_.clear();
          on_snapshot(std::move(**shared));
        });
      });
  RpcServer::Options options;
  options.host = p_.host;
  options.trusted = [this](uid_t uid) { return is_admin(uid); };
  const std::size_t colon = p_.config.listen.rfind(':');
  options.address = p_.config.listen.substr(0, colon);
  if (options.address.empty()) options.address = "0.0.0.0";
  options.port =
      colon == std::string::npos ? 6820 : std::atoi(p_.config.listen.c_str() + colon + 1);
  server_ = std::make_unique<RpcServer>(std::move(options), *p_.credentials);
  add_methods();
  if (Status status = server_->start(); !status) return status;
  ready();
  loop_.run([this]() -> milliseconds {
    if (Status status = engine_->turn(); !status) {
      fail(status.error());
      return milliseconds(0);
    }
    const std::int64_t now = clock_->now_ns();
    if (now >= next_inventory_ns_ && !snapshot_.nodes.empty()) {
      next_inventory_ns_ = now + kInventoryEvery;
      ask_inventory();
    }
    const std::int64_t next = engine_->next_wakeup_ns();
    if (next <= now) return milliseconds(0);
    return milliseconds(std::min<std::int64_t>((next - now) / 1'000'000 + 1, 1000));
  });
  if (fatal_) return *fatal_;
  return {};
}

void Daemon::fail(const Error& error) {
  log_error(error.message);
  fatal_ = error;
  loop_.stop();
}

View Daemon::view() const {
  return View{
      &p_.config,   &snapshot_.nodes, &snapshot_.jobs, &engine_->vms(), &engine_->transactions(),
      &hosts_seen_, clock_->now_ns(), getuid()};
}

void Daemon::on_snapshot(Snapshot snapshot) {
  snapshot_ = std::move(snapshot);
  executor_->on_jobs(snapshot_.jobs);
  begin_wanted_boots();
  const Decisions decisions = decide(view());
  for (const auto& [vm, note] : decisions.notes) {
    if (notes_[vm] != note) log_warning(fmt::format("{}: {}", vm, note));
  }
  notes_ = decisions.notes;
  carry_out(decisions);
}

void Daemon::begin_wanted_boots() {
  for (Transaction& tx : wanted_up_.take(view())) {
    if (auto id = engine_->begin(std::move(tx)); !id) return fail(id.error());
  }
}

void Daemon::carry_out(const Decisions& decisions) {
  std::set<std::string> lost_now, unheld_now;
  for (const Decision& d : decisions.list) {
    switch (d.kind) {
      case Decision::Kind::kBegin: {
        auto id = engine_->begin(d.tx);
        if (!id && id.error().code == Code::kInternal) return fail(id.error());
        if (!id) log_warning(id.error().message);
        break;
      }
      case Decision::Kind::kCancel:
        log_info(fmt::format("transaction {} is cancelled: {}", d.id, d.reason));
        if (Status status = engine_->cancel(d.id); !status) log_warning(status.error().message);
        break;
      case Decision::Kind::kPowerDown:
        // Slurm needs a moment to show it; it is not asked twice a second.
        if (clock_->now_ns() - powered_down_ns_[d.node] < 30 * kSecond) break;
        powered_down_ns_[d.node] = clock_->now_ns();
        log_info(fmt::format("{} is powered down: {}", d.node, d.reason));
        tell_slurm([d](SlurmApi& slurm, Deadline by) { return slurm.power_down(d.node, by); });
        break;
      case Decision::Kind::kDrainNode:
        tell_slurm([d](SlurmApi& slurm, Deadline by) {
          return slurm.set_node_drain(d.node, d.reason, by);
        });
        break;
      case Decision::Kind::kResumeNode:
        tell_slurm([d](SlurmApi& slurm, Deadline by) { return slurm.resume_node(d.node, by); });
        break;
      case Decision::Kind::kVmLost:
        lost_now.insert(d.node);
        if (++lost_looks_[d.node] >= kLooksUntilLost) give_up_lost(d);
        break;
      case Decision::Kind::kLauncherLost:
        if (!launcher_is_lost(d)) unheld_now.insert(d.node);
        break;
      case Decision::Kind::kGiveBack:
        log_warning(fmt::format("{}: {}", d.node, d.reason));
        tell_slurm([d](SlurmApi& slurm, Deadline by) {
          return slurm.set_node_down(d.node, d.reason, by);
        });
        break;
    }
  }
  std::erase_if(lost_looks_, [&](const auto& item) { return lost_now.count(item.first) == 0; });
  std::erase_if(unheld_since_ns_,
                [&](const auto& item) { return unheld_now.count(item.first) == 0; });
}

void Daemon::tell_slurm(std::function<Status(SlurmApi&, Deadline)> what) {
  slurm_->post([this, what = std::move(what), deadline = Deadline::after(milliseconds(20'000))] {
    if (Status status = what(*p_.slurm, deadline); !status) log_warning(status.error().message);
  });
}

void Daemon::give_up_lost(const Decision& d) {
  const std::uint32_t launcher = engine_->vms().at(d.node).launcher_job;
  if (Status status = engine_->forget_vm(d.node, d.reason); !status) return fail(status.error());
  tell_slurm([d, launcher](SlurmApi& slurm, Deadline by) {
    Status down = slurm.set_node_down(d.node, d.reason, by);
    if (launcher != 0) (void)slurm.cancel_job(launcher, by);
    return down;
  });
}

// A launcher ends with its VM, too: only a look at the host that began after the launcher was
// missed tells which of the two it was.
bool Daemon::launcher_is_lost(const Decision& d) {
  const auto since = unheld_since_ns_.try_emplace(d.node, clock_->now_ns()).first->second;
  const HostSeen& seen = hosts_seen_[d.host];
  if (!seen.answered || seen.asked_ns <= since || seen.vms.count(d.node) == 0) return false;
  log_warning(fmt::format("{} is drained: {}", d.host, d.reason));
  tell_slurm(
      [d](SlurmApi& slurm, Deadline by) { return slurm.set_node_drain(d.host, d.reason, by); });
  return true;
}

void Daemon::ask_inventory() {
  for (const NodeInfo& node : snapshot_.nodes) {
    if (node.partitions.find(p_.config.hosts_partition) == std::string::npos) continue;
    const std::string host = node.name;
    const std::int64_t asked_ns = clock_->now_ns();
    pool_->call(host, "host.info", {{"deadline_ms", 4'000}}, milliseconds(4'000), {},
                [this, host, asked_ns](Result<json> info) {
                  auto shared = std::make_shared<Result<json>>(std::move(info));
                  loop_.post([this, host, asked_ns, shared] {
                    HostSeen& seen = hosts_seen_[host];
                    seen.answered = shared->has_value() && flag_of(**shared, "libvirt_ok");
                    seen.asked_ns = asked_ns;
                    seen.vms.clear();
                    if (!*shared) {
                      if (host_errors_[host].empty())
                        log_warning(fmt::format("{}: {}", host, shared->error().message));
                      host_errors_[host] = shared->error().message;
                      return;
                    }
                    host_errors_.erase(host);
                    host_info_[host] = **shared;
                    for (const json& vm : objects_of(**shared, "vms")) {
                      seen.vms[text_of(vm, "vm")] = text_of(vm, "state");
                    }
                  });
                });
  }
}

void Daemon::observe(const Event& event, const Transaction& tx) {
  json line = view_of(event, tx);
  const std::string message = text_of(line, "message");
  if (event.type == EventType::kStepFailed)
    log_warning(message);
  else
    log_info(message);
  if (tx.ended()) {
    std::erase_if(progress_, [&](const auto& item) { return item.first.first == tx.id; });
    line["transaction"] = view_of(tx, progress_);
  }
  publish(std::move(line));
}

void Daemon::publish(json line) {
  std::lock_guard lock(events_mutex_);
  events_.push_back(std::move(line));
  while (events_.size() > kKeptEvents) {
    events_.pop_front();
    ++events_begin_;
  }
  events_wake_.notify_all();
}

}  // namespace symvirt
