// Reading fields of a JSON object without exceptions: the objects come from other processes.
// Each reader says which field is wrong; docs/protocols.md: unknown fields are ignored, missing or
// mistyped ones are INVALID_ARGUMENT naming the field.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "common/result.h"
#include "pmix-hooks/message.h"

namespace symvirt::hooks {

using Json = nlohmann::json;

// The object in text, or kInvalidArgument.
Result<Json> parse_object(std::string_view text, std::size_t max_bytes);
// Compact, one line. Bytes that are not UTF-8 are replaced, never thrown about.
std::string dump(const Json& value);

Result<std::uint64_t> get_uint(const Json& object, const char* field, std::uint64_t lowest,
                               std::uint64_t highest);
Result<std::string> get_string(const Json& object, const char* field);
Result<bool> get_bool(const Json& object, const char* field);
Result<bool> get_bool_or(const Json& object, const char* field, bool absent);
// A missing or null field is an empty map.
Result<Payloads> get_payloads(const Json& object, const char* field);
Json to_json(const Payloads& payloads);

}  // namespace symvirt::hooks
