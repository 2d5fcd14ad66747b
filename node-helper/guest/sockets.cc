#include "node-helper/guest/sockets.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <linux/inet_diag.h>
#include <linux/packet_diag.h>
#include <linux/sock_diag.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cstddef>
#include <cstring>

#include "node-helper/guest/netlink.h"

namespace symvirt::guest {
namespace {

// Kernel's numbering (net/tcp_states.h); <netinet/tcp.h> has it too, but clashes with
// <linux/tcp.h>.
enum TcpState {
  kEstablished = 1,
  kSynSent,
  kSynRecv,
  kFinWait1,
  kFinWait2,
  kTimeWait,
  kClose,
  kCloseWait,
  kLastAck,
  kListen,
  kClosing,
  kNewSynRecv
};

constexpr std::uint32_t bit(int state) { return 1u << state; }
constexpr std::uint32_t kConnected = bit(kEstablished) | bit(kSynSent) | bit(kFinWait1) |
                                     bit(kFinWait2) | bit(kCloseWait) | bit(kLastAck) |
                                     bit(kClosing);

InetSocket read_socket(const nlmsghdr* h, const char* kind) {
  const auto* m = static_cast<const inet_diag_msg*>(mnl_nlmsg_get_payload(h));
  InetSocket s;
  s.kind = kind;
  s.state = m->idiag_state;
  s.local = make_address(m->idiag_family, m->id.idiag_src);
  s.remote = make_address(m->idiag_family, m->id.idiag_dst);
  s.local_port = ntohs(m->id.idiag_sport);
  s.remote_port = ntohs(m->id.idiag_dport);
  s.interface = static_cast<int>(m->id.idiag_if);
  s.inode = m->idiag_inode;
  s.send_queue = m->idiag_wqueue;
  const nlattr* info = find_attribute(h, sizeof(inet_diag_msg), INET_DIAG_INFO);
  constexpr std::size_t kNeeded = offsetof(tcp_info, tcpi_unacked) + sizeof(std::uint32_t);
  if (info && mnl_attr_get_payload_len(info) >= kNeeded) {
    const auto* bytes = static_cast<const char*>(mnl_attr_get_payload(info));
    std::memcpy(&s.unacknowledged, bytes + offsetof(tcp_info, tcpi_unacked),
                sizeof s.unacknowledged);
  }
  return s;
}

Result<std::vector<InetSocket>> list(std::uint8_t protocol, std::uint32_t states,
                                     const char* kind) {
  auto diag = Netlink::open(NETLINK_SOCK_DIAG);
  if (!diag) return diag.error();
  std::vector<InetSocket> out;
  for (const int family : {AF_INET, AF_INET6}) {
    NlMessage message(SOCK_DIAG_BY_FAMILY);
    auto* request = message.extra<inet_diag_req_v2>();
    request->sdiag_family = static_cast<std::uint8_t>(family);
    request->sdiag_protocol = protocol;
    request->idiag_states = states;
    if (protocol == IPPROTO_TCP) request->idiag_ext = 1u << (INET_DIAG_INFO - 1);
    const auto dump = diag->dump(message.header(),
                                 fmt::format("list of {} sockets (is {}_diag there?)", kind, kind));
    if (!dump) return dump.error();
    for (const auto& bytes : *dump) {
      const auto* h = reinterpret_cast<const nlmsghdr*>(bytes.data());
      if (bytes.size() >= mnl_nlmsg_size(sizeof(inet_diag_msg)))
        out.push_back(read_socket(h, kind));
    }
  }
  return out;
}

}  // namespace

Result<std::vector<InetSocket>> list_tcp() { return list(IPPROTO_TCP, kConnected, "tcp"); }
Result<std::vector<InetSocket>> list_udp() { return list(IPPROTO_UDP, ~0u, "udp"); }
Result<std::vector<InetSocket>> list_raw() { return list(IPPROTO_RAW, ~0u, "raw"); }

Result<std::vector<PacketSocket>> list_packet() {
  auto diag = Netlink::open(NETLINK_SOCK_DIAG);
  if (!diag) return diag.error();
  NlMessage message(SOCK_DIAG_BY_FAMILY);
  auto* request = message.extra<packet_diag_req>();
  request->sdiag_family = AF_PACKET;
  request->pdiag_show = PACKET_SHOW_INFO;
  const auto dump = diag->dump(message.header(), "list of packet sockets (is packet_diag there?)");
  if (!dump) return dump.error();
  std::vector<PacketSocket> out;
  for (const auto& bytes : *dump) {
    const auto* h = reinterpret_cast<const nlmsghdr*>(bytes.data());
    const auto* m = static_cast<const packet_diag_msg*>(mnl_nlmsg_get_payload(h));
    const nlattr* a = find_attribute(h, sizeof(packet_diag_msg), PACKET_DIAG_INFO);
    if (!a || mnl_attr_get_payload_len(a) < sizeof(packet_diag_info)) continue;
    const auto* info = static_cast<const packet_diag_info*>(mnl_attr_get_payload(a));
    out.push_back({static_cast<int>(info->pdi_index), m->pdiag_ino});
  }
  return out;
}

bool at_rest(const InetSocket& socket) { return socket.unacknowledged == 0; }

std::string describe(const InetSocket& s) {
  std::string text = fmt::format("{} {}:{}->{}:{}", s.kind, to_text(s.local), s.local_port,
                                 to_text(s.remote), s.remote_port);
  if (s.unacknowledged) text += fmt::format(" ({} unacknowledged)", s.unacknowledged);
  return text;
}

}  // namespace symvirt::guest
