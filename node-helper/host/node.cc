#include "node-helper/host/node.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "common/log.h"
#include "node-helper/host/params.h"

namespace symvirt::host {

using nlohmann::json;
using std::chrono::milliseconds;

namespace {

constexpr milliseconds kLookWithin{5'000};

std::int64_t meminfo(const char* field) {
  std::ifstream file("/proc/meminfo");
  std::string name, unit;
  std::int64_t kib = 0;
  while (file >> name >> kib) {
    std::getline(file, unit);
    if (name == std::string(field) + ":") return kib << 10;
  }
  return 0;
}

}  // namespace

const char* state_name(VmState state) {
  switch (state) {
    case VmState::kAbsent:
      return "absent";
    case VmState::kIncoming:
      return "incoming";
    case VmState::kRunning:
      return "running";
    case VmState::kPaused:
      return "paused";
    case VmState::kShutoff:
      return "shutoff";
  }
  return "absent";
}

const std::map<std::string, Node::Method>& Node::methods() {
  static const std::map<std::string, Method> table = {
      {"host.info", {&Node::host_info, false}},
      {"vm.info", {&Node::vm_info, false}},
      {"lease.wait", {&Node::lease_wait, false}},
      {"lease.open", {&Node::lease_open, false}},
      // guestd knows operations by their ids itself.
      {"guest.call", {&Node::guest_call, false}},
      {"device.reserve", {&Node::device_reserve, true}},
      {"device.release", {&Node::device_release, true}},
      {"device.detach", {&Node::device_detach, true}},
      {"device.attach", {&Node::device_attach, true}},
      {"vm.start", {&Node::vm_start, true}},
      {"vm.stop", {&Node::vm_stop, true}},
      {"vm.suspend", {&Node::vm_suspend, true}},
      {"vm.resume", {&Node::vm_resume, true}},
      {"vm.migrate", {&Node::vm_migrate, true}},
      {"vm.migrate_abort", {&Node::vm_migrate_abort, true}},
  };
  return table;
}

Node::Node(const NodedConfig& config, Hypervisor& hypervisor, Store& store,
           std::function<std::int64_t()> available_memory, const std::string& root)
    : config_(config),
      hypervisor_(hypervisor),
      store_(store),
      available_memory_(std::move(available_memory)),
      bus_(root),
      guests_(hypervisor) {
  if (!available_memory_) available_memory_ = [] { return meminfo("MemAvailable"); };
  HypervisorEvents events;
  events.device_removed = [this](const std::string& vm, const std::string& alias) {
    std::lock_guard lock(mutex_);
    removed_.insert({vm, alias});
    ++unplug_news_;
    changed_.notify_all();
  };
  events.removal_failed = [this](const std::string& vm, const std::string& alias) {
    std::lock_guard lock(mutex_);
    removal_failed_.insert({vm, alias});
    changed_.notify_all();
  };
  events.changed = [this](const std::string& vm) {
    std::lock_guard lock(mutex_);
    ++changes_;
    if (vm.empty()) jobs_.push_back([this] { guests_.reopen_all(); });
    if (vm.empty()) ++unplug_news_;  // its event may be lost
    changed_.notify_all();
  };
  events.ended = [this](const std::string& vm, VmEnd end) {
    std::lock_guard lock(mutex_);
    ++changes_;
    ends_[vm] = end;
    jobs_.push_back([this, vm, end] { on_ended(vm, end); });
    changed_.notify_all();
  };
  hypervisor_.subscribe(std::move(events));
  worker_ = std::thread([this] { work(); });
  unplug_watcher_ = std::thread([this] { watch_unplugs(); });
}

Node::~Node() {
  stop();
  worker_.join();
  unplug_watcher_.join();
}

void Node::stop() {
  std::lock_guard lock(mutex_);
  stopping_ = true;
  changed_.notify_all();
}

void Node::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
    if (stopping_) return;
    auto job = std::move(jobs_.front());
    jobs_.pop_front();
    lock.unlock();
    job();
    lock.lock();
  }
}

void Node::on_ended(const std::string& vm, VmEnd end) {
  guests_.vm_left(vm);
  const char* how = end == VmEnd::kMigrated ? "moved"
                    : end == VmEnd::kSaved  ? "was saved"
                                            : "ended";
  log_info(fmt::format("{}: {}", vm, how));
  // The event of the end of a domain that only began to arrive is one of these, too; it has no
  // overlays here.
  Status s = store_.update([&](NodeState& state) -> Status {
    auto it = state.vms.find(vm);
    if (it == state.vms.end()) return {};
    if (end == VmEnd::kMigrated) it->second.overlays.clear();
    it->second.unplugs.clear();
    it->second.ended_here = end == VmEnd::kStopped && !it->second.overlays.empty();
    return {};
  });
  if (!s) log_error(fmt::format("{}: {}", vm, s.error().message));
}

void Node::add_methods(RpcServer& server) {
  auto allowed = [this](uid_t uid) { return config_.allows(uid); };
  for (const auto& [name, method] : methods())
    server.add(name, {allowed, [this](const RpcRequest& r) { return handle(r); }});
}

