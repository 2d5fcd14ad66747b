// Reads typed fields out of a JSON object and remembers the first thing that is wrong, so that a
// parser is a list of its fields and every error names method and field ("job.quiesce: epoch:
// missing").
//
// Nothing here throws. Threads: a plain value.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"

namespace symvirt::guest {

using Json = nlohmann::json;

class Fields {
 public:
  // where: method or object name for messages. A value that is no object fails every read.
  Fields(const Json& object, std::string where);

  std::uint64_t number(const char* name, std::uint64_t least, std::uint64_t most);
  std::uint64_t number_or(const char* name, std::uint64_t least, std::uint64_t most,
                          std::uint64_t absent);
  std::int64_t integer(const char* name);
  std::string text(const char* name, std::size_t longest);
  std::string text_or(const char* name, std::size_t longest, std::string absent);
  bool flag_or(const char* name, bool absent);
  std::vector<std::string> texts(const char* name, std::size_t most, std::size_t longest);
  std::vector<std::string> texts_or_none(const char* name, std::size_t most, std::size_t longest);
  // The array of that name, or nullptr (missing, not an array, too many elements: an error unless
  // optional and missing).
  const Json* array(const char* name, std::size_t most);
  const Json* array_or_none(const char* name, std::size_t most);
  const Json* object_or_none(const char* name);
  // {rank: string}, passed on unread; null when missing.
  Json payloads_or_none(const char* name);

  void fail(const char* name, std::string_view why);
  bool ok() const { return !error_.has_value(); }
  Error error() const { return *error_; }
  Status status() const { return error_ ? Status(*error_) : Status(); }

 private:
  const Json* find(const char* name, bool required);
  std::vector<std::string> read_texts(const char* name, const Json* value, std::size_t most,
                                      std::size_t longest);

  const Json& object_;
  std::string where_;
  std::optional<Error> error_;
};

// For text that leaves the process: never throws, bytes that are no UTF-8 (names of processes) are
// replaced.
std::string to_text(const Json& json);

}  // namespace symvirt::guest
