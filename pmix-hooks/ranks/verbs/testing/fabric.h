// RDMA devices in memory, for tests of the verbs layer: what stands behind RealVerbs there.
//
// Faithful where a layer that takes queue pairs down and builds them again can go wrong:
//   * the state machine with the kernel's tables of attributes, EINVAL for what they do not allow;
//   * PSNs: a queue pair that is connected with wrong ones loses work (duplicates are acknowledged
//     and not executed) or dies with RETRY_EXC_ERR, as on the wire;
//   * a send may have been executed at the peer though it is flushed at the sender (its
//     acknowledgement had not come), and may even arrive after the sender was moved to ERR;
//   * RNR retries (7: for ever), flush in ERR in the order of posting, receives of an SRQ excepted;
//   * queue slots are free again when the completion is polled (mlx5), not when the work is done;
//   * QPNs begin at 0x11 with every device and keys with their first index: new ones collide with
//   old;
//   * keys are checked for domain, bounds and access; data moves at execution, not at post;
//   * an unplugged device is told to nobody: query_port says ENODEV, traffic is lost, every destroy
//     succeeds. Who unplugs a device that is held finds it among the violations.
//
// Not modelled: packets (a message arrives whole or not at all), VLANs, partitions, path migration.
//
// A "host" is what one guest sees: get_device_list of verbs(host) shows the devices plugged there.
// Threads: any. With Options::threads each device executes on a thread of its own; otherwise only
// step() and run() do, so that a test decides what happens when.
#pragma once

#include <infiniband/verbs.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "pmix-hooks/ranks/verbs/real_verbs.h"

namespace symvirt::hooks::verbs::testing {

struct DeviceSpec {
  std::string name = "double0";
  std::uint64_t guid = 1;
  std::uint16_t lid = 1;  // 0 on Ethernet: there every path needs a GID
  bool ethernet = true;
  std::vector<ibv_gid> gids;   // empty: one link-local made from guid
  std::uint32_t first_key = 1; /* index of the first memory key */
  bool distinct_rkeys = false;
  bool free_slots_at_poll = true;   // mlx5; false: when the work is done (rxe)
  bool clean_cq_on_destroy = true;  // mlx5: completions of a destroyed queue pair vanish; rxe: stay
  std::uint32_t max_qp_wr = 16384;
  std::uint32_t max_sge = 16;
  std::uint32_t max_inline = 256;
  std::uint8_t max_rd_atom = 16;
  int max_cqe = 1 << 20;
  ibv_mtu mtu = IBV_MTU_1024;
};

// What is open on a device, as `rdma res` would say.
struct Held {
  int contexts = 0;
  int pds = 0;
  int mrs = 0;
  int cqs = 0;
  int channels = 0;
  int srqs = 0;
  int qps = 0;
  int ahs = 0;
  bool nothing() const { return contexts + pds + mrs + cqs + channels + srqs + qps + ahs == 0; }
};

struct Options {
  bool threads = true;
  std::uint64_t seed = 1;
  // Chances out of 100, each time there is a choice.
  int hold_ack = 30;  // an executed send completes only in a later turn
  int late = 50;      // work flushed at the sender was on the wire, and still arrives
  std::chrono::microseconds late_by{500};
};

inline constexpr int kMaxHosts = 8;
inline constexpr std::uint32_t kFirstQpn = 0x11;
inline constexpr std::uint32_t kGrhBytes = 40;

// See Fabric::thread_verbs(). 0 when never called.
void set_thread_host(int host);

ibv_gid gid_from(std::uint64_t prefix, std::uint64_t id);  // both in host order

// One at a time: RealVerbs are plain functions.
class Fabric {
 public:
  explicit Fabric(Options options = {});
  ~Fabric();  // every context should be closed; what is left is freed
  Fabric(const Fabric&) = delete;
  Fabric& operator=(const Fabric&) = delete;

  const RealVerbs& verbs(int host = 0) const;
  // The same with the host that the calling thread named: for a layer whose table of real verbs is
  // the process's, in a test whose threads play several processes.
  const RealVerbs& thread_verbs() const;

  void plug(int host, const DeviceSpec& spec);
  // What still held it (a violation when that is not nothing). The device is gone either way.
  Held unplug(int host, const std::string& name);
  Held held(int host, const std::string& name) const;

  // Also raises PORT_ACTIVE or PORT_ERR. While down, everything sent is lost.
  void set_port(int host, const std::string& name, bool up);
  // An unaffiliated event of that device to every open context.
  void raise(int host, const std::string& name, ibv_event_type type);
  // No send completes while true, though work is executed.
  void hold_acks(bool hold);

  // Without threads: one turn of some device, false when there was nothing to do now (work may be
  // waiting for a timer).
  bool step();
  // Until nothing is left to do, or only work that waits for a timer that is not due within
  // `limit`.
  void run(std::chrono::milliseconds limit = std::chrono::milliseconds(0));

  // Sends executed so far at their destination, of all devices.
  std::uint64_t executed() const;
  // What no correct layer makes happen: an unplug of a held device, a context closed with objects
  // left in it.
  std::vector<std::string> violations() const;

  struct Impl;

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace symvirt::hooks::verbs::testing
