#include "common/result.h"

#include <array>

namespace symvirt {
namespace {

struct CodeName {
  Code code;
  std::string_view name;
};

constexpr std::array kCodes = {
    CodeName{Code::kInvalidArgument, "INVALID_ARGUMENT"}, CodeName{Code::kNotFound, "NOT_FOUND"},
    CodeName{Code::kAlreadyExists, "ALREADY_EXISTS"},     CodeName{Code::kPrecondition, "PRECONDITION"},
    CodeName{Code::kPermission, "PERMISSION"},            CodeName{Code::kUnavailable, "UNAVAILABLE"},
    CodeName{Code::kDeadline, "DEADLINE"},                CodeName{Code::kExhausted, "EXHAUSTED"},
    CodeName{Code::kRefused, "REFUSED"},                  CodeName{Code::kCancelled, "CANCELLED"},
    CodeName{Code::kInternal, "INTERNAL"},
};

}  // namespace

std::string_view code_name(Code code) {
  for (const CodeName& c : kCodes) {
    if (c.code == code) return c.name;
  }
  return "INTERNAL";
}

std::optional<Code> code_from_name(std::string_view name) {
  for (const CodeName& c : kCodes) {
    if (c.name == name) return c.code;
  }
  return std::nullopt;
}

}  // namespace symvirt
