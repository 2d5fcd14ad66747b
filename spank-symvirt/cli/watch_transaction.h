// Following one transaction to its end. It lives in symvirtd, not here: whoever watches may go, and
// symvirtd may restart meanwhile.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "common/result.h"
#include "spank-symvirt/cli/exit_codes.h"

namespace symvirt {

struct WatchWorld {
  std::function<Result<nlohmann::json>(std::int64_t id)> show;
  std::function<void()> sleep;    // between two looks; ends early when stop() turns true
  std::function<bool()> stop;     // Ctrl-C
  std::function<double()> now_s;  // Unix time
  std::function<void(const std::string&)> out;  // standard output, as it is
  std::function<void(const std::string&)> err;  // a line for people
};

struct WatchOptions {
  bool json = false;  // an object a line: at the beginning, at each new phase, at the end
  std::size_t terminal_width = 0;  // 0: not a terminal, plain lines
  double timeout_s = 0;            // 0: until it ends
  double patience_s = 120;         // how long symvirtd may be away
};

// `first`: the transaction as the call that began it answered.
Exit watch_transaction(const nlohmann::json& first, const WatchOptions& options,
                       const WatchWorld& world);

}  // namespace symvirt
