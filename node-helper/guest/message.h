// The lines of docs/protocols.md sections 2 and 3: {"id","method","params"} asks,
// {"id","result"|"error"} answers,
// {"event",...} tells. The same on the virtio-serial port and on guestd.sock.
//
// Input is not trusted: anything may stand in a line. Nothing here throws, and nesting is limited
// before the JSON library sees it.
#pragma once

#include <string>
#include <string_view>
#include <variant>

#include "common/result.h"
#include "node-helper/guest/fields.h"

namespace symvirt::guest {

struct Request {
  std::string id;  // chosen by the asking side; up to kMaxIdBytes
  std::string method;
  Json params = Json::object();
};

struct Answer {
  std::string id;
  Result<Json> result;
};

struct Event {
  std::string name;
};

using Message = std::variant<Request, Answer, Event>;

inline constexpr std::size_t kMaxIdBytes = 256;
inline constexpr std::size_t kMaxMethodBytes = 64;
inline constexpr std::size_t kMaxErrorBytes = 64u << 10;
inline constexpr int kMaxNesting = 32;

// kInvalidArgument when the line is no message.
Result<Message> parse_message(std::string_view line);

// One line each, newline included.
std::string format_request(std::string_view id, std::string_view method, const Json& params);
std::string format_answer(std::string_view id, const Result<Json>& result);

}  // namespace symvirt::guest