Result<json> Node::handle(const RpcRequest& request) {
  auto found = methods().find(request.method);
  if (found == methods().end())
    return Error{Code::kInvalidArgument, "unknown method " + request.method};
  const Method& method = found->second;
  if (stopping_) return Error{Code::kUnavailable, "noded is ending"};
  const json& params = request.params;
  auto name = params.find("op");
  // Before the generation is known: who waits with the same op must see both or none.
  const OperationHold held(
      *this, name != params.end() && name->is_string() ? name->get<std::string>() : "", params);
  if (Status s = check_generation(request, method.changes); !s) return s.error();
  auto progress = [&request](const json& news) {
    if (request.progress) request.progress(news);
  };
  auto work = [&](const OperationLog::Progress& tell) {
    return (this->*method.handler)(request, tell);
  };
  if (!method.changes) return work(progress);
  Params p(request.params);
  const std::string op = p.text_or("op", "");
  const std::string vm = p.name("vm");
  if (Status s = p.status(); !s) return s.error();
  // Whoever works holds the VM's lock: a caller who does not read must not hold it longer.
  auto offer = [&request](const json& news) {
    if (request.offer) request.offer(news);
  };
  const auto begun = std::chrono::steady_clock::now();
  Result<json> result = operations_.run(op, request.deadline, offer, work);
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
  if (result)
    log_info(fmt::format("{} {}: done in {:.2f} s ({})", request.method, vm, seconds, op));
  else
    log_warning(fmt::format("{} {}: {}: {} after {:.2f} s ({})", request.method, vm,
                            code_name(result.error().code), result.error().message, seconds, op));
  return result;
}

std::shared_ptr<TimedGate> Node::vm_lock(const std::string& vm) {
  std::lock_guard lock(mutex_);
  auto& slot = locks_[vm];
  if (!slot) slot = std::make_shared<TimedGate>();
  return slot;
}

bool Node::is_ours(const VmLook& look, const VmRecord& record) const {
  return look.domain.has_guest_port || !look.domain.parts.empty() || !record.empty();
}

Result<VmLook> Node::look_here(const std::string& vm, Deadline deadline) {
  auto look = hypervisor_.look(vm, deadline);
  if (!look) return look;
  switch (look->state) {
    case VmState::kRunning:
    case VmState::kPaused:
      return look;
    case VmState::kIncoming:
      return Error{Code::kPrecondition,
                   fmt::format("{}: is only arriving at {}", vm, config_.host)};
    case VmState::kAbsent:
    case VmState::kShutoff:
      return Error{Code::kNotFound, fmt::format("{}: does not run on {}", vm, config_.host)};
  }
  return look;
}

json Node::vm_to_json(const std::string& vm, const VmLook& look, const VmRecord& record) const {
  json devices = json::array();
  for (const Reservation& r : record.slots) {
    const bool attached = std::any_of(look.domain.parts.begin(), look.domain.parts.end(),
                                      [&](const AttachedPart& p) { return p.slot == r.slot; });
    devices.push_back(
        {{"slot", r.slot}, {"device", r.device}, {"mac", r.mac}, {"attached", attached}});
  }
  std::set<std::string> pending;
  for (const std::string& alias : record.unplugs) {
    if (auto part = parse_alias(alias)) pending.insert(part->slot);
  }
  return {{"vm", vm},
          {"state", state_name(look.state)},
          {"uuid", look.domain.uuid},
          {"guest_connected", guests_.heard_of(vm) || look.domain.guest_port_open},
          {"migrating", look.migrating},
          {"lease_job_id", record.lease.job_id},
          {"devices", devices},
          {"models", look.domain.models},
          {"unplugs_pending", pending},
          {"memory_bytes", look.domain.memory_bytes}};
}

json Node::device_to_json(const DeviceConfig& config, const PassthroughDevice& device) const {
  json entry = {{"device", config.name},
                {"gres", config.gres},
                {"state", "free"},
                {"numa_node", config.numa_node},
                {"description", config.description}};
  if (device.functions.empty()) return entry;
  const PciLook& look = device.functions.front();
  if (config.numa_node < 0) entry["numa_node"] = look.numa_node;
  entry["pci"] = look.address;
  entry["model"] = look.model;
  entry["driver"] = look.driver;
  entry["iommu_group"] = look.iommu_group;
  if (!look.pf.empty()) {
    entry["pf"] = look.pf;
    entry["vf"] = look.vf;
  }
  entry["ports"] = json::array();
  for (const PciPort& port : look.ports)
    entry["ports"].push_back({{"port", port.name}, {"state", port.state}});
  return entry;
}

