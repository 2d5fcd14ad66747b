// Result<T>: a value or an Error. The project's only way to report failure across functions.
//
// Debian 12 ships no tl::expected, and g++ 12's <expected> exists only in C++23 mode; this is the small part of
// std::expected's interface that the project uses, so that it can be replaced by it without touching callers.
//
// Threads: a plain value type. Errors are values; nothing here throws except value() on an error (a programming mistake).
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace symvirt {

// The closed set. It is part of the wire format (by name, see code_name), so names are never reused.
enum class Code {
  kInvalidArgument,  // the request or the configuration is wrong; the same call will fail again
  kNotFound,         // no such VM, device, job, transaction
  kAlreadyExists,    // there is one already, and it is not the one asked for
  kPrecondition,     // right request, wrong moment: state forbids it (device in use, VM not at rest, stale generation)
  kPermission,       // caller not allowed, credential missing, expired, replayed or for another host
  kUnavailable,      // could not be asked: connection refused, daemon away. Nothing is known of the effect
  kDeadline,         // asked, no answer in time. Nothing is known of the effect
  kExhausted,        // no device, no memory, no free slot, no host
  kRefused,          // the other side looked and says no, with a reason a user can act on
  kCancelled,        // ended by request
  kInternal,         // a bug or an unexpected answer of a library
};

std::string_view code_name(Code code);
std::optional<Code> code_from_name(std::string_view name);

// message: "what failed: object: why; what to do". Never holds secrets.
struct [[nodiscard]] Error {
  Code code = Code::kInternal;
  std::string message;

  // True when the effect of the failed call is unknown, so that it has to be asked for before anything else is decided.
  bool unknown_effect() const { return code == Code::kUnavailable || code == Code::kDeadline; }
  // The same error, one level up: "context: message".
  Error with(std::string_view context) const { return Error{code, std::string(context) + ": " + message}; }
  bool operator==(const Error&) const = default;
};

template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : v_(std::in_place_index<0>, std::move(value)) {}  // NOLINT: implicit by design
  Result(Error error) : v_(std::in_place_index<1>, std::move(error)) {}  // NOLINT

  bool has_value() const { return v_.index() == 0; }
  explicit operator bool() const { return has_value(); }
  T& value() & { return std::get<0>(v_); }
  const T& value() const& { return std::get<0>(v_); }
  T&& value() && { return std::get<0>(std::move(v_)); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }
  const Error& error() const { return std::get<1>(v_); }

 private:
  std::variant<T, Error> v_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)) {}  // NOLINT
  bool has_value() const { return !error_.has_value(); }
  explicit operator bool() const { return has_value(); }
  const Error& error() const { return *error_; }

 private:
  std::optional<Error> error_;
};

using Status = Result<void>;

}  // namespace symvirt
