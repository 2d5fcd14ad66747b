// Sockets of this network namespace, as sock_diag(7) shows them, and when a TCP connection may lose
// its device.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/result.h"
#include "node-helper/guest/address.h"

namespace symvirt::guest {

struct InetSocket {
  const char* kind = "tcp";  // "tcp", "udp", "raw"
  int state = 0;             // TCP_ESTABLISHED, ...
  Address local, remote;
  std::uint16_t local_port = 0, remote_port = 0;
  int interface = 0;  // it is bound to (SO_BINDTODEVICE); 0: none
  std::uint32_t inode = 0;
  std::uint32_t unacknowledged = 0;  // segments sent and not acknowledged (tcpi_unacked)
  std::uint32_t send_queue = 0;      // bytes not acknowledged, sent or not
};

struct PacketSocket {
  int interface = 0;
  std::uint32_t inode = 0;
};

// Connections, not listeners. needs the kernel's tcp_diag, udp_diag, raw_diag, packet_diag
// (modules, loaded when asked for).
Result<std::vector<InetSocket>> list_tcp();
Result<std::vector<InetSocket>> list_udp();
Result<std::vector<InetSocket>> list_raw();
Result<std::vector<PacketSocket>> list_packet();

// True when the connection loses nothing if the device goes now, but time.
//
// Only segments on the wire count. They have a retransmission timer, which doubles with every try
// while the device is away: the back-off of 1.5 to 3 s is what an unprepared move costs. Data that
// waits unsent behind a receiver without room (a held rank does not read, so its window closes) is
// at rest: no segment is out, no retransmission runs, and the receiver opens the window by itself
// when it reads again. Received but unread data does not matter at all.
bool at_rest(const InetSocket& socket);

std::string describe(
    const InetSocket& socket);  // "tcp 10.78.0.101:41000->10.78.0.102:1024 (3 unacknowledged)"

}  // namespace symvirt::guest
