// Network interfaces of the guest: what is there, and the few things done to one. Thin over
// rtnetlink and ethtool's ioctl.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/result.h"
#include "node-helper/guest/address.h"
#include "node-helper/guest/netlink.h"
#include "node-helper/guest/params.h"

namespace symvirt::guest {

struct Link {
  int index = 0;
  std::string name;
  std::string
      mac;  // lower case, ':' between; as long as the device's addresses are (InfiniBand: 20 bytes)
  std::uint32_t mtu = 0;
  bool up = false;       // set up by an administrator
  bool carrier = false;  // up and with carrier: what the kernel shows as LOWER_UP
};

// Driver and bus address as ethtool -i shows them ("e1000e", "0000:07:00.0"); empty when the driver
// tells none.
struct DriverInfo {
  std::string driver;
  std::string bus;
};

// Addresses, routes and permanent neighbours of an interface: the kernel's own messages.
using Messages = std::vector<std::vector<char>>;
struct SavedLink {
  std::string name;
  std::uint32_t mtu = 0;
  std::string bus;
  Messages addresses;
  Messages routes;
  Messages neighbours;
  bool empty() const { return name.empty(); }
};

Result<std::vector<Link>> list_links(Netlink& route);
Result<Link> parse_link(const nlmsghdr* message);  // an RTM_NEWLINK
DriverInfo driver_of(const std::string& netdev);
bool fits(const Match& match, const Link& link, const DriverInfo& driver);

Status rename_link(Netlink& route, int index, const std::string& name);
Status set_mtu(Netlink& route, int index, std::uint32_t mtu);
Status set_up(Netlink& route, int index);
Result<std::vector<Cidr>> addresses_of(Netlink& route, int index);

Result<SavedLink> save_link(Netlink& route, const Link& link);
// All of them, whatever fails: addresses, then routes on the link, then routes through gateways.
// The errors put together.
Status restore_link(Netlink& route, const SavedLink& saved, int index);
// What the slot's configuration says, for an interface that was never saved.
Status configure_link(Netlink& route, const Slot& slot, int index);
// Adds the soft-RoCE device rxe_NETDEV on top, unless it is there. kernel module: rdma_rxe.
Status add_soft_roce(const std::string& netdev);

Json to_json(const SavedLink& saved);
// Wrong or mangled records are an error: nothing unchecked is handed to the kernel.
Result<SavedLink> parse_saved_link(const Json& json);

// Unasked ARP and neighbour advertisements for each address, so that switches and peers learn where
// it is now.
void announce(const Link& link, const std::vector<Cidr>& addresses);

}  // namespace symvirt::guest
