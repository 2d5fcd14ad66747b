#include "spank-symvirt/cli/follow_events.h"

#include <fmt/format.h>

#include <optional>

#include "spank-symvirt/cli/fields.h"

namespace symvirt {

using nlohmann::json;

Status follow_events(std::int64_t since, const FollowWorld& world) {
  std::optional<std::int64_t> generation;
  int tries = 0;
  // False: the error is not one that passes.
  auto away = [&](const Error& error) {
    if (!error.unknown_effect() || !generation) return false;
    if (tries == 0) world.err(error.message + "; trying again until it is back");
    world.sleep(tries++);
    return true;
  };
  while (!world.stop()) {
    auto status = world.status();
    if (!status) {
      if (!away(status.error())) return status.error();
      continue;
    }
    const std::int64_t now = integer_of(*status, "generation");
    if (generation && *generation != now) {
      world.event({{"schema_version", 1},
                   {"event", "restarted"},
                   {"generation", now},
                   {"message", fmt::format("symvirtd was restarted (generation {})", now)}});
      since = 1;
    } else if (tries > 0) {
      world.err("symvirtd answers again");
    }
    generation = now;
    tries = 0;
    auto end = world.events(since, [&](const json& event) {
      if (const std::int64_t seq = integer_of(event, "seq"); seq > 0) since = seq + 1;
      world.event(event);
    });
    if (end) {
      if (const std::int64_t next = integer_of(*end, "next"); next > since) since = next;
    } else if (end.error().code == Code::kUnavailable) {
      if (!away(end.error())) return end.error();
    } else if (end.error().code != Code::kDeadline) {  // that one only means: nothing happened
      return end.error();
    }
  }
  return {};
}

}  // namespace symvirt