json Node::devices_to_json(const NodeState& state,
                           const std::map<std::string, VmLook>& looks) const {
  json list = json::array();
  const Inventory devices = inventory();
  for (const DeviceConfig& d : config_.devices) {
    const PassthroughDevice& device = devices.at(d.name);
    json entry = device_to_json(d, device);
    for (const auto& [vm, record] : state.vms) {
      for (const Reservation& r : record.slots) {
        if (r.device != d.name) continue;
        auto look = looks.find(vm);
        const bool attached =
            look != looks.end() &&
            std::any_of(look->second.domain.parts.begin(), look->second.domain.parts.end(),
                        [&](const AttachedPart& p) { return p.slot == r.slot; });
        entry["state"] = attached ? "attached" : "reserved";
        entry["vm"] = vm;
      }
    }
    if (entry["state"] != "attached" && device.problem) entry["problem"] = device.problem->message;
    list.push_back(std::move(entry));
  }
  return list;
}

Result<json> Node::host_info(const RpcRequest& request, const OperationLog::Progress&) {
  const Deadline soon = request.deadline.earlier(Deadline::after(kLookWithin));
  const NodeState state = store_.get();
  auto names = hypervisor_.list(soon);
  std::map<std::string, VmLook> looks;
  json vms = json::array();
  for (const std::string& vm : names ? *names : std::vector<std::string>()) {
    auto look = hypervisor_.look(vm, soon);
    if (!look || look->state == VmState::kAbsent) continue;
    auto found = state.vms.find(vm);
    const VmRecord record = found == state.vms.end() ? VmRecord() : found->second;
    if (!is_ours(*look, record)) continue;
    vms.push_back(vm_to_json(vm, *look, record));
    looks[vm] = std::move(*look);
  }
  json leases = json::array();
  {
    std::lock_guard lock(mutex_);
    for (const auto& [vm, record] : state.vms) {
      if (record.lease.job_id == 0) continue;
      auto live = leases_.find(vm);
      const bool connected = live != leases_.end() && live->second.connected;
      // What is left of a launcher that went before its VM came.
      if (!connected && !looks.contains(vm)) continue;
      leases.push_back({{"vm", vm}, {"job_id", record.lease.job_id}, {"connected", connected}});
    }
  }
  return json{{"host", config_.host},
              {"version", SYMVIRT_VERSION},
              {"generation", state.generation},
              {"libvirt_ok", names.has_value()},
              {"memory_free_bytes", available_memory_()},
              {"memory_total_bytes", meminfo("MemTotal")},
              {"cpus", sysconf(_SC_NPROCESSORS_ONLN)},
              {"vms", vms},
              {"devices", devices_to_json(state, looks)},
              {"leases", leases}};
}

Result<json> Node::vm_info(const RpcRequest& request, const OperationLog::Progress&) {
  Params p(request.params);
  const std::string vm = p.name("vm");
  if (Status s = p.status(); !s) return s.error();
  auto look = hypervisor_.look(vm, request.deadline);
  if (!look) return look.error();
  return vm_to_json(vm, *look, store_.vm(vm));
}

Result<json> Node::guest_call(const RpcRequest& request, const OperationLog::Progress&) {
  Params p(request.params);
  const std::string vm = p.name("vm");
  const std::string method = p.text("method");
  const json params = p.object_or_empty("params");
  std::string id = p.text_or("op", "");
  if (Status s = p.status(); !s) return s.error();
  if (id.empty()) {
    id = fmt::format("{}/{}/{}", config_.host, getpid(), next_line_++);
  }
  auto result = guests_.call(vm, id, method, params, request.deadline, [this, &request] {
    return stopping_ || (request.caller_gone && request.caller_gone()) || !still_current(request);
  });
  if (Status s = still_current(request); !result && !s) return s.error();
  return result;
}

void Node::reconcile() {
  const Deadline deadline = Deadline::after(milliseconds(10'000));
  auto names = hypervisor_.list(deadline);
  if (!names) {
    log_warning(fmt::format("{}; state is as it was stored", names.error().message));
    return;
  }
  for (const std::string& vm : *names) {
    auto look = hypervisor_.look(vm, deadline);
    if (!look || look->domain.parts.empty()) continue;
    Status s = store_.update([&](NodeState& state) -> Status {
      std::set<std::string> taken;
      for (const auto& [name, record] : state.vms) {
        for (const Reservation& r : record.slots) taken.insert(r.device);
      }
      VmRecord& record = state.vms[vm];
      for (const AttachedPart& part : look->domain.parts) {
        auto known = std::find_if(record.slots.begin(), record.slots.end(),
                                  [&](const Reservation& r) { return r.slot == part.slot; });
        if (known != record.slots.end()) continue;
        for (const DeviceConfig& d : config_.devices) {
          if (taken.contains(d.name)) continue;
          log_warning(
              fmt::format("{}: has a device in slot {} that was not on record; taken for {}", vm,
                          part.slot, d.name));
          record.slots.push_back({part.slot, d.gres, d.name, part.mac, ""});
          taken.insert(d.name);
          break;
        }
      }
      record.overlays = look->domain.overlays;
      return {};
    });
    if (!s) log_error(fmt::format("{}: {}", vm, s.error().message));
  }
}

}  // namespace symvirt::host
