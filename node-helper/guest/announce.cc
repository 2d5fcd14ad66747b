// Telling the link where an address is now. After a move the MAC may be another one, or the same
// one behind another switch port; until the switch and the peers have learnt it, their packets go
// to the old place.
#include <arpa/inet.h>
#include <fmt/format.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if_arp.h>
#include <netinet/icmp6.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "common/log.h"
#include "common/unique_fd.h"
#include "node-helper/guest/link.h"

namespace symvirt::guest {
namespace {

struct [[gnu::packed]] ArpFrame {
  ethhdr ether;
  std::uint16_t hardware, protocol;
  std::uint8_t hardware_size, protocol_size;
  std::uint16_t operation;
  std::uint8_t sender_mac[6], sender_ip[4], target_mac[6], target_ip[4];
};

bool read_mac(const std::string& text, std::uint8_t (&mac)[6]) {
  unsigned b[6];
  if (text.size() != 17 ||
      std::sscanf(text.c_str(), "%x:%x:%x:%x:%x:%x", b, b + 1, b + 2, b + 3, b + 4, b + 5) != 6) {
    return false;
  }
  for (int i = 0; i < 6; ++i) mac[i] = static_cast<std::uint8_t>(b[i]);
  return true;
}

// Both forms of RFC 5227: some peers update their table from requests only, some from replies only.
int send_arp(const Link& link, const std::uint8_t (&mac)[6], const Address& address) {
  const UniqueFd fd(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return errno;
  sockaddr_ll to{};
  to.sll_family = AF_PACKET;
  to.sll_ifindex = link.index;
  for (const std::uint16_t operation : {ARPOP_REQUEST, ARPOP_REPLY}) {
    ArpFrame frame{};
    std::memset(frame.ether.h_dest, 0xff, sizeof frame.ether.h_dest);
    std::memcpy(frame.ether.h_source, mac, sizeof mac);
    frame.ether.h_proto = htons(ETH_P_ARP);
    frame.hardware = htons(ARPHRD_ETHER);
    frame.protocol = htons(ETH_P_IP);
    frame.hardware_size = 6;
    frame.protocol_size = 4;
    frame.operation = htons(operation);
    std::memcpy(frame.sender_mac, mac, sizeof mac);
    std::memcpy(frame.target_mac, mac, sizeof mac);
    std::memcpy(frame.sender_ip, address.bytes.data(), 4);
    std::memcpy(frame.target_ip, address.bytes.data(), 4);
    if (::sendto(fd.get(), &frame, sizeof frame, 0, reinterpret_cast<sockaddr*>(&to), sizeof to) <
        0) {
      return errno;
    }
  }
  return 0;
}

// RFC 4861 7.2.6: unsolicited, override, with the target's link-layer address, to all nodes.
int send_neighbour(const Link& link, const std::uint8_t (&mac)[6], const Address& address) {
  const UniqueFd fd(::socket(AF_INET6, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_ICMPV6));
  if (!fd) return errno;
  const int hops = 255;
  setsockopt(fd.get(), IPPROTO_IPV6, IPV6_MULTICAST_HOPS, &hops, sizeof hops);
  setsockopt(fd.get(), IPPROTO_IPV6, IPV6_MULTICAST_IF, &link.index, sizeof link.index);
  sockaddr_in6 from{}, to{};
  from.sin6_family = to.sin6_family = AF_INET6;
  std::memcpy(&from.sin6_addr, address.bytes.data(), 16);
  if (::bind(fd.get(), reinterpret_cast<sockaddr*>(&from), sizeof from) != 0) return errno;
  inet_pton(AF_INET6, "ff02::1", &to.sin6_addr);
  to.sin6_scope_id = static_cast<std::uint32_t>(link.index);
  struct [[gnu::packed]] {
    nd_neighbor_advert advert;
    std::uint8_t option, length, mac[6];
  } packet{};
  packet.advert.nd_na_type = ND_NEIGHBOR_ADVERT;
  packet.advert.nd_na_flags_reserved = ND_NA_FLAG_OVERRIDE;
  std::memcpy(&packet.advert.nd_na_target, address.bytes.data(), 16);
  packet.option = ND_OPT_TARGET_LINKADDR;
  packet.length = 1;
  std::memcpy(packet.mac, mac, sizeof mac);
  const ssize_t n =
      ::sendto(fd.get(), &packet, sizeof packet, 0, reinterpret_cast<sockaddr*>(&to), sizeof to);
  return n < 0 ? errno : 0;
}

}  // namespace

void announce(const Link& link, const std::vector<Cidr>& addresses) {
  std::uint8_t mac[6];
  if (!read_mac(link.mac, mac)) return;  // not Ethernet: IPoIB resolves paths anew by itself
  for (const Cidr& cidr : addresses) {
    // Link-local ones are tentative for another second, and nobody connects to them.
    if (cidr.address.bytes[0] == 0xfe && cidr.address.family == AF_INET6) continue;
    const int error = cidr.address.family == AF_INET ? send_arp(link, mac, cidr.address)
                                                     : send_neighbour(link, mac, cidr.address);
    if (error != 0) {
      log_warning(fmt::format("{}: announcing {}: {}", link.name, to_text(cidr.address),
                              std::strerror(error)));
    }
  }
}

}  // namespace symvirt::guest
