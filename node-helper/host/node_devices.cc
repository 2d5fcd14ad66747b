// Reserving, attaching and detaching passthrough devices.
#include <fmt/format.h>

#include <algorithm>

#include "common/log.h"
#include "node-helper/host/node.h"
#include "node-helper/host/params.h"

namespace symvirt::host {

using nlohmann::json;
using std::chrono::milliseconds;

namespace {

// An unplug the guest did not see (suspended, still booting) is asked for again, but never quickly:
// a second request can undo the first one.
constexpr milliseconds kAskAgain{5'000};
constexpr milliseconds kUndoWithin{4'000};

std::int64_t promised_memory(const NodeState& state, const std::string& but) {
  std::int64_t sum = 0;
  for (const auto& [vm, record] : state.vms) {
    if (vm != but) sum += record.memory_bytes;
  }
  return sum;
}

// Locally administered, the same wherever the VM runs.
std::string made_up_mac(const std::string& vm, const std::string& slot) {
  const std::size_t h = std::hash<std::string>()(vm + "/" + slot);
  return fmt::format("52:54:{:02x}:{:02x}:{:02x}:{:02x}", h >> 24 & 0xff, h >> 16 & 0xff,
                     h >> 8 & 0xff, h & 0xff);
}

// What the guest has met in that slot; empty: nothing yet.
std::string model_in(const LiveDomain& domain, const std::string& slot) {
  const auto known = domain.models.find(slot);
  return known == domain.models.end() ? "" : known->second;
}

// A driver that has met one model may not know another.
bool fits_guest(const DeviceConfig& device, const std::string& model,
                const std::string& guest_model) {
  return guest_model.empty() || model.empty() || model == guest_model ||
         std::find(device.compatible.begin(), device.compatible.end(), guest_model) !=
             device.compatible.end();
}

}  // namespace

std::string Node::device_named(const std::string& vm, const std::string& slot) const {
  const VmRecord record = store_.vm(vm);
  for (const Reservation& r : record.slots) {
    if (r.slot == slot)
      return fmt::format("device {} of {} (slot {})", r.device, config_.host, slot);
  }
  return fmt::format("the device in slot {}", slot);
}

std::string Node::device_of_alias(const std::string& vm, const std::string& alias) const {
  const auto part = parse_alias(alias);
  return part ? device_named(vm, part->slot) : alias;
}

Node::Inventory Node::inventory() const {
  Inventory all;
  std::map<std::string, std::string> described;  // PCI address -> name
  for (const DeviceConfig& d : config_.devices) {
    PassthroughDevice device = find_passthrough(d, bus_);
    for (const PciLook& f : device.functions) {
      const auto [it, fresh] = described.insert({f.address, d.name});
      if (fresh || device.problem) continue;
      device.problem = Error{
          Code::kPrecondition,
          fmt::format("PCI device {} is described twice, also as {}; take one out of noded.toml",
                      f.address, it->second)};
    }
    all[d.name] = std::move(device);
  }
  return all;
}

// What can be known before anything is touched.
Status Node::check_device(const DeviceConfig& config, const std::string& slot,
                          const std::string& guest_model, const Inventory& inventory) const {
  const std::string what = fmt::format("device {} of {}", config.name, config_.host);
  const PassthroughDevice& device = inventory.at(config.name);
  if (device.problem) return device.problem->with(what);
  if (fits_guest(config, device.model(), guest_model)) return {};
  return Error{
      Code::kPrecondition,
      fmt::format("{}: is a {}, and the guest has been given a {} in slot {} before, whose driver "
                  "may not know the other; give devices of one model a gres of their own, or write "
                  "compatible = [\"{}\"] in noded.toml if the driver knows both",
                  what, device.model(), guest_model, slot, guest_model)};
}

const DeviceConfig* Node::choose(const std::set<std::string>& taken, const Reservation& wanted,
                                 const std::string& guest_model, const Inventory& inventory,
                                 std::optional<Error>& why_not) const {
  for (const DeviceConfig& d : config_.devices) {
    if (d.gres != wanted.gres || taken.contains(d.name)) continue;
    Status usable = check_device(d, wanted.slot, guest_model, inventory);
    if (usable) return &d;
    if (!why_not) why_not = usable.error();
  }
  return nullptr;
}

Status Node::assign(NodeState& state, const std::string& vm, const json& slots, bool replace,
                    const LiveDomain& domain, const Inventory& inventory) const {
  std::set<std::string> taken;
  for (const auto& [name, record] : state.vms) {
    for (const Reservation& r : record.slots) taken.insert(r.device);
  }
  VmRecord& record = state.vms[vm];
  for (const json& wanted : slots) {
    Params p(wanted);
    Reservation r;
    r.slot = p.text("slot");
    r.gres = p.text("gres");
    r.mac = p.text_or("mac", "");
    r.guest_address = p.text_or("address", "");
    if (Status s = p.status(); !s) return s.error().with("slots");
    if (!valid_slot_name(r.slot))
      return Error{Code::kInvalidArgument,
                   fmt::format("field slots: {} is not a slot's name", r.slot)};
    auto have = std::find_if(record.slots.begin(), record.slots.end(),
                             [&](const Reservation& old) { return old.slot == r.slot; });
    const bool fits = have != record.slots.end() && have->gres == r.gres;
    const bool attached =
        std::any_of(domain.parts.begin(), domain.parts.end(),
                    [&](const AttachedPart& part) { return part.slot == r.slot; });
    if (fits && (!replace || attached)) continue;
    std::optional<Error> why_not;
    const DeviceConfig* free = choose(taken, r, model_in(domain, r.slot), inventory, why_not);
    if (free == nullptr) {
      if (fits) continue;  // no other one: the same is tried again
      if (why_not) return why_not->with(vm);
      return Error{Code::kExhausted,
                   fmt::format("{}: no free device of gres {} on {}", vm, r.gres, config_.host)};
    }
    if (r.mac.empty()) r.mac = free->mac.empty() ? made_up_mac(vm, r.slot) : free->mac;
    r.device = free->name;
    taken.insert(free->name);
    if (have == record.slots.end())
      record.slots.push_back(std::move(r));
    else
      *have = std::move(r);
  }
  return {};
}

Result<json> Node::device_reserve(const RpcRequest& request, const OperationLog::Progress&) {
  Params p(request.params);
  const std::string vm = p.name("vm");
  const json& slots = p.objects("slots");
  const std::int64_t memory = p.number_or("memory_bytes", 0, std::int64_t{1} << 50, 0);
  const bool replace = p.flag_or("replace", false);
  const json models = p.object_or_empty("models");
  if (Status s = p.status(); !s) return s.error();
  auto look = hypervisor_.look(vm, request.deadline);
  if (!look) return look.error();
  // Of a VM that is to come, only the caller knows.
  for (const auto& [slot, model] : models.items()) {
    if (!model.is_string())
      return Error{Code::kInvalidArgument,
                   fmt::format("field models: {}: a string is wanted", slot)};
    look->domain.models.insert({slot, model.get<std::string>()});
  }
  const Inventory devices_now = inventory();
  const bool uses_memory = look->state != VmState::kAbsent && look->state != VmState::kShutoff;
  json devices = json::array();
  Status s = store_.update([&](NodeState& state) -> Status {
    if (Status now = still_current(request.params, state.generation); !now) return now;
    if (memory > 0 && !uses_memory) {
      const std::int64_t room =
          available_memory_() - (config_.memory_reserve_mib << 20) - promised_memory(state, vm);
      if (memory > room) {
        return Error{Code::kExhausted,
                     fmt::format("{}: needs {} MiB, {} has {} MiB to give", vm, memory >> 20,
                                 config_.host, std::max<std::int64_t>(room, 0) >> 20)};
      }
      state.vms[vm].memory_bytes = memory;
    }
    if (Status assigned = assign(state, vm, slots, replace, look->domain, devices_now); !assigned)
      return assigned;
    for (const Reservation& r : state.vms[vm].slots)
      devices.push_back({{"slot", r.slot}, {"device", r.device}});
    return {};
  });
  if (!s) return s.error();
  return json{{"devices", devices}};
}

Result<json> Node::device_release(const RpcRequest& request, const OperationLog::Progress&) {
  const std::string vm = request.params["vm"];
  auto lock = hold(vm, request);
  if (!lock) return lock.error();
  auto look = hypervisor_.look(vm, request.deadline);
  if (!look) return look.error();
  if (look->state != VmState::kAbsent && look->state != VmState::kShutoff) {
    return Error{Code::kPrecondition, fmt::format("{}: is {} on {}: its devices are not free", vm,
                                                  state_name(look->state), config_.host)};
  }
  bool connected = false;
  {
    std::lock_guard guard(mutex_);
    auto it = leases_.find(vm);
    connected = it != leases_.end() && it->second.connected;
  }
  Status s = store_.update([&](NodeState& state) -> Status {
    auto it = state.vms.find(vm);
    if (it == state.vms.end()) return {};
    it->second.slots.clear();
    it->second.unplugs.clear();
    it->second.memory_bytes = 0;
    if (!connected) it->second.lease = Lease();
    return {};
  });
  if (!s) return s.error();
  return json::object();
}

// Over when none of the aliases is in the live XML. The event is what usually tells; the XML is
// looked at because an event can be lost with the connection.
Status Node::wait_detached(const std::string& vm, const std::vector<std::string>& aliases,
                           Deadline deadline, milliseconds ask_again) {
  auto asked = std::chrono::steady_clock::now();
  std::vector<std::string> left = aliases;  // as of the last look that was answered
  for (;;) {
    std::string refused;
    {
      std::unique_lock lock(mutex_);
      auto all_removed = [&] {
        for (const std::string& alias : aliases) {
          if (removal_failed_.contains({vm, alias})) refused = alias;
        }
        return stopping_ || !refused.empty() ||
               std::all_of(aliases.begin(), aliases.end(), [&](const std::string& a) {
                 return removed_.contains({vm, a});
               });
      };
      const auto until =
          std::min(deadline.time(), std::chrono::steady_clock::now() + milliseconds(1'000));
      changed_.wait_until(lock, until, all_removed);
      if (stopping_) return Error{Code::kUnavailable, "noded is ending"};
    }
    if (!refused.empty()) {
      return Error{Code::kRefused,
                   fmt::format("{}: the guest refuses to give up {}; what in it holds the "
                               "device? its kernel's log may say",
                               vm, device_of_alias(vm, refused))};
    }
    auto look = hypervisor_.look(vm, deadline);
    if (look) left.clear();
    for (const AttachedPart& part : look ? look->domain.parts : std::vector<AttachedPart>()) {
      const std::string alias = alias_of(part.slot, part.part);
      if (std::find(aliases.begin(), aliases.end(), alias) != aliases.end()) left.push_back(alias);
    }
    if (look && left.empty()) return {};
    if (deadline.expired()) {
      return Error{Code::kDeadline,
                   fmt::format("{}: the guest has not given up {} in time, and still may (then it "
                               "gets it back); is it booting, or does something in it hold the "
                               "device?",
                               vm, device_of_alias(vm, left.front()))};
    }
    if (std::chrono::steady_clock::now() - asked < ask_again) continue;
    asked = std::chrono::steady_clock::now();
    for (const std::string& alias : left) {
      if (Status s = hypervisor_.ask_detach(vm, alias, deadline); !s)
        log_debug(fmt::format("asked again: {}", s.error().message));
    }
  }
}

Result<json> Node::device_detach(const RpcRequest& request, const OperationLog::Progress&) {
  const std::string vm = request.params["vm"];
  const Deadline deadline = request.deadline;
  auto lock = hold(vm, request);
  if (!lock) return lock.error();
  auto look = look_here(vm, deadline);
  if (!look) return look.error();
  std::vector<AttachedPart> parts = look->domain.parts;
  // In the opposite order of attaching.
  std::stable_sort(parts.begin(), parts.end(),
                   [](const AttachedPart& a, const AttachedPart& b) { return a.part > b.part; });
  std::vector<std::string> aliases;
  std::set<std::string> slots;
  {
    std::lock_guard guard(mutex_);
    for (const AttachedPart& part : parts) {
      aliases.push_back(alias_of(part.slot, part.part));
      slots.insert(part.slot);
      removed_.erase({vm, aliases.back()});
      removal_failed_.erase({vm, aliases.back()});
    }
  }
  if (aliases.empty()) {
    if (Status s = set_unplugs(vm, {}); !s) return s.error();
    return json{{"detached", json::array()}};
  }
  if (look->state == VmState::kPaused) {
    // libvirt would say yes, and the device would go whenever the guest runs again.
    return Error{Code::kPrecondition,
                 fmt::format("{}: is suspended, and only a running guest can give up {}; vm.resume "
                             "comes first",
                             vm, device_named(vm, *slots.begin()))};
  }
  // Before the asking, since noded may be killed after it.
  if (Status s = set_unplugs(vm, aliases); !s) return s.error();
  for (const std::string& alias : aliases) {
    Status s = hypervisor_.ask_detach(vm, alias, deadline);
    // Somebody asked before us (a noded that was killed): what counts is that it goes.
    if (!s) log_warning(s.error().message);
    if (!s && s.error().unknown_effect()) return s.error();
  }
  if (Status s = wait_detached(vm, aliases, deadline, kAskAgain); !s) {
    for (const std::string& alias : aliases) {
      std::unique_lock guard(mutex_);
      const bool refused = removal_failed_.contains({vm, alias});
      guard.unlock();
      if (refused) unplug_decided(vm, alias);
    }
    return s.error();
  }
  if (Status s = set_unplugs(vm, {}); !s) return s.error();
  return json{{"detached", slots}};
}

void Node::remember_models(const std::string& vm, const VmRecord& record, LiveDomain domain,
                           const Inventory& inventory, Deadline deadline) {
  bool news = false;
  for (const Reservation& slot : record.slots) {
    const std::string model = inventory.at(slot.device).model();
    if (!model.empty()) news |= domain.models.insert({slot.slot, model}).second;
  }
  if (!news) return;
  // Without it a later host cannot compare; nothing else is lost.
  if (Status s = hypervisor_.remember(vm, domain, deadline); !s) log_warning(s.error().message);
}

Status Node::attach_slot(const std::string& vm, const Reservation& slot, int index,
                         const VmLook& look, const PassthroughDevice& device, Deadline deadline,
                         bool& attached) {
  const DeviceFill fill{vm, slot.slot, slot.device, slot.mac, index, ""};
  std::vector<std::string> done;
  for (std::size_t k = 0; k < device.snippets.size(); ++k) {
    const int part = static_cast<int>(k);
    const bool there =
        std::any_of(look.domain.parts.begin(), look.domain.parts.end(),
                    [&](const AttachedPart& p) { return p.slot == slot.slot && p.part == part; });
    if (there) continue;
    DeviceFill own = fill;
    if (part == 0) own.guest_address = slot.guest_address;
    const std::string alias = alias_of(slot.slot, part);
    auto xml = make_device_xml(device.snippets[k], own, alias);
    if (!xml) return xml.error().with(slot.device);
    Status s = hypervisor_.attach(vm, *xml, deadline);
    if (s) {
      attached = true;
      unplug_decided(vm, alias);
      done.push_back(alias);
      continue;
    }
    Error error =
        explain_attach(s.error()).with(fmt::format("device {} of {}", slot.device, config_.host));
    // Half a device is none: what came with this call goes with it.
    {
      std::lock_guard guard(mutex_);
      for (const std::string& a : done) removed_.erase({vm, a});
    }
    for (const std::string& a : done) (void)hypervisor_.ask_detach(vm, a, deadline);
    if (!done.empty()) {
      Status undone = wait_detached(vm, done, Deadline::after(kUndoWithin), kAskAgain);
      if (!undone) log_warning(fmt::format("{}: undo: {}", vm, undone.error().message));
    }
    return error;
  }
  return {};
}

Result<json> Node::device_attach(const RpcRequest& request, const OperationLog::Progress&) {
  const std::string vm = request.params["vm"];
  const Deadline deadline = request.deadline;
  auto lock = hold(vm, request);
  if (!lock) return lock.error();
  auto look = look_here(vm, deadline);
  if (!look) return look.error();
  const VmRecord record = store_.vm(vm);
  if (record.slots.empty()) {
    return Error{Code::kPrecondition,
                 fmt::format("{}: no device of {} is reserved for it; device.reserve comes first",
                             vm, config_.host)};
  }
  if (config_.pin && record.lease.job_id != 0) {
    // It came from another host, with that host's numbers or none.
    Status s = hypervisor_.pin(vm, {record.lease.cpus, record.lease.numa_node}, deadline);
    if (!s) log_warning(s.error().message);
  }
  const Inventory devices = inventory();
  for (const Reservation& slot : record.slots) {
    const bool there =
        std::any_of(look->domain.parts.begin(), look->domain.parts.end(),
                    [&](const AttachedPart& part) { return part.slot == slot.slot; });
    if (there && config_.find_device(slot.device) != nullptr) continue;
    const DeviceConfig* config = config_.find_device(slot.device);
    if (config == nullptr) {
      return Error{Code::kNotFound,
                   fmt::format("{}: device {} is not in noded.toml any more", vm, slot.device)};
    }
    Status usable = check_device(*config, slot.slot, model_in(look->domain, slot.slot), devices);
    if (!usable) return usable.error().with(vm);
  }
  json list = json::array();
  for (std::size_t i = 0; i < record.slots.size(); ++i) {
    bool attached = false;
    const Reservation& slot = record.slots[i];
    if (Status s = attach_slot(vm, slot, static_cast<int>(i), *look, devices.at(slot.device),
                               deadline, attached);
        !s)
      return s.error();
    if (attached) list.push_back({{"slot", slot.slot}, {"device", slot.device}, {"mac", slot.mac}});
  }
  remember_models(vm, record, std::move(look->domain), devices, deadline);
  return json{{"attached", list}};
}

}  // namespace symvirt::host
