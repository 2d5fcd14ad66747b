// Configuration files: toml++ with one rule of ours, that a key nobody asked for is an error and not a default.
// Errors are "file:line:column: what". Threads: plain values.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <fstream>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

// Header-only, because Debian builds the shared library with exceptions.
#define TOML_HEADER_ONLY 1
#define TOML_EXCEPTIONS 0
// toml++ 3.3 asserts what only its caller can know ("[#"); without that it says what is wrong with the file.
#define TOML_ASSERT(...) static_assert(true)
#include <toml++/toml.h>

#include "common/result.h"

namespace symvirt {

inline Error toml_error(const std::string& path, const toml::source_region& where, const std::string& what) {
  return Error{Code::kInvalidArgument, fmt::format("{}:{}:{}: {}", path, where.begin.line, where.begin.column, what)};
}

inline Result<std::string> read_text_file(const std::string& path) {
  std::ifstream in(path);
  if (!in) return Error{Code::kNotFound, path + ": cannot be read"};
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

// Reads one table and remembers which keys were asked for, so that a misspelt key is an error and
// not a default.
class TableReader {
 public:
  TableReader(const toml::table& table, std::string path, std::string name)
      : table_(table), path_(std::move(path)), name_(std::move(name)) {}

  template <typename T>
  void get(const char* key, T& value) {
    const toml::node* node = look(key);
    if (node == nullptr) return;
    if constexpr (std::is_same_v<T, bool>) {
      if (auto v = node->value_exact<bool>()) return void(value = *v);
    } else if constexpr (std::is_integral_v<T>) {
      auto v = node->value_exact<std::int64_t>();
      if (v && *v >= 0 && std::in_range<T>(*v)) return void(value = static_cast<T>(*v));
      return fail(*node, fmt::format("{}: a whole number, not negative, is wanted", key));
    } else {
      if (auto v = node->value_exact<std::string>()) return void(value = *v);
    }
    fail(*node, fmt::format("{}: wrong type", key));
  }

  void get(const char* key, std::vector<std::string>& list) {
    const toml::node* node = look(key);
    if (node == nullptr) return;
    list.clear();
    const toml::array* array = node->as_array();
    if (array == nullptr) return fail(*node, fmt::format("{}: a list of strings is wanted", key));
    for (const toml::node& item : *array) {
      auto v = item.value_exact<std::string>();
      if (!v) return fail(item, fmt::format("{}: a list of strings is wanted", key));
      list.push_back(*v);
    }
  }

  void get(const char* key, std::vector<std::uint32_t>& list) {
    const toml::node* node = look(key);
    if (node == nullptr) return;
    list.clear();
    const toml::array* array = node->as_array();
    if (array == nullptr) return fail(*node, fmt::format("{}: a list of numbers is wanted", key));
    for (const toml::node& item : *array) {
      auto v = item.value_exact<std::int64_t>();
      if (!v || !std::in_range<std::uint32_t>(*v))
        return fail(item, fmt::format("{}: a list of numbers is wanted", key));
      list.push_back(static_cast<std::uint32_t>(*v));
    }
  }

  // Seconds in the file, milliseconds in the program.
  void get_seconds(const char* key, std::int64_t& ms) {
    std::int64_t seconds = ms / 1000;
    get(key, seconds);
    ms = seconds * 1000;
  }

  void require(const char* key, std::string& value) {
    get(key, value);
    if (value.empty() && !error_) fail(table_, fmt::format("{}: key '{}' is missing", name_, key));
  }

  const toml::table* sub_table(const char* key) {
    const toml::node* node = look(key);
    if (node == nullptr) return nullptr;
    if (!node->is_table()) fail(*node, fmt::format("{}: a table is wanted", key));
    return node->as_table();
  }

  std::vector<const toml::table*> sub_tables(const char* key) {
    std::vector<const toml::table*> tables;
    const toml::node* node = look(key);
    if (node == nullptr) return tables;
    const toml::array* array = node->as_array();
    if (array == nullptr) {
      fail(*node, fmt::format("{}: [[{}]] is wanted", key, key));
      return tables;
    }
    for (const toml::node& item : *array) {
      if (!item.is_table())
        fail(item, fmt::format("{}: [[{}]] is wanted", key, key));
      else
        tables.push_back(item.as_table());
    }
    return tables;
  }

  void fail(const toml::node& node, const std::string& what) {
    if (!error_) error_ = toml_error(path_, node.source(), what);
  }
  void take(Status status) {
    if (!status && !error_) error_ = status.error();
  }

  Status finish() {
    if (error_) return *error_;
    for (const auto& [key, node] : table_) {
      if (asked_.count(std::string(key.str())) == 0) {
        return toml_error(path_, key.source(), fmt::format("unknown key '{}' in {}", key.str(), name_));
      }
    }
    return {};
  }

 private:
  const toml::node* look(const char* key) {
    asked_.insert(key);
    return error_ ? nullptr : table_.get(key);
  }

  const toml::table& table_;
  std::string path_;
  std::string name_;
  std::set<std::string> asked_;
  std::optional<Error> error_;
};

}  // namespace symvirt
