// Reading of answers that another version of symvirtd may have written: what is missing or of
// another type reads as nothing, and never throws.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace symvirt {

inline const nlohmann::json& field_of(const nlohmann::json& j, const char* key) {
  static const nlohmann::json kNothing;
  if (!j.is_object()) return kNothing;
  auto it = j.find(key);
  return it == j.end() ? kNothing : *it;
}

inline std::string text_of(const nlohmann::json& j, const char* key) {
  const nlohmann::json& v = field_of(j, key);
  return v.is_string() ? v.get<std::string>() : std::string();
}

inline double number_of(const nlohmann::json& j, const char* key) {
  const nlohmann::json& v = field_of(j, key);
  return v.is_number() ? v.get<double>() : 0.0;
}

inline std::int64_t integer_of(const nlohmann::json& j, const char* key) {
  const nlohmann::json& v = field_of(j, key);
  return v.is_number_integer() ? v.get<std::int64_t>() : 0;
}

inline bool flag_of(const nlohmann::json& j, const char* key) {
  const nlohmann::json& v = field_of(j, key);
  return v.is_boolean() && v.get<bool>();
}

// The array of that name, or an empty one.
inline const nlohmann::json& list_of(const nlohmann::json& j, const char* key) {
  static const nlohmann::json kEmpty = nlohmann::json::array();
  const nlohmann::json& v = field_of(j, key);
  return v.is_array() ? v : kEmpty;
}

// One line, whatever is in it.
inline std::string json_line(const nlohmann::json& j) {
  return j.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace symvirt
