// Messages between a step's agent and symvirt-guestd: docs/protocols.md section 3. Pure functions.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "common/result.h"
#include "pmix-hooks/server/step_core.h"

namespace symvirt::hooks {

struct StepIdentity {
  std::uint32_t job = 0;
  std::uint32_t step = 0;
  std::uint32_t uid = 0;
  std::string nspace;
  std::uint32_t tasks = 0;  // on this node
  std::int32_t pid = 0;     // of slurmstepd
};

enum class RequestKind { kMembers, kQuiesce, kResume };

// guestd asks.
struct GuestRequest {
  RequestKind kind = RequestKind::kMembers;
  RoundRequest round;  // id always; the rest for quiesce and resume
  std::uint32_t timeout_ms = 0;
};
// guestd asks something we do not understand, but could tell which question it was.
struct BadRequest {
  std::string id;
  Error error;
};
// guestd answers one of our questions.
struct GuestReply {
  std::string id;
  std::string result;  // JSON object; empty when error is set
  std::optional<Error> error;
};
using GuestMessage = std::variant<GuestRequest, BadRequest, GuestReply>;

// kInvalidArgument: not a message at all; docs say such lines are dropped.
Result<GuestMessage> parse_guest_line(std::string_view line);

std::string encode_register(const std::string& id, const StepIdentity& step,
                            std::optional<std::uint64_t> epoch_at_rest);
std::string encode_node_check(const std::string& id, std::uint32_t job);
std::string encode_task_enter(const std::string& id, std::uint32_t job, std::uint32_t step,
                              std::uint32_t task);
std::string encode_members(const std::string& id, const std::vector<MemberInfo>& members,
                           std::uint32_t tasks);
std::string encode_reply(const Reply& reply, RequestKind kind);
std::string encode_error(const std::string& id, const Error& error);

struct Registered {
  std::uint64_t epoch = 0;
  bool at_rest = false;
  Payloads peers;  // what the job's processes said at the end of the last resume; optional
};
Result<Registered> parse_registered(const GuestReply& reply);

struct NodeCheck {
  bool healthy = false;
  std::string reason;
  std::vector<std::string> networks;  // of the passthrough NICs, "10.78.0.0/24"; optional
  std::string quiesce;                // how the class is brought to rest: tcp, verbs ...; optional
  std::vector<std::string> rdma;      // RDMA ports of the passthrough NICs, "mlx5_0:1"; optional
  bool soft_roce = false;             // one of them is; optional
};
Result<NodeCheck> parse_node_check(const GuestReply& reply);

}  // namespace symvirt::hooks
