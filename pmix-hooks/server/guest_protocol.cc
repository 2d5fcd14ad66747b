#include "pmix-hooks/server/guest_protocol.h"

#include <limits>
#include <utility>

#include "common/line_buffer.h"
#include "pmix-hooks/json.h"

namespace symvirt::hooks {
namespace {

constexpr std::uint64_t kMaxEpoch = std::numeric_limits<std::int64_t>::max();
constexpr std::uint64_t kMaxRound = 1'000'000;
constexpr std::uint64_t kMaxTimeoutMs = 24ull * 3600 * 1000;

std::string request_line(const std::string& id, const char* method, Json params) {
  return dump(Json{{"id", id}, {"method", method}, {"params", std::move(params)}});
}

Result<GuestRequest> parse_round(RequestKind kind, std::string id, const Json& params) {
  GuestRequest request{kind, {std::move(id), 0, 0, {}}, 0};
  Result<std::uint64_t> epoch = get_uint(params, "epoch", 0, kMaxEpoch);
  if (!epoch) return epoch.error();
  Result<std::uint64_t> round = get_uint(params, "round", 1, kMaxRound);
  if (!round) return round.error();
  Result<std::uint64_t> timeout = get_uint(params, "timeout_ms", 1, kMaxTimeoutMs);
  if (!timeout) return timeout.error();
  Result<Payloads> payloads = get_payloads(params, "payloads");
  if (!payloads) return payloads.error();
  Result<bool> leaves = get_bool_or(params, "device_leaves", true);
  if (!leaves) return leaves.error();
  request.round.epoch = *epoch;
  request.round.round = static_cast<std::uint32_t>(*round);
  request.round.payloads = std::move(*payloads);
  request.round.device_leaves = *leaves;
  request.timeout_ms = static_cast<std::uint32_t>(*timeout);
  return request;
}

GuestMessage parse_request(std::string id, const std::string& method, const Json& message) {
  RequestKind kind = RequestKind::kMembers;
  if (method == "step.members") {
    return GuestRequest{kind, {std::move(id), 0, 0, {}}, 0};
  }
  if (method == "step.quiesce") {
    kind = RequestKind::kQuiesce;
  } else if (method == "step.resume") {
    kind = RequestKind::kResume;
  } else {
    return BadRequest{
        std::move(id),
        {Code::kInvalidArgument, "request refused: method '" + method + "' is unknown"}};
  }
  const auto params = message.find("params");
  if (params == message.end() || !params->is_object()) {
    return BadRequest{std::move(id),
                      {Code::kInvalidArgument, "message refused: field 'params': not an object"}};
  }
  Result<GuestRequest> request = parse_round(kind, id, *params);
  if (!request) return BadRequest{std::move(id), request.error()};
  return std::move(*request);
}

Error parse_error(const Json& error) {
  if (!error.is_object())
    return Error{Code::kInternal, "guestd answered with an error that is no object"};
  const Result<std::string> code = get_string(error, "code");
  const Result<std::string> text = get_string(error, "message");
  return Error{code ? code_from_name(*code).value_or(Code::kInternal) : Code::kInternal,
               text ? *text : "guestd gave no reason"};
}

Result<Json> result_object(const GuestReply& reply) {
  if (reply.error) return *reply.error;
  return parse_object(reply.result, kMaxLineBytes);
}

}  // namespace

Result<GuestMessage> parse_guest_line(std::string_view line) {
  Result<Json> message = parse_object(line, kMaxLineBytes);
  if (!message) return message.error();
  Result<std::string> id = get_string(*message, "id");
  if (!id) return id.error();
  if (message->contains("method")) {
    Result<std::string> method = get_string(*message, "method");
    if (!method) return GuestMessage{BadRequest{std::move(*id), method.error()}};
    return parse_request(std::move(*id), *method, *message);
  }
  if (const auto error = message->find("error"); error != message->end()) {
    return GuestMessage{GuestReply{std::move(*id), {}, parse_error(*error)}};
  }
  const auto result = message->find("result");
  if (result == message->end() || !result->is_object()) {
    return Error{Code::kInvalidArgument, "message refused: neither method, result nor error"};
  }
  return GuestMessage{GuestReply{std::move(*id), dump(*result), std::nullopt}};
}

std::string encode_register(const std::string& id, const StepIdentity& step,
                            std::optional<std::uint64_t> epoch_at_rest) {
  Json params = {{"job", step.job},       {"step", step.step},   {"uid", step.uid},
                 {"nspace", step.nspace}, {"tasks", step.tasks}, {"pid", step.pid}};
  if (epoch_at_rest) params["epoch_at_rest"] = *epoch_at_rest;
  return request_line(id, "step.register", std::move(params));
}

std::string encode_node_check(const std::string& id, std::uint32_t job) {
  return request_line(id, "node.check", {{"job", job}});
}

std::string encode_task_enter(const std::string& id, std::uint32_t job, std::uint32_t step,
                              std::uint32_t task) {
  return request_line(id, "task.enter", {{"job", job}, {"step", step}, {"task", task}});
}

std::string encode_members(const std::string& id, const std::vector<MemberInfo>& members,
                           std::uint32_t tasks) {
  Json list = Json::array();
  for (const MemberInfo& member : members) {
    list.push_back({{"rank", member.rank}, {"pid", member.pid}});
    if (!member.immovable.empty()) list.back()["immovable"] = member.immovable;
  }
  return dump(Json{{"id", id}, {"result", {{"members", std::move(list)}, {"tasks", tasks}}}});
}

std::string encode_reply(const Reply& reply, RequestKind kind) {
  if (!reply.result) return encode_error(reply.id, reply.result.error());
  Json answers = Json::array();
  for (const RoundAnswer& answer : reply.result->answers) {
    Json entry = {{"rank", answer.rank}, {"pid", answer.pid}, {"state", answer.state}};
    if (!answer.payload.empty()) entry["payload"] = answer.payload;
    if (!answer.why.empty()) entry["why"] = answer.why;
    answers.push_back(std::move(entry));
  }
  Json result = {{"answers", std::move(answers)}};
  if (kind == RequestKind::kQuiesce) result["held"] = reply.result->held;
  return dump(Json{{"id", reply.id}, {"result", std::move(result)}});
}

std::string encode_error(const std::string& id, const Error& error) {
  return dump(
      Json{{"id", id}, {"error", {{"code", code_name(error.code)}, {"message", error.message}}}});
}

Result<Registered> parse_registered(const GuestReply& reply) {
  Result<Json> object = result_object(reply);
  if (!object) return object.error();
  Result<std::uint64_t> epoch = get_uint(*object, "epoch", 0, kMaxEpoch);
  if (!epoch) return epoch.error();
  Result<bool> at_rest = get_bool(*object, "at_rest");
  if (!at_rest) return at_rest.error();
  Result<Payloads> peers = get_payloads(*object, "peers");
  if (!peers) return peers.error();
  return Registered{*epoch, *at_rest, std::move(*peers)};
}

namespace {

Status read_strings(const Json& object, const char* name, std::vector<std::string>& into) {
  const auto field = object.find(name);
  if (field == object.end()) return {};
  if (!field->is_array())
    return Error{Code::kInvalidArgument,
                 "message refused: field '" + std::string(name) + "': not a list"};
  for (const Json& entry : *field) {
    if (!entry.is_string())
      return Error{Code::kInvalidArgument,
                   "message refused: field '" + std::string(name) + "': not a list of strings"};
    into.push_back(entry.get<std::string>());
  }
  return {};
}

}  // namespace

Result<NodeCheck> parse_node_check(const GuestReply& reply) {
  Result<Json> object = result_object(reply);
  if (!object) return object.error();
  NodeCheck check;
  Result<bool> healthy = get_bool(*object, "healthy");
  if (!healthy) return healthy.error();
  check.healthy = *healthy;
  if (Result<std::string> reason = get_string(*object, "reason")) check.reason = std::move(*reason);
  if (Result<std::string> quiesce = get_string(*object, "quiesce"))
    check.quiesce = std::move(*quiesce);
  for (const auto& [name, list] :
       {std::pair("network", &check.networks), std::pair("rdma", &check.rdma)}) {
    if (const Status status = read_strings(*object, name, *list); !status) return status.error();
  }
  if (Result<bool> soft_roce = get_bool(*object, "soft_roce")) check.soft_roce = *soft_roce;
  return check;
}

}  // namespace symvirt::hooks
