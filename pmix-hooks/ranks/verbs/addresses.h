// Ports, GIDs and address vectors: what the application knows and what is (docs/verbs.md:
// addresses).
//
// Control calls and the quiesce only.
#pragma once

#include "pmix-hooks/ranks/verbs/layer.h"

namespace symvirt::hooks::verbs {

// What the real context's ports say now; empty when it cannot be asked.
std::vector<PortState> read_ports(VContext& context);
// As the application sees them: of before the first move, if there was one.
const std::vector<PortState>& visible_ports(VContext& context);
const PortState* visible_port(VContext& context, int port);

// GID index of the device that is open now, for the one the application names.
int real_gid_index(const VContext& context, int port, int index);
int visible_gid_index(const VContext& context, int port, int index);
// The address vector for the device.
ibv_ah_attr real_address(const VContext& context, const ibv_ah_attr& attr);
// The other way round, of a sender (ibv_init_ah_from_wc).
ibv_ah_attr visible_address(const VContext& context, const ibv_ah_attr& attr);

// Numbers that are carried by somebody at one of this context's addresses: no new object may have
// them.
bool number_is_carried(VContext& context, std::uint32_t qp_number);
// The ports of a device that is opened when others know places by their old addresses: another
// process may have had the predecessor of this device. Empty: nobody had.
std::vector<PortState> ports_as_known(const Directory& directory, std::vector<PortState> ports);
bool key_is_carried(VContext& context, std::uint32_t lkey, std::uint32_t rkey);

}  // namespace symvirt::hooks::verbs
