// What symvirt-resume and symvirt-suspend do: hand Slurm's list of nodes to symvirtd, patiently.
#pragma once

#include <chrono>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "common/result.h"

namespace symvirt {

struct PowerWorld {
  // node.resume or node.suspend; both may be repeated, symvirtd only remembers what is wanted.
  std::function<Result<nlohmann::json>(const std::string& nodes, std::chrono::milliseconds timeout)>
      ask;
  std::function<std::chrono::milliseconds()> now;
  std::function<void(std::chrono::milliseconds)> sleep;
  std::function<void(const std::string&)> warn;
};

// Asks until there is an answer: repeats with back-off while symvirtd cannot be reached or does not
// answer (it may be in the middle of a restart), up to `patience`. Other errors end it at once.
Status change_power(const std::string& nodes, std::chrono::milliseconds patience,
                    const PowerWorld& world);

}  // namespace symvirt
