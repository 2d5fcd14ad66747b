#include "spank-symvirt/cli/power.h"

#include <fmt/format.h>

#include <algorithm>

namespace symvirt {

using std::chrono::milliseconds;

Status change_power(const std::string& nodes, milliseconds patience, const PowerWorld& world) {
  const milliseconds end = world.now() + patience;
  milliseconds pause{250};
  for (int tries = 1;; ++tries) {
    const milliseconds left = std::max(end - world.now(), milliseconds(1));
    auto answer = world.ask(nodes, std::min(left, milliseconds(20'000)));
    if (answer) return {};
    const Error& error = answer.error();
    if (!error.unknown_effect()) return error;
    if (world.now() + pause >= end) {
      return Error{error.code, fmt::format("{}; gave up after {} tries in {} s; is symvirtd "
                                           "running? systemctl status symvirtd",
                                           error.message, tries, patience.count() / 1000)};
    }
    if (tries == 1) world.warn(error.message + "; trying again");
    world.sleep(pause);
    pause = std::min(pause * 2, milliseconds(4'000));
  }
}

}  // namespace symvirt
