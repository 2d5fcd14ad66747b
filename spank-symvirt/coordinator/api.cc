// The methods of symvirtd (docs/protocols.md section 1): what symvirtctl, symvirt-resume and
// symvirt-suspend ask.
#include <fmt/format.h>

#include <algorithm>

#include "common/log.h"
#include "spank-symvirt/coordinator/daemon.h"
#include "spank-symvirt/coordinator/doctor.h"
#include "spank-symvirt/coordinator/json_access.h"

namespace symvirt {

using nlohmann::json;

namespace {

Result<std::string> required(const json& params, const char* field) {
  std::string value = text_of(params, field);
  if (value.empty() || value.size() > 4096)
    return Error{Code::kInvalidArgument, fmt::format("field {} is missing or not a text", field)};
  return value;
}

Result<std::int64_t> required_number(const json& params, const char* field) {
  auto it = params.find(field);
  if (it == params.end() || !it->is_number_integer())
    return Error{Code::kInvalidArgument, fmt::format("field {} is missing or not a number", field)};
  return it->get<std::int64_t>();
}

}  // namespace

bool Daemon::is_admin(uid_t uid) const {
  const auto& list = p_.config.admin_uids;
  return std::find(list.begin(), list.end(), uid) != list.end();
}

void Daemon::add_methods() {
  auto anybody = [](uid_t) { return true; };
  auto admin = [this](uid_t uid) { return is_admin(uid); };
  auto on_loop = [this](std::function<Result<json>(const json&)> work) -> RpcHandler {
    return [this, work = std::move(work)](const RpcRequest& r) {
      return loop_.ask([&] { return work(r.params); });
    };
  };
  server_->add("status", {anybody, on_loop([this](const json&) { return api_status(); })});
  server_->add("devices", {anybody, on_loop([this](const json&) { return api_devices(); })});
  server_->add("doctor", {anybody, on_loop([this](const json&) { return api_doctor(); })});
  server_->add("events", {anybody, [this](const RpcRequest& r) { return api_events(r); }});
  server_->add("tx.list",
               {anybody, on_loop([this](const json& p) { return api_list(flag_of(p, "all")); })});
  server_->add("tx.show", {anybody, on_loop([this](const json& p) -> Result<json> {
                             auto id = required_number(p, "id");
                             if (!id) return id.error();
                             return api_show(*id);
                           })});
  server_->add("cancel", {admin, on_loop([this](const json& p) -> Result<json> {
                            auto id = required_number(p, "id");
                            if (!id) return id.error();
                            if (Status status = engine_->cancel(*id); !status)
                              return status.error();
                            return api_show(*id);
                          })});
  auto with_text = [&](const char* field, Result<json> (Daemon::*method)(const std::string&)) {
    return on_loop([this, field, method](const json& p) -> Result<json> {
      auto value = required(p, field);
      if (!value) return value.error();
      return (this->*method)(*value);
    });
  };
  server_->add("evacuate", {admin, with_text("host", &Daemon::api_evacuate)});
  server_->add("migrate", {admin, on_loop([this](const json& p) -> Result<json> {
                             auto vm = required(p, "vm");
                             if (!vm) return vm.error();
                             return api_migrate(*vm, text_of(p, "to"));
                           })});
  for (const bool on : {true, false}) {
    server_->add(on ? "node.resume" : "node.suspend",
                 {admin, on_loop([this, on](const json& p) -> Result<json> {
                    auto nodes = required(p, "nodes");
                    if (!nodes) return nodes.error();
                    return api_power(*nodes, on);
                  })});
  }
}

Result<json> Daemon::api_status() {
  json hosts = json::array(), vms = json::array(), live = json::array();
  for (const NodeInfo& node : snapshot_.nodes) {
    if (node.partitions.find(p_.config.hosts_partition) == std::string::npos) continue;
    auto seen = hosts_seen_.find(node.name);
    json h = {{"host", node.name},
              {"slurm_state", node.state_text},
              {"reason", node.reason},
              {"answers", seen != hosts_seen_.end() && seen->second.answered},
              {"vms", json::array()}};
    if (auto it = host_errors_.find(node.name); it != host_errors_.end()) h["error"] = it->second;
    for (const auto& [name, record] : engine_->vms()) {
      if (record.host == node.name) h["vms"].push_back(name);
    }
    hosts.push_back(std::move(h));
  }
  for (const ClassConfig& c : p_.config.classes) {
    for (const std::string& name : c.nodes) {
      json v = {{"vm", name}, {"class", c.name}, {"host", ""}, {"launcher_job", 0}};
      if (auto it = engine_->vms().find(name); it != engine_->vms().end()) {
        v["host"] = it->second.host;
        v["launcher_job"] = it->second.launcher_job;
      }
      auto node = std::find_if(snapshot_.nodes.begin(), snapshot_.nodes.end(),
                               [&](const NodeInfo& n) { return n.name == name; });
      v["slurm_state"] = node == snapshot_.nodes.end() ? "not in slurm.conf" : node->state_text;
      if (node != snapshot_.nodes.end() && !node->reason.empty()) v["reason"] = node->reason;
      if (const Transaction* tx = engine_->live_transaction_of(name)) v["transaction"] = tx->id;
      if (auto note = notes_.find(name); note != notes_.end()) v["note"] = note->second;
      vms.push_back(std::move(v));
    }
  }
  for (const auto& [id, tx] : engine_->transactions()) {
    if (!tx.ended()) live.push_back(view_of(tx, progress_));
  }
  return json{{"schema_version", kSchemaVersion},
              {"generation", engine_->generation()},
              {"slurm_answers", slurm_answers_},
              {"slurm_error", slurm_error_},
              {"hosts", hosts},
              {"vms", vms},
              {"transactions", live}};
}

Result<json> Daemon::api_list(bool all) {
  json list = json::array();
  for (const auto& [id, tx] : engine_->transactions()) {
    if (all || tx.kind == TxKind::kEvacuate || !tx.ended()) list.push_back(view_of(tx, progress_));
  }
  return json{{"schema_version", kSchemaVersion}, {"transactions", list}};
}

Result<json> Daemon::api_show(std::int64_t id) {
  auto it = engine_->transactions().find(id);
  if (it == engine_->transactions().end())
    return Error{Code::kNotFound,
                 fmt::format("transaction {}: not known; see symvirtctl list", id)};
  return view_of(it->second, progress_);
}

Result<json> Daemon::api_evacuate(const std::string& host) {
  std::set<std::string> moving;
  for (const auto& [name, record] : engine_->vms()) {
    if (record.host == host) moving.insert(name);
  }
  const bool known = std::any_of(snapshot_.nodes.begin(), snapshot_.nodes.end(),
                                 [&](const NodeInfo& n) { return n.name == host; });
  if (!known)
    return Error{Code::kNotFound,
                 fmt::format("host {}: not a node of this cluster; see symvirtctl status", host)};
  if (moving.empty())
    return Error{Code::kPrecondition,
                 fmt::format("host {}: no VM of ours runs there; nothing to do", host)};
  auto tx = plan_evacuation(view(), moving, "symvirtctl evacuate " + host);
  if (!tx) return tx.error().with("evacuate " + host);
  tx->avoid_hosts.push_back(host);
  auto id = engine_->begin(std::move(*tx));
  if (!id) return id.error();
  return api_show(*id);
}

Result<json> Daemon::api_migrate(const std::string& vm, const std::string& to) {
  auto tx =
      plan_evacuation(view(), {vm}, "symvirtctl migrate " + vm + (to.empty() ? "" : " to " + to));
  if (!tx) return tx.error().with("migrate " + vm);
  VmPart* part = tx->find(vm);
  if (!to.empty() && part->from == to)
    return Error{Code::kPrecondition, fmt::format("migrate {}: it is on {} already", vm, to)};
  part->to = to;
  auto id = engine_->begin(std::move(*tx));
  if (!id) return id.error();
  return api_show(*id);
}

Result<json> Daemon::api_power(const std::string& list, bool on) {
  auto nodes = expand_nodes(list);
  if (!nodes) return nodes.error();
  json begun = json::array();
  for (const std::string& vm : *nodes) {
    if (p_.config.class_of_vm(vm) == nullptr)
      return Error{Code::kNotFound, fmt::format("{}: in no [[class]] of symvirtd.toml", vm)};
  }
  for (const std::string& vm : *nodes) {
    if (on) {
      log_info(vm + ": resume");
      wanted_up_.add(vm, view().now_ns);
      continue;
    }
    log_info(vm + ": suspend");
    wanted_up_.remove(vm);
    const Transaction* live = engine_->live_transaction_of(vm);
    if (live != nullptr && live->kind == TxKind::kBoot) {
      if (Status status = engine_->cancel(live->id); !status) return status.error();
      continue;
    }
    auto record = engine_->vms().find(vm);
    if (live != nullptr || record == engine_->vms().end() || !record->second.up()) continue;
    auto id = engine_->begin(stop_of(view(), record->second, "suspend"));
    if (!id) return id.error();
    begun.push_back(*id);
  }
  if (on) begin_wanted_boots();
  return json{{"schema_version", kSchemaVersion}, {"nodes", *nodes}, {"transactions", begun}};
}

Result<json> Daemon::api_devices() {
  json list = json::array();
  for (const auto& [host, info] : host_info_) {
    json objects = objects_of(info, "devices");
    for (json& device : objects) {
      device["host"] = host;
      list.push_back(std::move(device));
    }
  }
  return json{{"schema_version", kSchemaVersion}, {"devices", list}};
}

Result<json> Daemon::api_doctor() {
  json checks = json::array();
  checks.push_back(check("slurmctld answers", slurm_answers_, slurm_answers_ ? "yes" : slurm_error_,
                         "is slurmctld running? scontrol ping"));
  for (const NodeInfo& node : snapshot_.nodes) {
    if (node.partitions.find(p_.config.hosts_partition) == std::string::npos) continue;
    const std::string name = "host " + node.name;
    auto error = host_errors_.find(node.name);
    if (error != host_errors_.end()) {
      checks.push_back(check(name + " answers", false, error->second,
                             "is symvirt-noded running there? systemctl status symvirt-noded"));
      continue;
    }
    auto info = host_info_.find(node.name);
    if (info == host_info_.end()) {
      checks.push_back(
          check(name + " answers", false, "not asked yet", "ask again in some seconds"));
      continue;
    }
    for (json& c : host_checks(node.name, node.gres, info->second)) checks.push_back(std::move(c));
  }
  for (const ClassConfig& c : p_.config.classes) {
    for (const std::string& vm : c.nodes) {
      const bool there = std::any_of(snapshot_.nodes.begin(), snapshot_.nodes.end(),
                                     [&](const NodeInfo& n) { return n.name == vm; });
      if (!there)
        checks.push_back(check("class " + c.name, false, vm + " is not a node of slurm.conf",
                               "add it with State=CLOUD"));
    }
  }
  checks.push_back(check("fence agent", !p_.config.fence_command.empty(),
                         p_.config.fence_command.empty()
                             ? "none: a host that dies in mid-move parks its jobs until it is back"
                             : p_.config.fence_command.front(),
                         "set fence_command in symvirtd.toml"));
  const bool ok =
      std::all_of(checks.begin(), checks.end(), [](const json& c) { return c["ok"] == true; });
  return json{{"schema_version", kSchemaVersion}, {"ok", ok}, {"checks", checks}};
}

Result<json> Daemon::api_events(const RpcRequest& request) {
  const bool admin = is_admin(request.uid);
  {
    std::lock_guard lock(events_mutex_);
    if (Status status = event_readers_.enter(request.uid, admin); !status) return status.error();
  }
  Result<json> result = stream_events(request);
  std::lock_guard lock(events_mutex_);
  event_readers_.leave(request.uid, admin);
  return result;
}

// Until the caller goes away, the deadline passes, or, without `follow`, all there is has been
// sent.
Result<json> Daemon::stream_events(const RpcRequest& request) {
  std::int64_t next = 0;
  if (auto it = request.params.find("since"); it != request.params.end() && it->is_number_integer())
    next = it->get<std::int64_t>();
  const bool follow = flag_of(request.params, "follow");
  for (;;) {
    std::vector<json> batch;
    {
      std::unique_lock lock(events_mutex_);
      const std::int64_t end = events_begin_ + static_cast<std::int64_t>(events_.size());
      if (next == 0) next = follow ? end : events_begin_;
      next = std::max(next, events_begin_);
      if (next >= end && follow && !stopping_)
        events_wake_.wait_for(lock, std::chrono::milliseconds(500));
      const std::int64_t now_end = events_begin_ + static_cast<std::int64_t>(events_.size());
      for (; next < now_end; ++next) {
        batch.push_back(events_[static_cast<std::size_t>(next - events_begin_)]);
        batch.back()["seq"] = next;
      }
      if (stopping_) return json{{"next", next}};
    }
    for (const json& event : batch) {
      if (!request.progress(event)) return json{{"next", next}};
    }
    if (!follow || request.deadline.expired() || request.caller_gone()) return json{{"next", next}};
  }
}

}  // namespace symvirt
