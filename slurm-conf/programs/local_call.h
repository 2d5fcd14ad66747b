// One request to symvirt-guestd over its AF_UNIX socket (docs/protocols.md section 3), blocking.
// For programs that live for one question; they need neither the daemon's event loop nor threads.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "common/deadline.h"
#include "common/result.h"

namespace symvirt {

inline constexpr char kGuestdSocket[] = "/run/symvirt/guestd.sock";

// kUnavailable: nobody listens there, or the connection broke; kDeadline: no answer in time;
// kInternal: an answer that cannot be read; else guestd's own error.
Result<nlohmann::json> local_call(const std::string& socket_path, const std::string& method,
                                  const nlohmann::json& params, Deadline deadline);

}  // namespace symvirt
