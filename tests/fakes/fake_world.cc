#include "tests/fakes/fake_world.h"

#include <fmt/format.h>

#include <algorithm>

namespace symvirt::fakes {

using nlohmann::json;

Status FakeJournal::append(const json& event) {
  if (broken) return Error{Code::kInternal, "disk full"};
  records.push_back(event.dump());
  return {};
}

Status FakeJournal::replay(const std::function<void(const json&)>& each) {
  for (const std::string& record : records) {
    const json j = json::parse(record, nullptr, false);
    if (!j.is_discarded()) each(j);
  }
  return {};
}

FakeWorld::FakeWorld() {
  for (const char* name : {"hv1", "hv2", "hv3"}) hosts[name];
}

Fault FakeWorld::take_fault(const std::string& what) {
  if (++calls != fault_at) return Fault::kNone;
  faulted = what;
  return fault;
}

void FakeWorld::call(const std::string& host, const std::string& method, json params,
                     std::chrono::milliseconds, Progress, Hypervisor::Done done) {
  std::string what = method == "guest.call" ? params.value("method", "") : method;
  if (hosts[host].dead) {
    answers.emplace_back(std::move(done), Error{Code::kUnavailable, host + ": connection refused"});
    return;
  }
  const bool always_fails = failing_methods.count(what + "@" + host) > 0;
  const Fault f = take_fault(what + "@" + host + " " + params.value("vm", ""));
  if (f == Fault::kCrashBefore) throw Crash{};
  if (f == Fault::kFail || always_fails) {
    answers.emplace_back(std::move(done), Error{Code::kInternal, what + ": made to fail"});
    return;
  }
  if (f == Fault::kHangBefore) {
    answers.emplace_back(std::move(done), Error{Code::kDeadline, what + ": no answer"});
    return;
  }
  Result<json> result = perform(host, method, params);
  note_copies();
  if (f == Fault::kCrashAfter) throw Crash{};
  if (f == Fault::kHangAfter) result = Error{Code::kDeadline, what + ": no answer"};
  answers.emplace_back(std::move(done), std::move(result));
}

Result<json> FakeWorld::perform(const std::string& host, const std::string& method,
                                const json& params) {
  FakeHost& h = hosts[host];
  if (!params.contains("gen")) return Error{Code::kInvalidArgument, "field gen is missing"};
  const std::int64_t gen = params.value("gen", std::int64_t{0});
  if (gen < h.generation) return Error{Code::kPrecondition, "stale generation"};
  h.generation = gen;
  const std::string op = params.value("op", "");
  if (auto it = h.ops.find(op); it != h.ops.end()) return it->second;
  Result<json> result =
      method == "guest.call"
          ? guest_method(host, params.value("method", ""), params.value("vm", ""), params["params"])
          : host_method(host, method, params);
  if (method != "vm.info") h.ops.insert_or_assign(op, result);
  return result;
}

Result<json> FakeWorld::host_method(const std::string& host, const std::string& method,
                                    const json& params) {
  FakeHost& h = hosts[host];
  const std::string vm = params.value("vm", "");
  auto it = h.vms.find(vm);
  if (method == "vm.info") {
    if (it == h.vms.end()) return json{{"state", "absent"}};
    json info = {{"state", it->second.state}, {"migrating", false}};
    if (!it->second.model.empty()) info["models"] = {{"hca0", it->second.model}};
    return info;
  }
  if (method == "lease.wait") {
    auto job = jobs.find(params.value("job_id", 0u));
    if (job == jobs.end() || job->second.host != host || job->second.state != JobState::kRunning) {
      return Error{Code::kNotFound, vm + ": no lease"};
    }
    return json::object();
  }
  if (method == "device.reserve") {
    if (h.reserved.count(vm) > 0) return json::object();
    const json models = params.value("models", json::object());
    if (!h.model.empty() && models.contains("hca0") && models["hca0"] != h.model)
      return Error{Code::kPrecondition, host + ": devices of another model"};
    if (static_cast<int>(h.reserved.size()) >= h.capacity)
      return Error{Code::kExhausted, host + ": no free device"};
    h.reserved.insert(vm);
    return json::object();
  }
  if (method == "device.release") {
    if (it != h.vms.end() && it->second.state == "running")
      return Error{Code::kPrecondition, vm + " runs here"};
    h.reserved.erase(vm);
    return json::object();
  }
  if (method == "vm.start") {
    if (h.reserved.count(vm) == 0) return Error{Code::kPrecondition, vm + ": nothing reserved"};
    h.vms.try_emplace(vm);
    return json::object();
  }
  if (method == "vm.stop") {
    const bool runs = it != h.vms.end() && it->second.state == "running";
    if (params.value("mode", "") == "leftover" && runs) return json::object();
    h.vms.erase(vm);
    return json::object();
  }
  if (it == h.vms.end()) return Error{Code::kNotFound, vm + " is not on " + host};
  if (method == "vm.resume") it->second.state = "running";
  if (method == "vm.resume" || method == "vm.migrate_abort") return json::object();
  if (method == "device.detach") {
    if (guests[vm].rest_epoch != 0 && !guests[vm].device_leaves)
      broken_.push_back(vm + " loses a device of which its ranks were told that it stays");
    it->second.device = it->second.linked = false;
    return json::object();
  }
  if (method == "device.attach") {
    if (h.reserved.count(vm) == 0) return Error{Code::kPrecondition, vm + ": nothing reserved"};
    it->second.device = true;
    return json::object();
  }
  if (method == "vm.migrate") return migrate(host, vm, params.value("to", ""));
  return Error{Code::kInvalidArgument, "unknown method " + method};
}

Result<json> FakeWorld::migrate(const std::string& host, const std::string& vm,
                                const std::string& to) {
  FakeHost& source = hosts[host];
  FakeHost& target = hosts[to];
  if (source.vms[vm].device) {
    broken_.push_back(vm + " was migrated with its device attached");
    return Error{Code::kPrecondition, "device attached"};
  }
  if (guests[vm].rest_epoch == 0) broken_.push_back(vm + " was migrated while its ranks ran");
  if (host == dies_on_migrate) {
    source.dead = true;
    source.vms.clear();
    if (!left_at_target.empty()) target.vms[vm] = FakeVm{left_at_target};
    return Error{Code::kUnavailable, host + ": connection lost"};
  }
  if (to == dies_on_migrate) target.dead = true;
  if (target.dead) return Error{Code::kInternal, "unable to connect to " + to};
  if (target.reserved.count(vm) == 0)
    broken_.push_back(vm + " came to a host that had reserved nothing");
  target.vms[vm] = source.vms[vm];
  source.vms.erase(vm);
  return json{{"transferred_bytes", 1 << 20}, {"downtime_ms", 30}};
}

Result<json> FakeWorld::guest_method(const std::string& host, const std::string& method,
                                     const std::string& vm, const json& params) {
  FakeHost& h = hosts[host];
  auto it = h.vms.find(vm);
  if (it == h.vms.end()) return Error{Code::kUnavailable, vm + ": no guest here"};
  FakeGuest& g = guests[vm];
  const std::int64_t epoch = params.value("epoch", std::int64_t{0});
  if (method == "guest.ping" || method == "guest.set_clock") return json::object();
  if (method == "guest.configure") {
    g.configured = true;
    return json::object();
  }
  if (method == "guest.start_node") {
    g.node_started = true;
    return json::object();
  }
  if (method == "job.plan") return json{{"refusals", json::array()}};
  if (method == "job.renew") return json::object();
  if (method == "job.quiesce") {
    if (epoch < g.highest_epoch || (epoch == g.highest_epoch && g.rest_epoch == 0))
      return Error{Code::kPrecondition, "old epoch"};
    const int round = params.value("round", 0);
    if (round > g.rest_round + 1)
      broken_.push_back(fmt::format("{}: round {} after {}", vm, round, g.rest_round));
    g.highest_epoch = g.rest_epoch = epoch;
    g.rest_round = round;
    g.device_leaves = params.value("device_leaves", true);
    return json{{"more", round < 2 || endless.count(method) > 0}, {"answers", json::array()}};
  }
  if (method == "job.resume") {
    if (epoch != g.rest_epoch) return json{{"members", 0}};
    if (endless.count(method) > 0) return json{{"more", true}};
    if (!it->second.device || !it->second.linked)
      broken_.push_back(vm + " was resumed without its device");
    g.rest_epoch = 0;
    g.rest_round = 0;
    return json{{"more", false}};
  }
  if (method == "device.let_go") {
    if (epoch != 0 && g.rest_epoch != epoch) return Error{Code::kPrecondition, "not at rest"};
    g.let_go = true;
    it->second.linked = false;
    return json::object();
  }
  if (method == "device.ready") {
    if (!it->second.device) return Error{Code::kDeadline, vm + ": no device"};
    it->second.linked = true;
    g.let_go = false;
    return json::object();
  }
  return Error{Code::kInvalidArgument, "unknown guest method " + method};
}

void FakeWorld::note_copies() {
  for (const auto& [vm, guest] : guests) {
    if (where_running(vm).size() > 1) broken_.push_back(vm + " ran twice");
  }
  for (const auto& [name, h] : hosts) {
    if (static_cast<int>(h.reserved.size()) > h.capacity)
      broken_.push_back(name + " gave away more devices than it has");
  }
}

std::vector<std::string> FakeWorld::where_running(const std::string& vm) const {
  std::vector<std::string> names;
  for (const auto& [name, h] : hosts) {
    auto it = h.vms.find(vm);
    if (it != h.vms.end() && it->second.state == "running") names.push_back(name);
  }
  return names;
}

std::vector<std::string> FakeWorld::broken_rules() const { return broken_; }

Result<std::uint32_t> FakeWorld::submit_launcher(const LauncherSpec& spec, Deadline) {
  const Fault f = take_fault("submit_launcher " + spec.vm);
  if (f == Fault::kCrashBefore) throw Crash{};
  if (f == Fault::kFail) return Error{Code::kInternal, "submit: made to fail"};
  if (f == Fault::kHangBefore) return Error{Code::kDeadline, "submit: no answer"};
  for (const auto& [id, job] : jobs) {
    if (job.spec.tag == spec.tag && job.state != JobState::kEnded) return id;
  }
  const std::uint32_t id = next_job_++;
  jobs[id] = FakeJob{spec, JobState::kPending, ""};
  if (f == Fault::kCrashAfter) throw Crash{};
  if (f == Fault::kHangAfter) return Error{Code::kDeadline, "submit: no answer"};
  return id;
}

Result<std::vector<JobInfo>> FakeWorld::poll_jobs(Deadline) {
  std::vector<JobInfo> list;
  for (auto& [id, job] : jobs) {
    for (auto& [name, h] : hosts) {
      const auto& exclude = job.spec.exclude_hosts;
      const auto used = std::count_if(jobs.begin(), jobs.end(), [host = name](const auto& j) {
        return j.second.state == JobState::kRunning && j.second.host == host;
      });
      if (job.state != JobState::kPending || h.drained || h.dead || used >= h.capacity) continue;
      if (std::find(exclude.begin(), exclude.end(), name) != exclude.end()) continue;
      job.state = JobState::kRunning;
      job.host = name;
    }
    JobInfo info;
    info.id = id;
    info.state = job.state;
    if (!job.host.empty()) info.nodes = {job.host};
    list.push_back(info);
  }
  for (const auto& [id, minutes] : time_limits) {
    JobInfo info;
    info.id = id;
    info.state = JobState::kRunning;
    info.time_limit_min = minutes;
    list.push_back(info);
  }
  return list;
}

Status FakeWorld::cancel_launchers(const std::string& tag_prefix, Deadline) {
  const Fault f = take_fault("cancel_launchers " + tag_prefix);
  if (f == Fault::kCrashBefore) throw Crash{};
  if (f == Fault::kFail) return Error{Code::kInternal, "scancel: made to fail"};
  if (f == Fault::kHangBefore) return Error{Code::kDeadline, "scancel: no answer"};
  for (auto& [id, job] : jobs) {
    if (job.spec.tag.rfind(tag_prefix, 0) == 0) job.state = JobState::kEnded;
  }
  if (f == Fault::kCrashAfter) throw Crash{};
  if (f == Fault::kHangAfter) return Error{Code::kDeadline, "scancel: no answer"};
  return {};
}

Status FakeWorld::cancel_job(std::uint32_t id, Deadline) {
  const Fault f = take_fault("cancel_job");
  if (f == Fault::kCrashBefore) throw Crash{};
  if (f == Fault::kFail) return Error{Code::kInternal, "scancel: made to fail"};
  if (f == Fault::kHangBefore) return Error{Code::kDeadline, "scancel: no answer"};
  jobs[id].state = JobState::kEnded;
  if (f == Fault::kCrashAfter) throw Crash{};
  if (f == Fault::kHangAfter) return Error{Code::kDeadline, "scancel: no answer"};
  return {};
}

Status FakeWorld::set_node_down(const std::string& node, const std::string& reason, Deadline) {
  down_nodes[node] = reason;
  return {};
}

Status FakeWorld::set_admin_comment(std::uint32_t job, const std::string& line, Deadline) {
  notes[job] = line;
  return {};
}

Status FakeWorld::set_time_limit(std::uint32_t job, std::uint32_t minutes, Deadline) {
  const Fault f = take_fault("set_time_limit");
  if (f == Fault::kCrashBefore) throw Crash{};
  if (f == Fault::kFail) return Error{Code::kRefused, "time limit: made to fail"};
  if (f == Fault::kHangBefore) return Error{Code::kDeadline, "time limit: no answer"};
  time_limits[job] = minutes;
  if (f == Fault::kCrashAfter) throw Crash{};
  if (f == Fault::kHangAfter) return Error{Code::kDeadline, "time limit: no answer"};
  return {};
}

void FakeWorld::fence(const std::string& host, Fence::Done done) {
  ++fences;
  hosts[host].vms.clear();
  hosts[host].dead = true;
  answers.emplace_back([done = std::move(done)](Result<json>) { done({}); }, json::object());
}

void FakeWorld::boot_by_hand(const std::string& vm, const std::string& host) {
  FakeHost& h = hosts[host];
  h.vms[vm] = FakeVm{"running", true, true};
  h.reserved.insert(vm);
  guests[vm].node_started = true;
  FakeJob job;
  job.spec.vm = vm;
  job.spec.tag = "by-hand:" + vm;
  job.state = JobState::kRunning;
  job.host = host;
  jobs[next_job_++] = job;
}

std::string FakeWorld::summary() const {
  std::string text;
  for (const auto& [name, h] : hosts) {
    text += name + (h.dead ? " dead" : "") + ":";
    for (const auto& [vm, v] : h.vms)
      text += fmt::format(" {}({}{}{})", vm, v.state, v.device ? " device" : "",
                          v.linked ? " linked" : "");
    text += " reserved";
    for (const auto& vm : h.reserved) text += " " + vm;
    for (const auto& [id, job] : jobs) {
      if (job.state == JobState::kRunning && job.host == name)
        text += fmt::format(" job {}={}", id, job.spec.vm);
    }
    text += "\n";
  }
  for (const auto& [vm, g] : guests)
    text += fmt::format("{}: rest {} let_go {}\n", vm, g.rest_epoch, g.let_go);
  return text;
}

Simulation::Simulation(Config config) : config_(std::move(config)) { restart(); }

void Simulation::restart() {
  ++restarts;
  const std::int64_t incarnation = ++incarnation_;
  world.answers.clear();
  engine_.reset();
  executor_.reset();
  auto alive = [this, incarnation] { return incarnation == incarnation_ && engine_ != nullptr; };
  Executor::Parts parts;
  parts.hypervisor = &world;
  parts.slurm = &world;
  parts.fence = &world;
  parts.clock = &clock;
  parts.config = &config_;
  parts.slurm_post = [](std::function<void()> work) { work(); };
  parts.emit = [this, alive](Event event) {
    if (alive()) engine_->post(std::move(event));
  };
  executor_ = std::make_unique<Executor>(std::move(parts));
  Engine::Parts e;
  e.journal = &journal;
  e.clock = &clock;
  e.start = [this](const Transaction& tx, const Action& action, std::int64_t generation) {
    executor_->start(tx, action, generation);
  };
  e.forget = [this](std::int64_t tx) { executor_->forget_waits(tx); };
  engine_ = std::make_unique<Engine>(std::move(e));
  if (Status status = engine_->recover(); !status) throw std::runtime_error(status.error().message);
}

bool Simulation::guarded(const std::function<void()>& work) {
  try {
    work();
    return true;
  } catch (const FakeWorld::Crash&) {
    world.fault = Fault::kNone;
    restart();
    return false;
  }
}

void Simulation::step() {
  const bool ok = guarded([&] {
    bool delivered = false;
    while (!world.answers.empty()) {
      auto [done, result] = std::move(world.answers.front());
      world.answers.pop_front();
      done(std::move(result));
      delivered = true;
    }
    if (Status status = engine_->turn(); !status) throw std::runtime_error(status.error().message);
    if (delivered || !world.answers.empty()) return;
    if (auto jobs = world.poll_jobs(Deadline::after(std::chrono::milliseconds(0))))
      executor_->on_jobs(*jobs);
    const std::int64_t next = engine_->next_wakeup_ns();
    clock.now = std::max(clock.now + 1'000'000, std::min(next, clock.now + 250'000'000));
  });
  (void)ok;
}

bool Simulation::run(std::int64_t limit_s) {
  const std::int64_t end = clock.now + limit_s * 1'000'000'000;
  auto busy = [&] {
    for (const auto& [id, tx] : engine_->transactions()) {
      if (!tx.ended()) return true;
    }
    return false;
  };
  while (busy()) {
    if (clock.now > end) return false;
    step();
  }
  return true;
}

Result<std::int64_t> Simulation::begin(Transaction tx) { return engine_->begin(std::move(tx)); }

Config two_vm_config() {
  Config config;
  ClassConfig c;
  c.name = "standard";
  c.nodes = {"v1", "v2"};
  c.domain_xml = "<domain><name>@VM@</name></domain>";
  c.memory_mib = 600;
  SlotConfig slot;
  slot.slot = "ib0";
  slot.gres = "hca";
  slot.quiesce = "tcp";
  slot.mac = "52:54:00:78:00:{index:02x}";
  slot.addresses = {"10.78.0.{100+index}/24"};
  c.slots.push_back(slot);
  config.classes.push_back(c);
  return config;
}

Transaction evacuation(const FakeWorld& world, const std::vector<std::string>& moving,
                       const std::vector<std::string>& resting) {
  Transaction tx;
  tx.kind = TxKind::kEvacuate;
  tx.cause = "test";
  auto add = [&](const std::string& name, bool moves) {
    VmPart vm;
    vm.vm = name;
    vm.vm_class = "standard";
    vm.jobs = {7};
    vm.wanted = vm.moving = moves;
    vm.at = Where::kSource;
    vm.from = world.where_running(name).at(0);
    for (const auto& [id, job] : world.jobs) {
      if (job.spec.vm == name && job.state == JobState::kRunning) vm.from_job = id;
    }
    vm.has_device = vm.linked = true;
    tx.vms.push_back(vm);
  };
  for (const auto& name : moving) add(name, true);
  for (const auto& name : resting) add(name, false);
  return tx;
}

}  // namespace symvirt::fakes
