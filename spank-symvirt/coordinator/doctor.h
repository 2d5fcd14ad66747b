// What `symvirtctl doctor` says of a host: from what its noded told (host.info, docs/protocols.md)
// and from slurm.conf. Pure; threads: any.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace symvirt {

// {check, ok, detail, advice?}: the advice only of what is not ok.
nlohmann::json check(const std::string& name, bool ok, const std::string& detail,
                     const std::string& advice = "");

// A list of checks. `gres`: the host's Gres= as slurm.conf has it. `info` comes from another
// program: nothing in it is trusted.
nlohmann::json host_checks(const std::string& host, const std::string& gres,
                           const nlohmann::json& info);

}  // namespace symvirt
