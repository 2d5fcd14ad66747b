#include "pmix-hooks/message.h"

#include <limits>

#include "pmix-hooks/json.h"

namespace symvirt::hooks {
namespace {

constexpr std::uint64_t kMaxEpoch = std::numeric_limits<std::int64_t>::max();
constexpr std::uint64_t kMaxRound = 1'000'000;
constexpr std::size_t kMaxReasonBytes = 256;
constexpr std::size_t kMaxWhyBytes = 1024;
constexpr std::uint64_t kMaxPid = 1u << 22;  // PID_MAX_LIMIT of the kernel

Result<AnswerState> get_state(const Json& object) {
  Result<std::string> name = get_string(object, "state");
  if (!name) return name.error();
  for (AnswerState state : {AnswerState::kMore, AnswerState::kRest, AnswerState::kDone}) {
    if (*name == state_name(state)) return state;
  }
  return Error{Code::kInvalidArgument,
               "message refused: field 'state': neither more, rest nor done"};
}

}  // namespace

std::string_view state_name(AnswerState state) {
  switch (state) {
    case AnswerState::kMore:
      return "more";
    case AnswerState::kRest:
      return "rest";
    case AnswerState::kDone:
      return "done";
  }
  return "more";
}

std::string encode_command(const Command& command) {
  Json object = {{"epoch", command.epoch}, {"round", command.round}};
  if (!command.payloads.empty()) object["payload"] = to_json(command.payloads);
  if (!command.device_leaves) object["device_leaves"] = false;
  return dump(object);
}

std::string encode_answer(const Answer& answer) {
  Json object = {{"epoch", answer.epoch},
                 {"round", answer.round},
                 {"pid", answer.pid},
                 {"state", state_name(answer.state)}};
  if (!answer.payload.empty()) object["payload"] = answer.payload;
  if (!answer.why.empty()) object["why"] = answer.why;
  return dump(object);
}

std::string encode_presence(std::int32_t pid, const std::string& immovable) {
  Json object = {{"pid", pid}};
  if (!immovable.empty()) object["immovable"] = immovable;
  return dump(object);
}

Result<Command> parse_command(std::string_view text) {
  Result<Json> object = parse_object(text, kMaxMessageBytes);
  if (!object) return object.error();
  Result<std::uint64_t> epoch = get_uint(*object, "epoch", 0, kMaxEpoch);
  if (!epoch) return epoch.error();
  Result<std::uint64_t> round = get_uint(*object, "round", 1, kMaxRound);
  if (!round) return round.error();
  Result<Payloads> payloads = get_payloads(*object, "payload");
  if (!payloads) return payloads.error();
  Result<bool> leaves = get_bool_or(*object, "device_leaves", true);
  if (!leaves) return leaves.error();
  return Command{*epoch, static_cast<std::uint32_t>(*round), std::move(*payloads), *leaves};
}

Result<Answer> parse_answer(std::string_view text) {
  Result<Json> object = parse_object(text, kMaxMessageBytes);
  if (!object) return object.error();
  Result<std::uint64_t> epoch = get_uint(*object, "epoch", 0, kMaxEpoch);
  if (!epoch) return epoch.error();
  Result<std::uint64_t> round = get_uint(*object, "round", 1, kMaxRound);
  if (!round) return round.error();
  Result<std::uint64_t> pid = get_uint(*object, "pid", 1, kMaxPid);
  if (!pid) return pid.error();
  Result<AnswerState> state = get_state(*object);
  if (!state) return state.error();
  Answer answer{
      *epoch, static_cast<std::uint32_t>(*round), static_cast<std::int32_t>(*pid), *state, {}};
  if (object->contains("payload")) {
    Result<std::string> payload = get_string(*object, "payload");
    if (!payload) return payload.error();
    answer.payload = std::move(*payload);
  }
  if (object->contains("why")) {
    Result<std::string> why = get_string(*object, "why");
    if (!why) return why.error();
    answer.why = why->substr(0, kMaxWhyBytes);
  }
  return answer;
}

Result<Presence> parse_presence(std::string_view text) {
  Result<Json> object = parse_object(text, kMaxMessageBytes);
  if (!object) return object.error();
  Result<std::uint64_t> pid = get_uint(*object, "pid", 1, kMaxPid);
  if (!pid) return pid.error();
  Presence presence{static_cast<std::int32_t>(*pid), {}};
  if (object->contains("immovable")) {
    Result<std::string> why = get_string(*object, "immovable");
    if (!why) return why.error();
    presence.immovable = why->substr(0, kMaxReasonBytes);
  }
  return presence;
}

}  // namespace symvirt::hooks
