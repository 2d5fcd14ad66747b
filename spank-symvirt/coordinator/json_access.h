// Fields of what other daemons answered, or of an older journal: one that is missing, or of another
// type, has its default. json::value() would throw, and end symvirtd again at each start.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

namespace symvirt {

inline std::string text_of(const nlohmann::json& j, const char* field, const char* otherwise = "") {
  auto it = j.find(field);
  return it != j.end() && it->is_string() ? it->get<std::string>() : std::string(otherwise);
}

inline std::int64_t number_of(const nlohmann::json& j, const char* field) {
  auto it = j.find(field);
  return it != j.end() && it->is_number() ? it->get<std::int64_t>() : 0;
}

inline bool flag_of(const nlohmann::json& j, const char* field) {
  auto it = j.find(field);
  return it != j.end() && it->is_boolean() && it->get<bool>();
}

// The objects of an array; what is none is left out.
inline nlohmann::json objects_of(const nlohmann::json& j, const char* field) {
  nlohmann::json list = nlohmann::json::array();
  auto it = j.find(field);
  if (it == j.end() || !it->is_array()) return list;
  for (const nlohmann::json& item : *it) {
    if (item.is_object()) list.push_back(item);
  }
  return list;
}

}  // namespace symvirt
