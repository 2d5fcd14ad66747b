#include "node-helper/guest/link.h"

#include <fmt/format.h>
#include <linux/ethtool.h>
#include <linux/if.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <rdma/rdma_netlink.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "common/unique_fd.h"
#include "node-helper/guest/rdma.h"

namespace symvirt::guest {
namespace {

std::string mac_text(const void* bytes, std::size_t size) {
  std::string text;
  for (std::size_t i = 0; i < size; ++i) {
    text += fmt::format("{}{:02x}", i ? ":" : "", static_cast<const std::uint8_t*>(bytes)[i]);
  }
  return text;
}

NlMessage change_link(int index) {
  NlMessage message(RTM_NEWLINK);
  message.extra<ifinfomsg>()->ifi_index = index;
  return message;
}

void put_address(NlMessage& message, std::uint16_t type, const Address& address) {
  message.put(type, address.bytes.data(), address.size());
}

Status add_address(Netlink& route, const Cidr& cidr, int index, const std::string& text) {
  NlMessage message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE);
  auto* ifa = message.extra<ifaddrmsg>();
  ifa->ifa_family = static_cast<std::uint8_t>(cidr.address.family);
  ifa->ifa_prefixlen = cidr.prefix;
  ifa->ifa_index = static_cast<std::uint32_t>(index);
  // The address is this VM's alone, assigned by the administrator: duplicate detection would only
  // cost its second.
  if (cidr.address.family == AF_INET6) ifa->ifa_flags = IFA_F_NODAD;
  put_address(message, IFA_LOCAL, cidr.address);
  put_address(message, IFA_ADDRESS, cidr.address);
  if (cidr.address.family == AF_INET && cidr.prefix < 31) {
    Address broadcast = cidr.address;
    for (unsigned bit = cidr.prefix; bit < 32; ++bit) {
      broadcast.bytes[bit / 8] |= static_cast<std::uint8_t>(0x80u >> (bit % 8));
    }
    put_address(message, IFA_BROADCAST, broadcast);
  }
  return route.ask(message.header(), "address " + text);
}

Status add_route(Netlink& route, const Route& wanted, int index) {
  const auto via = parse_address(wanted.via);
  const auto to = parse_cidr(wanted.to);
  if (!via && !to) return Error{Code::kInvalidArgument, "route " + wanted.to + ": no network"};
  NlMessage message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE);
  auto* rt = message.extra<rtmsg>();
  rt->rtm_family = static_cast<std::uint8_t>(to ? to->address.family : via->family);
  rt->rtm_dst_len = to ? to->prefix : 0;
  rt->rtm_table = RT_TABLE_MAIN;
  rt->rtm_protocol = RTPROT_STATIC;
  rt->rtm_scope = via ? RT_SCOPE_UNIVERSE : RT_SCOPE_LINK;
  rt->rtm_type = RTN_UNICAST;
  if (to) put_address(message, RTA_DST, to->address);
  if (via) put_address(message, RTA_GATEWAY, *via);
  message.put_u32(RTA_OIF, static_cast<std::uint32_t>(index));
  return route.ask(message.header(), "route " + wanted.to);
}

}  // namespace

Result<Link> parse_link(const nlmsghdr* message) {
  if (message->nlmsg_len < mnl_nlmsg_size(sizeof(ifinfomsg))) {
    return Error{Code::kInternal, "link message: too short"};
  }
  const auto* info = static_cast<const ifinfomsg*>(mnl_nlmsg_get_payload(message));
  Link link;
  link.index = info->ifi_index;
  link.up = info->ifi_flags & IFF_UP;
  link.carrier = link.up && (info->ifi_flags & IFF_LOWER_UP) && (info->ifi_flags & IFF_RUNNING);
  for_each_attribute(message, sizeof(ifinfomsg), [&](const nlattr* attribute) {
    switch (mnl_attr_get_type(attribute)) {
      case IFLA_IFNAME:
        if (mnl_attr_validate(attribute, MNL_TYPE_NUL_STRING) == 0)
          link.name = mnl_attr_get_str(attribute);
        break;
      case IFLA_ADDRESS:
        link.mac = mac_text(mnl_attr_get_payload(attribute), mnl_attr_get_payload_len(attribute));
        break;
      case IFLA_MTU:
        if (mnl_attr_validate(attribute, MNL_TYPE_U32) == 0) link.mtu = mnl_attr_get_u32(attribute);
        break;
    }
  });
  if (link.name.empty()) return Error{Code::kInternal, "link message: no name"};
  return link;
}

Result<std::vector<Link>> list_links(Netlink& route) {
  NlMessage message(RTM_GETLINK);
  message.extra<ifinfomsg>();
  const auto dump = route.dump(message.header(), "list of interfaces");
  if (!dump) return dump.error();
  std::vector<Link> links;
  for (const auto& bytes : *dump) {
    const auto link = parse_link(reinterpret_cast<const nlmsghdr*>(bytes.data()));
    if (link) links.push_back(*link);
  }
  return links;
}

