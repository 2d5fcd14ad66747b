#include "node-helper/guest/params.h"

#include <fmt/format.h>

#include "node-helper/guest/address.h"

namespace symvirt::guest {
namespace {

constexpr std::size_t kMostSlots = 64;
constexpr std::size_t kMostAddresses = 64;
constexpr std::size_t kMostRanks = 65536;
constexpr std::size_t kLongestName = 128;
constexpr std::size_t kLongestReason = 4096;
constexpr std::uint64_t kMaxId = UINT32_MAX;

JobId read_job(Fields& f) { return static_cast<JobId>(f.number("job", 1, kMaxId)); }
Epoch read_epoch(Fields& f, std::uint64_t least = 1) { return f.number("epoch", least, INT64_MAX); }
Milliseconds read_ms(Fields& f, const char* name, std::uint64_t least) {
  return Milliseconds(f.number(name, least, kMaxTimeoutMs));
}
StepKey read_step(Fields& f) {
  return {read_job(f), static_cast<StepId>(f.number("step", 0, kMaxId))};
}

Quiesce read_quiesce(Fields& f) {
  const std::string name = f.text("quiesce", kLongestName);
  for (const Quiesce q : {Quiesce::kVerbs, Quiesce::kTcp, Quiesce::kIdle, Quiesce::kImmovable}) {
    if (name == quiesce_name(q)) return q;
  }
  f.fail("quiesce", "must be verbs, tcp, idle or immovable");
  return Quiesce::kImmovable;
}

Match read_match(Fields& slot) {
  Match match;
  const Json* object = slot.object_or_none("match");
  if (!object) {
    slot.fail("match", "missing");
    return match;
  }
  Fields f(*object, "match");
  match.mac = f.text_or("mac", 64, "");
  match.driver = f.text_or("driver", kLongestName, "");
  match.pci = f.text_or("pci", kLongestName, "");
  for (char& c : match.mac) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  if (!f.ok()) slot.fail("match", f.error().message);
  if (match.mac.empty() && match.driver.empty() && match.pci.empty()) {
    slot.fail("match", "needs mac, driver or pci");
  }
  return match;
}

// "10.79.0.0/16", "10.79.0.0/16 via 10.78.0.1", or {"to":..,"via":..}.
std::vector<Route> read_routes(Fields& slot) {
  std::vector<Route> routes;
  const Json* array = slot.array_or_none("routes", kMostAddresses);
  if (!array) return routes;
  for (const Json& element : *array) {
    Route route;
    if (element.is_string()) {
      const std::string text = element.get<std::string>();
      const std::size_t via = text.find(" via ");
      route.to = text.substr(0, via);
      if (via != std::string::npos) route.via = text.substr(via + 5);
    } else {
      Fields f(element, "route");
      route.to = f.text("to", kLongestName);
      route.via = f.text_or("via", kLongestName, "");
      if (!f.ok()) slot.fail("routes", f.error().message);
    }
    if (route.to != "default" && !parse_cidr(route.to)) {
      slot.fail("routes",
                fmt::format("'{}' is no network; write 10.79.0.0/16 or default", route.to));
    }
    if (!route.via.empty() && !parse_address(route.via)) {
      slot.fail("routes", fmt::format("'{}' is no address", route.via));
    }
    if (route.to == "default" && route.via.empty()) slot.fail("routes", "default needs a via");
    routes.push_back(std::move(route));
  }
  return routes;
}

Slot read_slot(Fields& f) {
  Slot slot;
  slot.name = f.text("slot", kLongestName);
  slot.match = read_match(f);
  slot.addresses = f.texts_or_none("addresses", kMostAddresses, kLongestName);
  for (const std::string& address : slot.addresses) {
    if (!parse_cidr(address)) {
      f.fail("addresses", fmt::format("'{}' is no address with prefix length", address));
    }
  }
  slot.routes = read_routes(f);
  slot.mtu = static_cast<std::uint32_t>(f.number_or("mtu", 68, 65535, 0));
  slot.soft_roce = f.flag_or("soft_roce", false);
  slot.quiesce = read_quiesce(f);
  return slot;
}

Result<RoundParams> parse_round(const Json& params, const char* method, bool quiesce) {
  Fields f(params, method);
  RoundParams p;
  p.job = read_job(f);
  p.epoch = read_epoch(f);
  p.round = static_cast<std::uint32_t>(f.number("round", 1, 1000));
  if (quiesce) p.lease = read_ms(f, "lease_ms", 1);
  p.timeout = read_ms(f, "timeout_ms", 1);
  p.payloads = f.payloads_or_none("payloads");
  if (quiesce) p.device_leaves = f.flag_or("device_leaves", true);
  if (!f.ok()) return f.error();
  return p;
}

SlotsParams read_slots(Fields& f) {
  SlotsParams p;
  p.slots = f.texts("slots", kMostSlots, kLongestName);
  return p;
}

template <typename T>
Result<T> checked(const Fields& f, T value) {
  if (!f.ok()) return f.error();
  return value;
}

}  // namespace

std::string_view quiesce_name(Quiesce q) {
  switch (q) {
    case Quiesce::kVerbs:
      return "verbs";
    case Quiesce::kTcp:
      return "tcp";
    case Quiesce::kIdle:
      return "idle";
    case Quiesce::kImmovable:
      return "immovable";
  }
  return "immovable";
}

Result<ConfigureParams> parse_configure(const Json& params) {
  Fields f(params, "guest.configure");
  ConfigureParams p;
  p.node = f.text("node", kLongestName);
  const Json* slots = f.array("slots", kMostSlots);
  if (!f.ok()) return f.error();
  for (const Json& element : *slots) {
    Fields s(element, fmt::format("guest.configure: slots[{}]", p.slots.size()));
    p.slots.push_back(read_slot(s));
    if (!s.ok()) return s.error();
    for (std::size_t i = 0; i + 1 < p.slots.size(); ++i) {
      if (p.slots[i].name == p.slots.back().name) f.fail("slots", "two of one name");
    }
  }
  return checked(f, std::move(p));
}

Result<RoundParams> parse_quiesce(const Json& params) {
  return parse_round(params, "job.quiesce", true);
}
Result<RoundParams> parse_resume(const Json& params) {
  return parse_round(params, "job.resume", false);
}

Result<RenewParams> parse_renew(const Json& params) {
  Fields f(params, "job.renew");
  RenewParams p{read_job(f), read_epoch(f), read_ms(f, "lease_ms", 1)};
  return checked(f, p);
}

Result<SlotsParams> parse_let_go(const Json& params) {
  Fields f(params, "device.let_go");
  SlotsParams p = read_slots(f);
  p.epoch = read_epoch(f, 0);
  return checked(f, std::move(p));
}

Result<SlotsParams> parse_ready(const Json& params) {
  Fields f(params, "device.ready");
  SlotsParams p = read_slots(f);
  // deadline_ms is what is left for the whole request on its way here: answer within it, with a
  // reason.
  const std::uint64_t deadline = f.number_or("deadline_ms", 1, kMaxTimeoutMs, 60000);
  p.timeout = Milliseconds(f.number_or("timeout_ms", 1, kMaxTimeoutMs, deadline - deadline / 10));
  return checked(f, std::move(p));
}

Result<StepInfo> parse_register(const Json& params) {
  Fields f(params, "step.register");
  StepInfo s;
  s.key = read_step(f);
  s.uid = static_cast<std::uint32_t>(f.number("uid", 0, kMaxId));
  s.nspace = f.text("nspace", 255);
  s.tasks = static_cast<std::uint32_t>(f.number("tasks", 0, kMostRanks));
  s.pid = static_cast<std::int32_t>(f.number("pid", 1, INT32_MAX));
  s.epoch_at_rest = f.number_or("epoch_at_rest", 0, INT64_MAX, 0);
  return checked(f, std::move(s));
}

Result<EnterParams> parse_enter(const Json& params) {
  Fields f(params, "task.enter");
  EnterParams p{read_step(f), static_cast<std::uint32_t>(f.number("task", 0, kMaxId))};
  return checked(f, p);
}

Result<JobId> parse_job_or_any(const Json& params, const char* method) {
  Fields f(params, method);
  const JobId job = static_cast<JobId>(f.number("job", 0, kMaxId));
  return checked(f, job);
}

Result<std::int64_t> parse_set_clock(const Json& params) {
  Fields f(params, "guest.set_clock");
  const std::int64_t ns = f.integer("time_ns");
  // 2001: a host whose own clock stands at the epoch must not set its guests' clocks.
  if (f.ok() && ns < 1'000'000'000'000'000'000)
    f.fail("time_ns", "must be Unix time in nanoseconds");
  return checked(f, ns);
}

Result<StepAnswers> parse_step_answers(const Json& result, StepId step) {
  Fields f(result, "answer of the step");
  StepAnswers out;
  out.held = static_cast<std::uint32_t>(f.number_or("held", 0, kMostRanks, 0));
  const Json* answers = f.array("answers", kMostRanks);
  if (!f.ok()) return f.error();
  for (const Json& element : *answers) {
    Fields a(element, fmt::format("answer of the step: answers[{}]", out.answers.size()));
    RankAnswer answer;
    answer.step = step;
    answer.rank = static_cast<std::uint32_t>(a.number("rank", 0, kMaxId));
    answer.pid = static_cast<std::int32_t>(a.number_or("pid", 0, INT32_MAX, 0));
    answer.state = a.text("state", 32);
    if (element.contains("payload") && !element["payload"].is_null()) {
      if (!element["payload"].is_string()) a.fail("payload", "must be a string");
      if (a.ok()) answer.payload = element["payload"].get<std::string>();
    }
    answer.why = a.text_or("why", kLongestReason, "");
    if (!a.ok()) return a.error();
    out.answers.push_back(std::move(answer));
  }
  return out;
}

Result<StepMembers> parse_step_members(const Json& result) {
  Fields f(result, "step.members");
  StepMembers out;
  out.tasks = static_cast<std::uint32_t>(f.number_or("tasks", 0, kMostRanks, 0));
  const Json* members = f.array("members", kMostRanks);
  if (!f.ok()) return f.error();
  for (const Json& element : *members) {
    Fields m(element, "step.members: members");
    out.pids.push_back(static_cast<std::int32_t>(m.number("pid", 1, INT32_MAX)));
    const auto rank = m.number_or("rank", 0, kMostRanks, 0);
    const std::string why = m.text_or("immovable", kLongestReason, "");
    if (!m.ok()) return m.error();
    if (!why.empty())
      out.immovable.push_back(fmt::format("rank {} (pid {}): {}", rank, out.pids.back(), why));
  }
  return out;
}

Json to_json(const RankAnswer& answer) {
  Json json = {
      {"step", answer.step}, {"rank", answer.rank}, {"pid", answer.pid}, {"state", answer.state}};
  if (answer.payload) json["payload"] = *answer.payload;
  return json;
}

}  // namespace symvirt::guest
