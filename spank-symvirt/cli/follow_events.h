// `events --follow`: the stream of symvirtd's events across broken connections and restarts.
//
// Events are numbered from 1 by each symvirtd process; the generation (of `status`) tells two
// processes apart. After a break the stream goes on behind the last number seen; when the
// generation is another, at the new process's first event.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "common/result.h"
#include "spank-symvirt/cli/exit_codes.h"

namespace symvirt {

struct FollowWorld {
  std::function<Result<nlohmann::json>()> status;
  // Events from number `since` on (0: from now on), until the answer ends; each is given to
  // `event`.
  std::function<Result<nlohmann::json>(std::int64_t since,
                                       const std::function<void(const nlohmann::json&)>& event)>
      events;
  std::function<void(int tries)> sleep;  // before try number `tries` + 1
  std::function<void(const nlohmann::json&)> event;
  std::function<void(const std::string&)> err;
  std::function<bool()> stop;
};

// Returns when stop() says so, or with an error that another try does not mend. An error of the
// very first call ends it too: nobody wants to follow a mistyped server.
Status follow_events(std::int64_t since, const FollowWorld& world);

}  // namespace symvirt