// By ioctl and not from sysfs: it asks in the network namespace the daemon is in, whichever /sys is
// mounted.
DriverInfo driver_of(const std::string& netdev) {
  const UniqueFd fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ethtool_drvinfo info{};
  info.cmd = ETHTOOL_GDRVINFO;
  ifreq request{};
  netdev.copy(request.ifr_name, IFNAMSIZ - 1);
  request.ifr_data = reinterpret_cast<char*>(&info);
  if (::ioctl(fd.get(), SIOCETHTOOL, &request) != 0) return {};
  info.driver[sizeof info.driver - 1] = info.bus_info[sizeof info.bus_info - 1] = '\0';
  return {info.driver, info.bus_info};
}

bool fits(const Match& match, const Link& link, const DriverInfo& driver) {
  // libvirt writes 0000:07:00.0, people 07:00.0.
  const auto pci_fits = [&] {
    return driver.bus == match.pci || driver.bus == "0000:" + match.pci;
  };
  return (match.mac.empty() || match.mac == link.mac) &&
         (match.driver.empty() || match.driver == driver.driver) &&
         (match.pci.empty() || pci_fits());
}

Status rename_link(Netlink& route, int index, const std::string& name) {
  NlMessage message = change_link(index);
  message.put_text(IFLA_IFNAME, name);
  return route.ask(message.header(), "interface name " + name);
}

Status set_mtu(Netlink& route, int index, std::uint32_t mtu) {
  NlMessage message = change_link(index);
  message.put_u32(IFLA_MTU, mtu);
  return route.ask(message.header(), fmt::format("mtu {}", mtu));
}

Status set_up(Netlink& route, int index) {
  NlMessage message(RTM_NEWLINK);
  auto* info = message.extra<ifinfomsg>();
  info->ifi_index = index;
  info->ifi_flags = info->ifi_change = IFF_UP;
  return route.ask(message.header(), "interface up");
}

Result<std::vector<Cidr>> addresses_of(Netlink& route, int index) {
  NlMessage message(RTM_GETADDR);
  message.extra<ifaddrmsg>();
  const auto dump = route.dump(message.header(), "list of addresses");
  if (!dump) return dump.error();
  std::vector<Cidr> out;
  for (const auto& bytes : *dump) {
    const auto* h = reinterpret_cast<const nlmsghdr*>(bytes.data());
    const auto* ifa = static_cast<const ifaddrmsg*>(mnl_nlmsg_get_payload(h));
    if (static_cast<int>(ifa->ifa_index) != index) continue;
    const nlattr* a = find_attribute(h, sizeof(ifaddrmsg), IFA_LOCAL);
    if (!a) a = find_attribute(h, sizeof(ifaddrmsg), IFA_ADDRESS);
    const std::size_t size = ifa->ifa_family == AF_INET ? 4 : 16;
    if (!a || mnl_attr_get_payload_len(a) != size) continue;
    out.push_back({make_address(ifa->ifa_family, mnl_attr_get_payload(a)), ifa->ifa_prefixlen});
  }
  return out;
}

Status configure_link(Netlink& route, const Slot& slot, int index) {
  std::string errors;
  const auto note = [&](const Status& s) {
    if (!s) errors += (errors.empty() ? "" : "; ") + s.error().message;
  };
  for (const std::string& address : slot.addresses) {
    if (const auto cidr = parse_cidr(address)) note(add_address(route, *cidr, index, address));
  }
  for (const Route& r : slot.routes) note(add_route(route, r, index));
  if (errors.empty()) return {};
  return Error{Code::kInternal, fmt::format("slot {}: {}", slot.name, errors)};
}

Status add_soft_roce(const std::string& netdev) {
  auto rdma = Netlink::open(NETLINK_RDMA);
  if (!rdma) return rdma.error();
  NlMessage message(RDMA_NL_GET_TYPE(RDMA_NL_NLDEV, RDMA_NLDEV_CMD_NEWLINK));
  message.put_text(RDMA_NLDEV_ATTR_DEV_NAME, "rxe_" + netdev);
  message.put_text(RDMA_NLDEV_ATTR_LINK_TYPE, "rxe");
  message.put_text(RDMA_NLDEV_ATTR_NDEV_NAME, netdev);
  const int error = rdma->ask(message.header());
  if (error == 0) return {};
  // EEXIST: the interface has one; ENFILE: another device has that name
  // (rxe_newlink and assign_name in Linux's drivers/infiniband).
  if ((error == EEXIST || error == ENFILE) && !rdma_port_of(netdev).device.empty()) return {};
  if (error == ENFILE)
    return Error{Code::kPrecondition,
                 fmt::format("soft-RoCE on {}: another RDMA device has the name rxe_{}; delete it "
                             "(rdma link delete rxe_{})",
                             netdev, netdev, netdev)};
  return Error{Code::kInternal,
               fmt::format("soft-RoCE on {}: {}; are rdma_rxe and crc32_generic there?", netdev,
                           std::strerror(error))};
}

}  // namespace symvirt::guest
