// Unplugs that nobody waits for any more.
//
// An unplug that was asked for cannot be taken back (QEMU has no such command): a guest that did
// not answer in time, because it boots, hangs or is reset, gives the device up when it comes to
// itself, and its job, which has gone on without a move, would lose it. So what was asked for is on
// record from before the asking until it is decided. Should the device go when no operation on the
// VM runs, the guest gets it back at once, which is all that can be done then.
#include <fmt/format.h>

#include <algorithm>

#include "common/log.h"
#include "node-helper/host/node.h"

namespace symvirt::host {

using std::chrono::milliseconds;

namespace {

// Events tell; this is for the ones that are lost with a connection, and for a VM that is busy.
constexpr milliseconds kLookAgain{2'000};
constexpr milliseconds kGiveBackWithin{30'000};  // VFIO pins all memory of the VM again

bool is_there(const LiveDomain& domain, const std::string& alias) {
  return std::any_of(domain.parts.begin(), domain.parts.end(),
                     [&](const AttachedPart& p) { return alias_of(p.slot, p.part) == alias; });
}

}  // namespace

Status Node::set_unplugs(const std::string& vm, const std::vector<std::string>& aliases) {
  Status s = store_.update([&](NodeState& state) -> Status {
    state.vms[vm].unplugs = aliases;  // a record without anything in it is dropped
    return {};
  });
  std::lock_guard lock(mutex_);
  ++unplug_news_;
  changed_.notify_all();
  return s;
}

void Node::unplug_decided(const std::string& vm, const std::string& alias) {
  Status s = store_.update([&](NodeState& state) -> Status {
    if (auto it = state.vms.find(vm); it != state.vms.end()) std::erase(it->second.unplugs, alias);
    return {};
  });
  if (!s) log_error(fmt::format("{}: {}", vm, s.error().message));
}

void Node::watch_unplugs() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    const std::uint64_t seen = unplug_news_;
    lock.unlock();
    bool open = false;
    for (const auto& [vm, record] : store_.get().vms) {
      if (record.unplugs.empty()) continue;
      open = true;
      settle_unplugs(vm);
    }
    lock.lock();
    auto news = [&] { return stopping_ || unplug_news_ != seen; };
    if (open)
      changed_.wait_for(lock, kLookAgain, news);
    else
      changed_.wait(lock, news);
  }
}

void Node::settle_unplugs(const std::string& vm) {
  // Whoever works on the VM decides for himself; later it is looked at again.
  std::unique_lock lock(*vm_lock(vm), std::chrono::steady_clock::now());
  if (!lock) return;
  const Deadline deadline = Deadline::after(kGiveBackWithin);
  const VmRecord record = store_.vm(vm);
  auto look = hypervisor_.look(vm, deadline);
  if (!look || look->migrating || look->state == VmState::kIncoming) return;
  if (look->state == VmState::kAbsent || look->state == VmState::kShutoff) {
    if (Status s = set_unplugs(vm, {}); !s) log_error(fmt::format("{}: {}", vm, s.error().message));
    return;
  }
  for (const std::string& alias : record.unplugs) {
    if (is_there(look->domain, alias)) continue;  // still to come
    const auto part = parse_alias(alias);
    const auto slot =
        std::find_if(record.slots.begin(), record.slots.end(),
                     [&](const Reservation& r) { return part && r.slot == part->slot; });
    const Inventory devices = inventory();
    if (slot == record.slots.end() || !devices.contains(slot->device)) {
      unplug_decided(vm, alias);  // not ours to give any more
      continue;
    }
    log_warning(fmt::format(
        "{}: the guest has given up {} when nobody waited for it any more; it gets it back", vm,
        device_named(vm, slot->slot)));
    bool attached = false;
    Status s = attach_slot(vm, *slot, static_cast<int>(slot - record.slots.begin()), *look,
                           devices.at(slot->device), deadline, attached);
    // Tried again until it is there, or somebody moves or ends the VM.
    if (!s) log_error(fmt::format("{}: not given back: {}", vm, s.error().message));
    look = hypervisor_.look(vm, deadline);
    if (!look) return;
  }
}

}  // namespace symvirt::host
