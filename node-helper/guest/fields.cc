#include "node-helper/guest/fields.h"

#include <fmt/format.h>

namespace symvirt::guest {

Fields::Fields(const Json& object, std::string where) : object_(object), where_(std::move(where)) {
  if (!object_.is_object()) {
    error_ = Error{Code::kInvalidArgument, fmt::format("{}: must be a JSON object", where_)};
  }
}

void Fields::fail(const char* name, std::string_view why) {
  if (!error_) error_ = Error{Code::kInvalidArgument, fmt::format("{}: {}: {}", where_, name, why)};
}

const Json* Fields::find(const char* name, bool required) {
  if (!object_.is_object()) return nullptr;
  const auto it = object_.find(name);
  if (it == object_.end() || it->is_null()) {
    if (required) fail(name, "missing");
    return nullptr;
  }
  return &*it;
}

std::uint64_t Fields::number(const char* name, std::uint64_t least, std::uint64_t most) {
  const Json* value = find(name, true);
  if (!value) return least;
  if (!value->is_number_integer()) {
    fail(name, "must be an integer");
    return least;
  }
  const bool negative = !value->is_number_unsigned() && value->get<std::int64_t>() < 0;
  const std::uint64_t n = negative ? 0 : value->get<std::uint64_t>();
  if (negative || n < least || n > most) {
    fail(name, fmt::format("must be between {} and {}", least, most));
    return least;
  }
  return n;
}

std::uint64_t Fields::number_or(const char* name, std::uint64_t least, std::uint64_t most,
                                std::uint64_t absent) {
  return find(name, false) ? number(name, least, most) : absent;
}

std::int64_t Fields::integer(const char* name) {
  const Json* value = find(name, true);
  if (!value) return 0;
  if (!value->is_number_integer() ||
      (value->is_number_unsigned() && value->get<std::uint64_t>() > INT64_MAX)) {
    fail(name, "must be an integer of 64 bits");
    return 0;
  }
  return value->get<std::int64_t>();
}

std::string Fields::text(const char* name, std::size_t longest) {
  const Json* value = find(name, true);
  if (!value) return {};
  if (!value->is_string()) {
    fail(name, "must be a string");
    return {};
  }
  const auto& s = value->get_ref<const std::string&>();
  if (s.empty() || s.size() > longest) {
    fail(name, fmt::format("must have 1 to {} bytes", longest));
    return {};
  }
  if (s.find('\0') != std::string::npos) {
    fail(name, "must not hold a zero byte");
    return {};
  }
  return s;
}

std::string Fields::text_or(const char* name, std::size_t longest, std::string absent) {
  return find(name, false) ? text(name, longest) : std::move(absent);
}

bool Fields::flag_or(const char* name, bool absent) {
  const Json* value = find(name, false);
  if (!value) return absent;
  if (!value->is_boolean()) {
    fail(name, "must be true or false");
    return absent;
  }
  return value->get<bool>();
}

std::vector<std::string> Fields::read_texts(const char* name, const Json* value, std::size_t most,
                                            std::size_t longest) {
  std::vector<std::string> out;
  if (!value) return out;
  if (!value->is_array() || value->size() > most) {
    fail(name, fmt::format("must be an array of at most {} strings", most));
    return out;
  }
  for (const Json& element : *value) {
    if (!element.is_string()) {
      fail(name, "must hold strings only");
      return {};
    }
    const auto& s = element.get_ref<const std::string&>();
    if (s.empty() || s.size() > longest || s.find('\0') != std::string::npos) {
      fail(name, fmt::format("each string must have 1 to {} bytes", longest));
      return {};
    }
    out.push_back(s);
  }
  return out;
}

std::vector<std::string> Fields::texts(const char* name, std::size_t most, std::size_t longest) {
  return read_texts(name, find(name, true), most, longest);
}

std::vector<std::string> Fields::texts_or_none(const char* name, std::size_t most,
                                               std::size_t longest) {
  return read_texts(name, find(name, false), most, longest);
}

const Json* Fields::array(const char* name, std::size_t most) {
  const Json* value = find(name, true);
  if (value && (!value->is_array() || value->size() > most)) {
    fail(name, fmt::format("must be an array of at most {} elements", most));
    return nullptr;
  }
  return value;
}

const Json* Fields::array_or_none(const char* name, std::size_t most) {
  return find(name, false) ? array(name, most) : nullptr;
}

const Json* Fields::object_or_none(const char* name) {
  const Json* value = find(name, false);
  if (value && !value->is_object()) {
    fail(name, "must be an object");
    return nullptr;
  }
  return value;
}

Json Fields::payloads_or_none(const char* name) {
  const Json* value = object_or_none(name);
  if (!value) return nullptr;
  for (const auto& [rank, payload] : value->items()) {
    if (!payload.is_string()) {
      fail(name, "must be an object of strings by rank");
      return nullptr;
    }
  }
  return *value;
}

std::string to_text(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace symvirt::guest
