// A provider whose data path costs next to nothing, for the benchmark of the layer: what a post or
// poll costs more with the layer than without would drown in any other.
//
// Control calls are the double's (fabric.h). Post writes a work request of 64 bytes into a ring, as
// a driver does into a send queue, and is completed with that; poll takes it out. Nothing is moved,
// nobody else hears of it. One thread.
#pragma once

#include <array>
#include <cstdint>

#include "pmix-hooks/ranks/verbs/real_verbs.h"

namespace symvirt::hooks::verbs::bench {

struct alignas(64) NullWork {
  std::uint64_t wr_id;
  std::uint64_t address;
  std::uint64_t remote_address;
  std::uint32_t lkey;
  std::uint32_t length;
  std::uint32_t rkey;
  std::uint32_t remote_number;
  std::uint32_t qp_number;
  std::uint32_t opcode;  // ibv_wc_opcode
};

// One for all devices: who posts polls before the next one posts.
struct NullQueue {
  static constexpr std::uint32_t kPlaces = 256;
  std::array<NullWork, kPlaces> ring;
  std::uint32_t head = 0;
  std::uint32_t tail = 0;
  std::uint32_t armed = 0;
  std::uint32_t consumer = 0;  // number of the queue pair that completes shared receives
  NullWork& last() { return ring[(head - 1) % kPlaces]; }
};
extern NullQueue null_queue;

// The double's calls; the contexts they open have the data path above.
const RealVerbs& null_verbs(const RealVerbs& control);

}  // namespace symvirt::hooks::verbs::bench
