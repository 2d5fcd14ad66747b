// Who gets a connection when more want one than there are. What costs nothing, a connection, must
// not keep out those who have a credential:
//
//     unknown    nobody yet: has sent no whole frame with a good credential
//     ordinary   somebody with a credential who may only read
//     trusted    those whose calls the daemon is there for
//
// Each kind has its own places, so that no number of one keeps out another. At the limit a newcomer
// takes the place of the unknown connection that has been silent for longest: who means it sends at
// once. Addresses from which a trusted one has come are spared as long as there are others.
// Threads: the owner's lock.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>

namespace symvirt {

class ConnectionRoom {
 public:
  using Id = std::uint64_t;  // grows with every connection
  enum class Standing { kUnknown, kOrdinary, kTrusted };
  struct Limits {
    std::size_t unknown = 128, unknown_per_address = 32;
    std::size_t ordinary = 256, ordinary_per_address = 64;
    std::size_t trusted = 512;
    std::size_t all() const { return unknown + ordinary + trusted; }
  };
  struct Admission {
    bool admitted = false;
    std::optional<Id> evicted;  // has lost its place: to be closed
  };

  explicit ConnectionRoom(Limits limits) : limits_(limits) {}

  Admission admit(Id id, std::uint32_t address);
  // The longest silent of all strangers, when none can be admitted for want of something else.
  std::optional<Id> evict();
  // A whole frame has come: it is not evicted while that is looked at, which takes munged.
  void heard(Id id);
  // Never down: a connection may carry several users' calls. False: no place of that kind.
  bool promote(Id id, Standing standing);
  void leave(Id id);
  bool is_in(Id id) const { return entries_.contains(id); }

 private:
  struct Entry {
    std::uint32_t address;
    Standing standing;
    bool heard;
  };
  std::size_t count(Standing standing, const std::uint32_t* address) const;
  std::optional<Id> longest_silent(const std::uint32_t* address) const;

  const Limits limits_;
  std::map<Id, Entry> entries_;  // oldest first
  std::set<std::uint32_t> trusted_addresses_;
};

}  // namespace symvirt
