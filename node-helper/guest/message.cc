#include "node-helper/guest/message.h"

#include "common/json_nesting.h"

namespace symvirt::guest {
namespace {

Error wrong(std::string_view why) {
  return Error{Code::kInvalidArgument, "message: " + std::string(why)};
}

Result<Json> read_outcome(const Json& message) {
  if (const auto result = message.find("result"); result != message.end()) return Json(*result);
  Fields error(message["error"], "answer: error");
  const std::string name = error.text("code", 64);
  const std::string text = error.text_or("message", kMaxErrorBytes, "");
  if (!error.ok()) return error.error();
  // A code of a newer version: the caller can only treat it as unexpected.
  return Error{code_from_name(name).value_or(Code::kInternal), text};
}

}  // namespace

Result<Message> parse_message(std::string_view line) {
  if (nested_too_deeply(line)) return wrong("nested too deeply");
  const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) return wrong("not JSON");
  if (!json.is_object()) return wrong("must be a JSON object");
  Fields fields(json, "message");
  if (json.contains("event")) {
    Event event{fields.text("event", kMaxMethodBytes)};
    if (!fields.ok()) return fields.error();
    return Message(std::move(event));
  }
  const std::string id = fields.text("id", kMaxIdBytes);
  if (!fields.ok()) return fields.error();
  const bool has_result = json.contains("result"), has_error = json.contains("error");
  if (json.contains("method")) {
    if (has_result || has_error) return wrong("both a request and an answer");
    Request request{id, fields.text("method", kMaxMethodBytes)};
    if (const Json* params = fields.object_or_none("params")) request.params = *params;
    if (!fields.ok()) return fields.error();
    return Message(std::move(request));
  }
  if (has_result == has_error) return wrong("needs one of method, result, error");
  return Message(Answer{id, read_outcome(json)});
}

std::string format_request(std::string_view id, std::string_view method, const Json& params) {
  return to_text({{"id", id}, {"method", method}, {"params", params}}) + "\n";
}

std::string format_answer(std::string_view id, const Result<Json>& result) {
  if (result) return to_text({{"id", id}, {"result", *result}}) + "\n";
  return to_text(
             {{"id", id},
              {"error",
               {{"code", code_name(result.error().code)}, {"message", result.error().message}}}}) +
         "\n";
}

}  // namespace symvirt::guest
