#include "tests/fakes/fake_noded.h"

#include <fmt/format.h>

#include <thread>

namespace symvirt::fakes {

using nlohmann::json;
using std::chrono::milliseconds;

namespace {

void rest(int ms) {
  if (ms > 0) std::this_thread::sleep_for(milliseconds(ms));
}

}  // namespace

FakeSite::~FakeSite() {
  for (auto& [name, host] : hosts_) host->server->stop();
}

Status FakeSite::add_host(const std::string& name, std::vector<std::string> devices) {
  auto host = std::make_unique<Host>();
  host->name = name;
  host->devices = std::move(devices);
  RpcServer::Options options;
  options.host = name;
  options.address = "127.0.0.1";
  host->server = std::make_unique<RpcServer>(options, credentials_);
  Host* self = host.get();
  for (const char* method :
       {"host.info", "vm.info", "lease.wait", "lease.open", "device.reserve", "device.release",
        "device.detach", "device.attach", "vm.start", "vm.stop", "vm.suspend", "vm.resume",
        "vm.migrate", "vm.migrate_abort", "guest.call"}) {
    host->server->add(method, {[](uid_t) { return true; },
                               [this, self](const RpcRequest& r) { return handle(*self, r); }});
  }
  if (Status s = host->server->start(); !s) return s;
  std::lock_guard lock(mutex_);
  hosts_[name] = std::move(host);
  return {};
}

void FakeSite::add_vm(const std::string& vm, const std::string& host, std::uint32_t job) {
  std::lock_guard lock(mutex_);
  vms_[vm] = {host, job, true, 0, 0, true};
  for (const std::string& device : hosts_.at(host)->devices) {
    if (hosts_.at(host)->reserved.emplace(device, vm).second) break;
  }
}

std::map<std::string, int> FakeSite::ports() const {
  std::lock_guard lock(mutex_);
  std::map<std::string, int> ports;
  for (const auto& [name, host] : hosts_) ports[name] = host->server->port();
  return ports;
}

std::map<std::string, std::string> FakeSite::addresses() const {
  std::lock_guard lock(mutex_);
  std::map<std::string, std::string> addresses;
  for (const auto& [name, host] : hosts_) addresses[name] = "127.0.0.1";
  return addresses;
}

std::string FakeSite::host_of(const std::string& vm) const {
  std::lock_guard lock(mutex_);
  auto it = vms_.find(vm);
  return it == vms_.end() ? "" : it->second.host;
}

bool FakeSite::at_rest(const std::string& vm) const {
  std::lock_guard lock(mutex_);
  auto it = vms_.find(vm);
  return it != vms_.end() && it->second.rest_epoch != 0;
}

bool FakeSite::here(const Host& host, const std::string& vm) const {
  auto it = vms_.find(vm);
  return it != vms_.end() && it->second.host == host.name;
}

json FakeSite::vm_info(const Host& host, const std::string& vm) const {
  json devices = json::array();
  for (const auto& [device, owner] : host.reserved) {
    if (owner == vm)
      devices.push_back({{"slot", "ib0"},
                         {"device", device},
                         {"attached", here(host, vm) && vms_.at(vm).device}});
  }
  auto lease = host.leases.find(vm);
  return {{"vm", vm},           {"state", here(host, vm) ? "running" : "absent"},
          {"uuid", ""},         {"guest_connected", here(host, vm)},
          {"migrating", false}, {"lease_job_id", lease == host.leases.end() ? 0 : lease->second},
          {"devices", devices}, {"memory_bytes", 512 << 20}};
}

json FakeSite::host_info(const Host& host) const {
  json vms = json::array(), devices = json::array(), leases = json::array();
  for (const auto& [name, vm] : vms_) {
    if (vm.host == host.name) vms.push_back(vm_info(host, name));
  }
  for (const std::string& device : host.devices) {
    auto owner = host.reserved.find(device);
    json d = {{"device", device},
              {"gres", "hca"},
              {"state", "free"},
              {"numa_node", -1},
              {"description", "simulated"}};
    if (owner != host.reserved.end()) {
      d["vm"] = owner->second;
      d["state"] =
          here(host, owner->second) && vms_.at(owner->second).device ? "attached" : "reserved";
    }
    devices.push_back(d);
  }
  for (const auto& [vm, job] : host.leases)
    leases.push_back({{"vm", vm}, {"job_id", job}, {"connected", true}});
  return {{"host", host.name},
          {"version", "fake"},
          {"generation", host.generation},
          {"libvirt_ok", true},
          {"memory_free_bytes", std::int64_t{64} << 30},
          {"memory_total_bytes", std::int64_t{64} << 30},
          {"cpus", 64},
          {"vms", vms},
          {"devices", devices},
          {"leases", leases}};
}

Result<json> FakeSite::handle(Host& host, const RpcRequest& request) {
  ++calls_;
  const std::string vm = request.params.value("vm", "");
  const std::string& m = request.method;
  {
    std::lock_guard lock(mutex_);
    if (!request.params.contains("gen") && m != "host.info" && m != "vm.info" &&
        !m.starts_with("lease."))
      return Error{Code::kInvalidArgument, "field gen is missing"};
    const std::int64_t generation = request.params.value("gen", host.generation);
    if (generation < host.generation) return Error{Code::kPrecondition, "generation is old"};
    host.generation = generation;
    if (m == "host.info") return host_info(host);
    if (vm.empty()) return Error{Code::kInvalidArgument, "field vm is missing"};
    if (m == "vm.info") return vm_info(host, vm);
    if (m == "device.reserve") return reserve(host, vm, request.params);
  }
  if (m == "guest.call") return guest(host, vm, request.params);
  if (m == "vm.migrate") return migrate(host, vm, request);
  if (m == "lease.open") return lease_open(host, vm, request);
  return host_method(host, vm, request);
}

Result<json> FakeSite::reserve(Host& host, const std::string& vm, const json& params) {
  json devices = json::array();
  for (const json& slot : params.value("slots", json::array())) {
    std::string mine;
    for (const auto& [device, owner] : host.reserved) {
      if (owner == vm) mine = device;
    }
    for (const std::string& device : host.devices) {
      if (mine.empty() && host.reserved.emplace(device, vm).second) mine = device;
    }
    if (mine.empty()) return Error{Code::kExhausted, "no free device on " + host.name};
    devices.push_back({{"slot", slot.value("slot", "")}, {"device", mine}});
  }
  return json{{"devices", devices}};
}

Result<json> FakeSite::host_method(Host& host, const std::string& vm, const RpcRequest& request) {
  const std::string& m = request.method;
  if (m == "device.detach") rest(options_.detach_ms);
  std::unique_lock lock(mutex_);
  if (m == "lease.wait") {
    const std::int64_t job = request.params.value("job_id", 0);
    while (!host.leases.contains(vm) || host.leases[vm] != job) {
      lock.unlock();
      if (request.deadline.expired() || request.caller_gone())
        return Error{Code::kDeadline, vm + ": no launcher"};
      rest(5);
      lock.lock();
    }
    return json{{"cpus", {0}}, {"memory_bytes", 0}, {"numa_node", -1}, {"gres", {0}}};
  }
  if (m == "device.release") {
    if (here(host, vm)) return Error{Code::kPrecondition, vm + ": runs here"};
    std::erase_if(host.reserved, [&](const auto& r) { return r.second == vm; });
    return json::object();
  }
  if (m == "vm.start") {
    auto& v = vms_[vm];
    if (!v.host.empty() && v.host != host.name)
      return Error{Code::kPrecondition, vm + ": a copy of it runs on " + v.host};
    v.host = host.name;
    return vm_info(host, vm);
  }
  if (m == "vm.stop") {
    if (here(host, vm)) vms_.erase(vm);
    return json::object();
  }
  if (!here(host, vm)) return Error{Code::kNotFound, vm + ": is not on " + host.name};
  Vm& v = vms_[vm];
  if (m == "device.detach") v.device = false;
  if (m == "device.detach") return json{{"detached", {"ib0"}}};
  if (m == "device.attach") v.device = true;
  if (m == "device.attach") return json{{"attached", json::array()}};
  return json::object();  // suspend, resume, migrate_abort
}

Result<json> FakeSite::lease_open(Host& host, const std::string& vm, const RpcRequest& request) {
  bool seen = false;
  {
    std::lock_guard lock(mutex_);
    host.leases[vm] = request.params.value("job_id", 0);
  }
  for (;;) {
    {
      std::lock_guard lock(mutex_);
      const bool now = here(host, vm);
      const bool over = seen && !now;
      seen = seen || now;
      if (over || request.caller_gone() || request.deadline.expired()) {
        host.leases.erase(vm);
        return json{{"reason", vms_.contains(vm) ? "migrated" : "stopped"}};
      }
    }
    rest(20);
  }
}

Result<json> FakeSite::migrate(Host& host, const std::string& vm, const RpcRequest& request) {
  const std::string to = request.params.value("to", "");
  auto check = [&]() -> Status {
    std::lock_guard lock(mutex_);
    if (here(host, vm) && vms_[vm].device) return Error{Code::kPrecondition, vm + ": has a device"};
    if (!hosts_.contains(to)) return Error{Code::kRefused, to + ": no such host"};
    const bool there = vms_.contains(vm) && vms_[vm].host == to;
    return here(host, vm) || there
               ? Status()
               : Status(Error{Code::kNotFound, vm + ": is not on " + host.name});
  };
  if (Status s = check(); !s) return s.error();
  request.progress({{"done_bytes", 0},
                    {"total_bytes", 512 << 20},
                    {"remaining_bytes", 512 << 20},
                    {"rate_bytes_s", 0}});
  rest(options_.migrate_ms);
  std::lock_guard lock(mutex_);
  if (here(host, vm)) vms_[vm].host = to;
  return json{
      {"total_s", options_.migrate_ms / 1000.0}, {"downtime_ms", 1}, {"transferred_bytes", 1}};
}

Result<json> FakeSite::quiesce(Vm& vm, const std::string& name, const json& params) {
  const std::int64_t epoch = params.value("epoch", 0);
  const bool more = params.value("round", 1) < options_.rounds;
  if (epoch < vm.highest_epoch) return Error{Code::kPrecondition, "epoch is old"};
  vm.highest_epoch = epoch;
  if (name == "job.quiesce") vm.rest_epoch = epoch;
  if (name == "job.resume" && !more) vm.rest_epoch = 0;
  json answers =
      json::array({{{"step", 0}, {"rank", 0}, {"pid", 1}, {"state", more ? "more" : "rest"}}});
  return json{{"members", 1},
              {"held", more ? 0 : 1},
              {"more", more},
              {"answers", answers},
              {"pauses_begun_ns", 0}};
}

Result<json> FakeSite::guest(Host& host, const std::string& vm, const json& params) {
  const std::string name = params.value("method", "");
  const json args = params.value("params", json::object());
  if (name == "job.quiesce") rest(options_.quiesce_ms);
  if (name == "device.ready") rest(options_.link_ms);
  std::lock_guard lock(mutex_);
  if (!here(host, vm)) return Error{Code::kUnavailable, vm + ": is not on " + host.name};
  Vm& v = vms_[vm];
  if (name == "job.quiesce" || name == "job.resume") return quiesce(v, name, args);
  if (name == "job.renew") {
    if (v.rest_epoch != args.value("epoch", 0)) return Error{Code::kPrecondition, "not at rest"};
    return json::object();
  }
  if (name == "job.plan") {
    json jobs = json::array();
    if (v.job != 0)
      jobs.push_back({{"job", v.job}, {"steps", {{{"step", 0}, {"tasks", 1}, {"members", 1}}}}});
    return json{{"jobs", jobs}, {"holders", json::array()}, {"refusals", json::array()}};
  }
  if (name == "device.ready") {
    if (!v.device) return Error{Code::kDeadline, vm + ": no device came"};
    return json{
        {"slots",
         {{{"slot", "ib0"}, {"netdev", "eth0"}, {"mac", ""}, {"link_up_ms", options_.link_ms}}}}};
  }
  if (name == "guest.start_node") return json{{"started", !std::exchange(v.node_started, true)}};
  if (name == "guest.ping")
    return json{
        {"version", "fake"}, {"boot_id", vm}, {"node", vm}, {"ready", true}, {"time_ns", 0}};
  if (name == "node.check") return json{{"healthy", v.device}, {"reason", ""}};
  if (name == "guest.set_clock") return json{{"stepped_ms", 0}};
  return json::object();  // configure, let_go
}

}  // namespace symvirt::fakes
