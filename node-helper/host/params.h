// Fields of a request: missing or mistyped ones become INVALID_ARGUMENT naming the field. The first
// error is kept, so that a handler reads all it wants and asks once.
#pragma once

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "common/result.h"

namespace symvirt::host {

class Params {
 public:
  explicit Params(const nlohmann::json& j) : j_(j) {}

  std::string text(const char* field, std::size_t longest = 255) {
    const nlohmann::json* v = need(field);
    if (v == nullptr) return "";
    if (!v->is_string()) return fail(field, "must be a string"), "";
    std::string value = v->get<std::string>();
    if (value.empty() || value.size() > longest) return fail(field, "is empty or too long"), "";
    return value;
  }
  std::string text_or(const char* field, const char* otherwise) {
    return j_.contains(field) && !j_[field].is_null() ? text(field) : otherwise;
  }
  std::int64_t number(const char* field, std::int64_t low, std::int64_t high) {
    const nlohmann::json* v = need(field);
    if (v == nullptr) return low;
    if (!v->is_number_integer()) return fail(field, "must be a whole number"), low;
    const auto value = v->get<std::int64_t>();
    if (value < low || value > high) return fail(field, "is out of range"), low;
    return value;
  }
  std::int64_t number_or(const char* field, std::int64_t low, std::int64_t high,
                         std::int64_t otherwise) {
    return j_.contains(field) && !j_[field].is_null() ? number(field, low, high) : otherwise;
  }
  bool flag_or(const char* field, bool otherwise) {
    if (!j_.contains(field)) return otherwise;
    if (!j_[field].is_boolean()) return fail(field, "must be true or false"), otherwise;
    return j_[field].get<bool>();
  }
  std::vector<int> numbers_or_none(const char* field, int high) {
    std::vector<int> list;
    if (!j_.contains(field) || j_[field].is_null()) return list;
    if (!j_[field].is_array()) return fail(field, "must be a list of numbers"), list;
    for (const nlohmann::json& v : j_[field]) {
      if (!v.is_number_integer() || v.get<std::int64_t>() < 0 || v.get<std::int64_t>() > high)
        return fail(field, "must be a list of numbers"), list;
      list.push_back(v.get<int>());
    }
    return list;
  }
  const nlohmann::json& objects(const char* field) {
    static const nlohmann::json none = nlohmann::json::array();
    const nlohmann::json* v = need(field);
    if (v == nullptr) return none;
    bool good = v->is_array() && v->size() <= 64;
    for (std::size_t i = 0; good && i < v->size(); ++i) good = (*v)[i].is_object();
    if (!good) return fail(field, "must be a list of objects"), none;
    return *v;
  }
  nlohmann::json object_or_empty(const char* field) {
    if (!j_.contains(field)) return nlohmann::json::object();
    if (!j_[field].is_object()) fail(field, "must be an object");
    return j_[field].is_object() ? j_[field] : nlohmann::json::object();
  }
  // A name that goes into paths, XML and logs.
  std::string name(const char* field) {
    std::string value = text(field, 64);
    for (char c : value) {
      const bool good = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                        (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.';
      if (!good) return fail(field, "may hold letters, digits and - _ . only"), value;
    }
    if (value.starts_with('.') || value.starts_with('-'))
      fail(field, "must begin with a letter or digit");
    return value;
  }
  void fail(const char* field, const char* why) {
    if (!error_) error_ = Error{Code::kInvalidArgument, fmt::format("field {} {}", field, why)};
  }
  Status status() const { return error_ ? Status(*error_) : Status(); }

 private:
  const nlohmann::json* need(const char* field) {
    auto it = j_.find(field);
    if (it != j_.end()) return &*it;
    fail(field, "is missing");
    return nullptr;
  }
  const nlohmann::json& j_;
  std::optional<Error> error_;
};

}  // namespace symvirt::host
