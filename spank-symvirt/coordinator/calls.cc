#include "spank-symvirt/coordinator/calls.h"

#include "spank-symvirt/coordinator/domain.h"
#include "spank-symvirt/coordinator/phases.h"

namespace symvirt {

using nlohmann::json;
using std::chrono::milliseconds;

namespace {

// 0 asks guestd for "whatever runs here".
std::vector<std::uint32_t> jobs_of(const VmPart& vm) {
  return vm.jobs.empty() ? std::vector<std::uint32_t>{0} : vm.jobs;
}

json common_params(const Context& c, const std::string& what, milliseconds timeout) {
  // Several calls of one action to one host are several operations.
  return {{"vm", c.vm.vm},
          {"gen", c.generation},
          {"op", c.action.op() + "#" + what},
          {"deadline_ms", timeout.count()}};
}

}  // namespace

Call Context::call(const std::string& host, const char* method, json extra) const {
  return call(host, method, step(), std::move(extra));
}

Call Context::call(const std::string& host, const char* method, milliseconds timeout,
                   json extra) const {
  json params = common_params(*this, method, timeout);
  params.update(extra);
  return Call{host, method, std::move(params), timeout};
}

Call Context::guest(const std::string& host, const std::string& method, milliseconds timeout,
                    json guest_params) const {
  const std::string job = guest_params.contains("job") ? "." + guest_params["job"].dump() : "";
  json params = common_params(*this, method + job, timeout);
  guest_params["deadline_ms"] = timeout.count();
  params["method"] = method;
  params["params"] = std::move(guest_params);
  return Call{host, "guest.call", std::move(params), timeout};
}

json Context::slots() const {
  json list = json::array();
  for (const SlotConfig& slot : vm_class->slots) list.push_back(slot.slot);
  return list;
}

std::vector<Call> plan_calls(const Context& c) {
  std::vector<Call> calls;
  for (std::uint32_t job : jobs_of(c.vm))
    calls.push_back(c.guest(c.vm.from, "job.plan", c.step(), {{"job", job}}));
  return calls;
}

Result<std::vector<Call>> prepare_calls(const Context& c) {
  auto slots = slots_to_reserve(*c.vm_class, c.vm.vm, c.index);
  if (!slots) return slots.error();
  std::vector<Call> calls{c.call(c.vm.to, "lease.wait", {{"job_id", c.vm.to_job}})};
  if (!c.vm.from.empty()) {
    // A device that the guest's driver does not know is refused now, not when the VM has moved.
    calls.push_back(c.call(c.vm.from, "vm.info"));
    calls.back().hand_on = "models";
  }
  calls.push_back(c.call(c.vm.to, "device.reserve",
                         {{"slots", *slots}, {"memory_bytes", c.vm_class->memory_mib << 20}}));
  return calls;
}

Result<std::vector<Call>> start_calls(const Context& c) {
  auto xml = fill_domain(*c.vm_class, c.vm.vm, c.index);
  if (!xml) return xml.error();
  auto overlays = overlays_of(*c.vm_class, c.vm.vm, c.index);
  if (!overlays) return overlays.error();
  return std::vector<Call>{c.call(
      c.vm.to, "vm.start", {{"job_id", c.vm.to_job}, {"xml", *xml}, {"overlays", *overlays}})};
}

Result<std::vector<Call>> ready_calls(const Context& c, std::int64_t now_ns) {
  auto guest_slots = guest_slots_of(*c.vm_class, c.vm.vm, c.index);
  if (!guest_slots) return guest_slots.error();
  // Short, because it is repeated: the first answer is what a booting VM is waited for with.
  const milliseconds first(5'000);
  return std::vector<Call>{c.guest(c.vm.host(), "guest.ping", first, json::object()),
                           c.guest(c.vm.host(), "guest.set_clock", c.step(), {{"time_ns", now_ns}}),
                           c.guest(c.vm.host(), "guest.configure", c.step(),
                                   {{"node", c.vm.vm}, {"slots", *guest_slots}})};
}

std::vector<Call> round_calls(const Context& c, const char* method) {
  std::vector<Call> calls;
  const milliseconds timeout(round_ms(c.tx));
  for (std::uint32_t job : jobs_of(c.vm)) {
    json params = {{"job", job},
                   {"epoch", c.tx.id},
                   {"round", c.action.round},
                   {"timeout_ms", timeout.count()},
                   {"lease_ms", c.tx.policy.lease_ms},
                   {"device_leaves", c.vm.moving}};
    if (!c.tx.payloads.empty()) params["payloads"] = c.tx.payloads;
    calls.push_back(c.guest(c.vm.host(), method, timeout + milliseconds(2'000), std::move(params)));
  }
  return calls;
}

std::vector<Call> detach_calls(const Context& c) {
  return {c.guest(c.vm.from, "device.let_go", c.step(),
                  {{"epoch", c.vm.rest_begun ? c.tx.id : 0}, {"slots", c.slots()}}),
          c.call(c.vm.from, "device.detach")};
}

Result<std::vector<Call>> attach_calls(const Context& c) {
  std::vector<Call> calls;
  // The same device again first; from the second failure on, another one of the host is asked for
  // as well.
  if (c.action.attempt > 2) {
    auto slots = slots_to_reserve(*c.vm_class, c.vm.vm, c.index);
    if (!slots) return slots.error();
    calls.push_back(c.call(c.vm.host(), "device.reserve", {{"slots", *slots}, {"replace", true}}));
  }
  calls.push_back(c.call(c.vm.host(), "device.attach"));
  return calls;
}

std::vector<Call> link_calls(const Context& c, std::int64_t now_ns) {
  return {c.guest(c.vm.host(), "guest.set_clock", c.step(), {{"time_ns", now_ns}}),
          c.guest(c.vm.host(), "device.ready", c.step(), {{"slots", c.slots()}})};
}

}  // namespace symvirt
