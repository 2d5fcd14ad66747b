#include "pmix-hooks/json.h"

#include "common/json_nesting.h"

namespace symvirt::hooks {
namespace {

Error wrong(std::string_view field, std::string_view why) {
  return Error{Code::kInvalidArgument,
               "message refused: field '" + std::string(field) + "': " + std::string(why)};
}

}  // namespace

Result<Json> parse_object(std::string_view text, std::size_t max_bytes) {
  if (text.size() > max_bytes) {
    return Error{Code::kInvalidArgument, "message refused: " + std::to_string(text.size()) +
                                             " bytes, at most " + std::to_string(max_bytes) +
                                             " are allowed"};
  }
  if (nested_too_deeply(text))
    return Error{Code::kInvalidArgument, "message refused: nested too deeply"};
  Json value = Json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (!value.is_object())
    return Error{Code::kInvalidArgument, "message refused: not a JSON object"};
  return value;
}

std::string dump(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Result<std::uint64_t> get_uint(const Json& object, const char* field, std::uint64_t lowest,
                               std::uint64_t highest) {
  const auto found = object.find(field);
  if (found == object.end()) return wrong(field, "missing");
  // nlohmann keeps non-negative literals as unsigned; a negative or fractional one has another
  // type.
  if (!found->is_number_unsigned()) return wrong(field, "not a whole number of at least 0");
  const auto value = found->get<std::uint64_t>();
  if (value < lowest || value > highest) {
    return wrong(field, std::to_string(value) + " is not between " + std::to_string(lowest) +
                            " and " + std::to_string(highest));
  }
  return value;
}

Result<std::string> get_string(const Json& object, const char* field) {
  const auto found = object.find(field);
  if (found == object.end()) return wrong(field, "missing");
  if (!found->is_string()) return wrong(field, "not a string");
  return found->get<std::string>();
}

Result<bool> get_bool(const Json& object, const char* field) {
  const auto found = object.find(field);
  if (found == object.end()) return wrong(field, "missing");
  if (!found->is_boolean()) return wrong(field, "not true or false");
  return found->get<bool>();
}

Result<bool> get_bool_or(const Json& object, const char* field, bool absent) {
  if (!object.contains(field)) return absent;
  return get_bool(object, field);
}

Result<Payloads> get_payloads(const Json& object, const char* field) {
  Payloads payloads;
  const auto found = object.find(field);
  if (found == object.end() || found->is_null()) return payloads;
  if (!found->is_object()) return wrong(field, "not an object of strings by process");
  for (const auto& [key, value] : found->items()) {
    if (key.empty() || key.size() > kMaxPayloadKeyBytes)
      return wrong(field, "'" + key.substr(0, kMaxPayloadKeyBytes) + "' is no name of a process");
    if (!value.is_string()) return wrong(field, "payload of " + key + " is not a string");
    payloads.emplace(key, value.get<std::string>());
  }
  return payloads;
}

Json to_json(const Payloads& payloads) {
  Json object = Json::object();
  for (const auto& [process, payload] : payloads) object[process] = payload;
  return object;
}

}  // namespace symvirt::hooks
