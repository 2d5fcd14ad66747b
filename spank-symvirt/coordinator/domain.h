// From a VM class and a VM of it to what noded and guestd are told: domain XML, overlay, devices,
// guest part. Pure functions of the configuration.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "common/result.h"
#include "spank-symvirt/coordinator/config.h"

namespace symvirt {

// The class's libvirt XML with these filled in (and escaped): @VM@, @INDEX@, @UUID@ (derived from
// the name, the same on every host), @OVERLAY@, @INDEX_02X@, @INDEX+100@. An unknown @NAME@ is an
// error; any other @ stays.
Result<std::string> fill_domain(const ClassConfig& c, const std::string& vm, int index);
// noded's vm.start `overlays`.
Result<nlohmann::json> overlays_of(const ClassConfig& c, const std::string& vm, int index);
// noded's device.reserve `slots`.
Result<nlohmann::json> slots_to_reserve(const ClassConfig& c, const std::string& vm, int index);
// guestd's guest.configure `slots`.
Result<nlohmann::json> guest_slots_of(const ClassConfig& c, const std::string& vm, int index);
// "hca:1", "hca:2,fpga:1": what a launcher job of the class asks Slurm for.
std::string launcher_gres(const ClassConfig& c);

}  // namespace symvirt
