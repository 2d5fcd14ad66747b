// What the processes of a job tell each other in the rounds of a quiesce and a resume: one text a
// process and round.
//
// Lines of fields separated by single blanks, numbers in hex. Read with bounds: the text comes from
// another process.
//
//   V1 STAGE OK STAYS                the stage the process is in, whether it is through with it,
//   and
//                                    whether its device stays where it is
//   P VLID RLID MTU                  a port: as the application knows it, as it is now
//   G VGID RGID                      one of its GIDs
//   Q TYPE VQPN RQPN FLAGS SENT RECEIVED DLID DGID|- DQPN
//                                    a queue pair on it, and whom it talks to
//   K VRKEY RRKEY                    a memory key
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/result.h"
#include "pmix-hooks/ranks/verbs/verbs_api.h"

namespace symvirt::hooks::verbs {

using Gid = std::array<std::uint8_t, 16>;

Gid to_gid(const union ibv_gid& gid);
union ibv_gid from_gid(const Gid& gid);

// Where a queue pair is: what an address vector says.
struct Address {
  bool has_gid = false;
  Gid gid{};
  std::uint16_t lid = 0;

  static Address of(const ibv_ah_attr& attr);
  static Address by_gid(const Gid& gid) { return {true, gid, 0}; }
  static Address by_lid(std::uint16_t lid) { return {false, {}, lid}; }
  auto operator<=>(const Address&) const = default;
};

enum QpFlags : std::uint32_t {
  kQpRebuild = 1,      // the real one is new, or will be reset
  kQpDrained = 2,      // nothing of it is on its way
  kQpConnected = 4,    // RC or UC, and knows its peer
  kQpStuck = 8,        // sends wait for a receiver that is not ready
  kQpNoReceives = 16,  // none is left at the device, and none will be posted: `received` is final
  kQpTakenBack = 32,   // stopped by its own process, for that reason or because the peer is stuck
};

struct QpStatement {
  std::uint32_t type = 0;
  std::uint32_t virtual_number = 0;
  std::uint32_t real_number = 0;
  std::uint32_t flags = 0;
  std::uint64_t sent = 0;      // done ones that consumed a receive of the peer
  std::uint64_t received = 0;  // receives consumed
  Address peer;
  std::uint32_t peer_number = 0;
  bool operator==(const QpStatement&) const = default;
};

struct PortStatement {
  std::uint16_t virtual_lid = 0;
  std::uint16_t real_lid = 0;
  std::uint32_t mtu = 0;
  std::vector<std::pair<Gid, Gid>> gids;  // virtual, real
  std::vector<QpStatement> qps;
  bool operator==(const PortStatement&) const = default;
};

struct Statement {
  std::uint32_t stage = 0;
  bool ok = false;
  bool stays = false;
  std::vector<PortStatement> ports;
  std::vector<std::pair<std::uint32_t, std::uint32_t>> keys;  // virtual, real
  bool operator==(const Statement&) const = default;
};

std::string encode(const Statement& statement);
Result<Statement> parse_statement(std::string_view text);

}  // namespace symvirt::hooks::verbs
