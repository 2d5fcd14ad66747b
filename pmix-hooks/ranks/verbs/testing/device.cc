// Devices and the fabric between them: who is plugged where, and whose turn it is.
#include <arpa/inet.h>
#include <endian.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "pmix-hooks/ranks/verbs/testing/objects.h"

namespace symvirt::hooks::verbs::testing {

std::atomic<Fabric::Impl*> the_fabric{nullptr};

ibv_gid gid_from(std::uint64_t prefix, std::uint64_t id) {
  ibv_gid gid{};
  gid.global.subnet_prefix = htobe64(prefix);
  gid.global.interface_id = htobe64(id);
  return gid;
}

Device::Device(Fabric::Impl& fabric_in, int host_in, DeviceSpec spec_in)
    : fabric(fabric_in),
      host(host_in),
      spec(std::move(spec_in)),
      handle(std::make_shared<ibv_device>()),
      next_key(spec.first_key),
      random(fabric_in.options.seed * 7919 + spec.guid) {
  if (spec.gids.empty()) spec.gids.push_back(gid_from(0xfe80000000000000, spec.guid));
  handle->node_type = IBV_NODE_CA;
  handle->transport_type = IBV_TRANSPORT_IB;
  std::strncpy(handle->name, spec.name.c_str(), sizeof(handle->name) - 1);
  std::strncpy(handle->dev_name, ("uverbs_" + spec.name).c_str(), sizeof(handle->dev_name) - 1);
  if (fabric.options.threads) engine = std::thread([this] { engine_main(); });
}

Device::~Device() { stop(); }

void Device::schedule(const std::shared_ptr<Qp>& qp) {
  const std::lock_guard lock(schedule_lock);
  if (std::exchange(qp->scheduled, true)) return;
  ready.push_back(qp);
  wake.notify_one();
}

void Device::schedule(Qp& qp) {
  std::shared_ptr<Qp> owner;
  {
    const std::shared_lock lock(qp_lock);
    const auto found = qps.find(qp.qp_num);
    if (found == qps.end() || found->second.get() != &qp) return;
    owner = found->second;
  }
  schedule(owner);
}

void Device::schedule_at(const std::shared_ptr<Qp>& qp, Clock::time_point when) {
  const std::lock_guard lock(schedule_lock);
  timers.emplace(when, qp);
  wake.notify_one();
}

void Device::forget(const Qp& qp) {
  const std::lock_guard lock(schedule_lock);
  std::erase_if(ready, [&qp](const auto& other) { return other.get() == &qp; });
  std::erase_if(timers, [&qp](const auto& timer) { return timer.second.get() == &qp; });
}

void Device::send_late(Message message, Clock::time_point when) {
  const std::lock_guard lock(schedule_lock);
  late.push_back({when, std::move(message)});
  wake.notify_one();
}

// With schedule_lock. Late messages of one sender keep their order: due times grow.
bool Device::take_late(Message& message, Clock::time_point now, Clock::time_point& next_due) {
  const auto first = std::min_element(late.begin(), late.end(),
                                      [](const Late& a, const Late& b) { return a.due < b.due; });
  if (first == late.end()) return false;
  if (first->due > now) {
    next_due = std::min(next_due, first->due);
    return false;
  }
  message = std::move(first->message);
  late.erase(first);
  return true;
}

bool Device::step(Clock::time_point& next_due) {
  Message message;
  bool arrived = false;
  std::shared_ptr<Qp> qp;
  {
    const std::lock_guard lock(schedule_lock);
    const auto now = Clock::now();
    arrived = take_late(message, now, next_due);
    while (!timers.empty() && timers.begin()->first <= now) {
      const auto due = timers.extract(timers.begin());
      if (!std::exchange(due.mapped()->scheduled, true)) ready.push_back(due.mapped());
    }
    if (!timers.empty()) next_due = std::min(next_due, timers.begin()->first);
    if (!arrived && !ready.empty()) {
      qp = std::move(ready.front());
      ready.pop_front();
      qp->scheduled = false;
    }
  }
  if (arrived) {
    if (const auto to = fabric.at(message.path)) (void)deliver(*to, message);
    return true;
  }
  if (qp) turn(*this, qp);
  return qp != nullptr;
}

void Device::engine_main() {
  while (true) {
    auto next_due = Clock::now() + std::chrono::seconds(1);
    const bool worked = step(next_due);
    std::unique_lock lock(schedule_lock);
    if (stopping) return;
    if (worked || !ready.empty()) continue;
    wake.wait_until(lock, next_due);
  }
}

void Device::stop() {
  {
    const std::lock_guard lock(schedule_lock);
    stopping = true;
    wake.notify_one();
  }
  if (engine.joinable()) engine.join();
}

std::shared_ptr<Device> Fabric::Impl::find(int host, const std::string& name) const {
  const std::shared_lock lock(devices_lock);
  for (const auto& device : devices)
    if (device->host == host && device->spec.name == name) return device;
  return nullptr;
}

std::shared_ptr<Device> Fabric::Impl::at(const ibv_ah_attr& path) const {
  const std::shared_lock lock(devices_lock);
  for (const auto& device : devices)
    if (leads_to(path, *device)) return device;
  return nullptr;
}

void Fabric::Impl::violation(std::string text) {
  const std::lock_guard lock(violations_lock);
  violations.push_back(std::move(text));
}

Fabric::Fabric(Options options) : impl_(std::make_unique<Impl>(options)) {
  for (int host = 0; host < kMaxHosts; ++host) impl_->verbs[host] = make_verbs(host);
  impl_->thread_verbs = make_verbs(-1);
  the_fabric = impl_.get();
}

Fabric::~Fabric() {
  for (const auto& list : {impl_->devices, impl_->unplugged})
    for (const auto& device : list) device->stop();
  the_fabric = nullptr;
}

const RealVerbs& Fabric::verbs(int host) const { return impl_->verbs[host]; }

const RealVerbs& Fabric::thread_verbs() const { return impl_->thread_verbs; }

void Fabric::plug(int host, const DeviceSpec& spec) {
  auto device = std::make_shared<Device>(*impl_, host, spec);
  const std::lock_guard lock(impl_->devices_lock);
  impl_->devices.push_back(std::move(device));
}

Held Fabric::held(int host, const std::string& name) const {
  Held held;
  const auto device = impl_->find(host, name);
  if (!device) return held;
  const std::lock_guard lock(device->context_lock);
  for (Context* context : device->contexts) {
    const std::lock_guard inner(context->lock);
    ++held.contexts;
    held.pds += static_cast<int>(context->pds.size());
    held.mrs += static_cast<int>(context->mrs.size());
    held.cqs += static_cast<int>(context->cqs.size());
    held.channels += static_cast<int>(context->channels.size());
    held.srqs += static_cast<int>(context->srqs.size());
    held.qps += static_cast<int>(context->qps.size());
    held.ahs += static_cast<int>(context->ahs.size());
  }
  return held;
}

Held Fabric::unplug(int host, const std::string& name) {
  const Held found = held(host, name);
  const auto device = impl_->find(host, name);
  if (!device) return found;
  if (!found.nothing()) {
    impl_->violation("unplug of " + name + " while " + std::to_string(found.contexts) +
                     " contexts and " + std::to_string(found.qps) + " queue pairs hold it");
  }
  {
    const std::lock_guard lock(impl_->devices_lock);
    std::erase(impl_->devices, device);
    impl_->unplugged.push_back(device);
  }
  device->plugged = false;
  device->stop();
  device->handle.reset();
  return found;
}

void Fabric::raise(int host, const std::string& name, ibv_event_type type) {
  const auto device = impl_->find(host, name);
  if (!device) return;
  ibv_async_event event{};
  event.element.port_num = 1;
  event.event_type = type;
  const std::lock_guard lock(device->context_lock);
  for (Context* context : device->contexts) raise_event(*context, event);
}

void Fabric::set_port(int host, const std::string& name, bool up) {
  const auto device = impl_->find(host, name);
  if (!device || device->port_up.exchange(up) == up) return;
  raise(host, name, up ? IBV_EVENT_PORT_ACTIVE : IBV_EVENT_PORT_ERR);
}

void Fabric::hold_acks(bool hold) { impl_->acks_held = hold; }

bool Fabric::step() {
  std::vector<std::shared_ptr<Device>> devices;
  {
    const std::shared_lock lock(impl_->devices_lock);
    devices = impl_->devices;
  }
  auto next_due = Clock::time_point::max();
  return std::any_of(devices.begin(), devices.end(),
                     [&](const auto& device) { return device->step(next_due); });
}

void Fabric::run(std::chrono::milliseconds limit) {
  const auto end = Clock::now() + limit;
  do {
    if (!step() && limit.count() != 0) std::this_thread::sleep_for(std::chrono::microseconds(20));
  } while (Clock::now() < end);
  // Work that waits for ever comes back with each timer: enough is enough.
  for (int turns = 0; turns < 100000 && step(); ++turns) {
  }
}

// The host of the calling thread, for thread_verbs().
namespace {
thread_local int thread_host = 0;
}

void set_thread_host(int host) { thread_host = host; }
int host_of_thread() { return thread_host; }

std::uint64_t Fabric::executed() const { return impl_->executed; }

std::vector<std::string> Fabric::violations() const {
  const std::lock_guard lock(impl_->violations_lock);
  return impl_->violations;
}

}  // namespace symvirt::hooks::verbs::testing
