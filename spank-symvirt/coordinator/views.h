// What symvirtctl --json prints: transactions, VMs, hosts and events as JSON. Each object carries
// schema_version; fields are only ever added. Pure functions.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "spank-symvirt/coordinator/engine.h"

namespace symvirt {

inline constexpr int kSchemaVersion = 1;

// Live figures that are not in the journal: (transaction, VM) -> vm.migrate's last progress.
using LiveProgress = std::map<std::pair<std::int64_t, std::string>, nlohmann::json>;

nlohmann::json view_of(const Transaction& tx, const LiveProgress& progress);
// One line for `events`: what just happened, for people and programs.
nlohmann::json view_of(const Event& event, const Transaction& tx);

}  // namespace symvirt
