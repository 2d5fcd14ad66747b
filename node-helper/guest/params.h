// The parameters of the methods of docs/protocols.md sections 2 and 3, each as a struct with its
// parser. Limits are generous for real nodes and small for a flood.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "node-helper/guest/event_loop.h"
#include "node-helper/guest/fields.h"

namespace symvirt::guest {

using JobId = std::uint32_t;  // 0 is no job
using StepId = std::uint32_t;
using Epoch = std::uint64_t;  // 0 is no transaction

inline constexpr std::uint64_t kMaxTimeoutMs = 24u * 3600 * 1000;

// How the traffic of a slot's device is brought to rest. Ordered: the most demanding of a VM's
// slots comes first.
enum class Quiesce { kVerbs, kTcp, kIdle, kImmovable };
std::string_view quiesce_name(Quiesce q);

struct Match {  // all that is given must fit
  std::string mac;
  std::string driver;
  std::string pci;
};

struct Route {
  std::string to;   // CIDR or "default"
  std::string via;  // empty: on the link
};

struct Slot {
  std::string name;
  Match match;
  std::vector<std::string> addresses;  // CIDR
  std::vector<Route> routes;
  std::uint32_t mtu = 0;  // 0: the driver's
  bool soft_roce = false;
  Quiesce quiesce = Quiesce::kTcp;
};

struct ConfigureParams {
  std::string node;
  std::vector<Slot> slots;
};

struct RoundParams {  // job.quiesce and job.resume
  JobId job = 0;
  Epoch epoch = 0;
  std::uint32_t round = 1;
  Milliseconds lease{0};  // quiesce only
  Milliseconds timeout{0};
  Json payloads;              // {rank: string}; null: none
  bool device_leaves = true;  // quiesce only: this VM's may be taken away then
};

struct RenewParams {
  JobId job = 0;
  Epoch epoch = 0;
  Milliseconds lease{0};
};

struct SlotsParams {  // device.let_go and device.ready
  Epoch epoch = 0;
  std::vector<std::string> slots;
  Milliseconds timeout{60000};  // device.ready
};

struct StepKey {
  JobId job = 0;
  StepId step = 0;
  auto operator<=>(const StepKey&) const = default;
};

struct StepInfo {
  StepKey key;
  std::uint32_t uid = 0;
  std::string nspace;
  std::uint32_t tasks = 0;
  std::int32_t pid = 0;  // of slurmstepd
  Epoch epoch_at_rest = 0;
};

struct EnterParams {
  StepKey key;
  std::uint32_t task = 0;
};

Result<ConfigureParams> parse_configure(const Json& params);
Result<RoundParams> parse_quiesce(const Json& params);
Result<RoundParams> parse_resume(const Json& params);
Result<RenewParams> parse_renew(const Json& params);
Result<SlotsParams> parse_let_go(const Json& params);
Result<SlotsParams> parse_ready(const Json& params);
Result<StepInfo> parse_register(const Json& params);
Result<EnterParams> parse_enter(const Json& params);
Result<JobId> parse_job_or_any(const Json& params, const char* method);  // 0: any
Result<std::int64_t> parse_set_clock(const Json& params);

// One rank's answer in a round, as a plugin sends it and guestd passes it on with its step.
struct RankAnswer {
  StepId step = 0;
  std::uint32_t rank = 0;
  std::int32_t pid = 0;
  std::string state;  // "more", "rest", "left"; on resume also "running"
  std::optional<std::string> payload;
  std::string why{};  // what it waits for, as it says
};
struct StepAnswers {
  std::vector<RankAnswer> answers;
  std::uint32_t held = 0;
};
Result<StepAnswers> parse_step_answers(const Json& result, StepId step);
struct StepMembers {
  std::vector<std::int32_t> pids;
  std::vector<std::string> immovable;  // "rank 3 (pid 77): why it cannot be brought to rest"
  std::uint32_t tasks = 0;
};
Result<StepMembers> parse_step_members(const Json& result);
Json to_json(const RankAnswer& answer);

}  // namespace symvirt::guest
