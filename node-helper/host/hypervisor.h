// What noded needs of a hypervisor: libvirt in life (libvirt.h), a double in unit tests.
//
// Threads: all calls from any thread. Callbacks come on a thread of the implementation and must
// only enqueue. Every call is over at its deadline; kDeadline and kUnavailable mean that nothing is
// known of its effect.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/deadline.h"
#include "common/result.h"
#include "node-helper/host/domain_xml.h"

namespace symvirt::host {

enum class VmState {
  kAbsent,
  kIncoming,  // here only because a migration to this host has begun: not a running copy
  kRunning,
  kPaused,
  kShutoff,
};

const char* state_name(VmState state);

struct VmLook {
  VmState state = VmState::kAbsent;
  bool migrating = false;  // to another host
  LiveDomain domain;       // as libvirt shows it now; empty when absent
};

enum class VmEnd { kMigrated, kSaved, kStopped };  // why a domain is gone

struct HypervisorEvents {
  std::function<void(const std::string& vm, const std::string& alias)> device_removed;
  std::function<void(const std::string& vm, const std::string& alias)> removal_failed;
  std::function<void(const std::string& vm)> changed;  // started, resumed, suspended
  std::function<void(const std::string& vm, VmEnd end)> ended;
};

struct MigrateArgs {
  std::string to;  // host name
  std::int64_t max_downtime_ms = 0;
};

struct MigrateProgress {
  std::int64_t done_bytes = 0, total_bytes = 0, remaining_bytes = 0, rate_bytes_s = 0;
};

struct MigrateStats {
  double total_s = 0;
  std::int64_t downtime_ms = -1;  // -1: not known
  std::int64_t transferred_bytes = 0;
};

// A byte stream to a virtio-serial port. Destroying it closes it; no callback begins after that.
class ByteChannel {
 public:
  virtual ~ByteChannel() = default;
  // Queues; never blocks. What nobody reads is dropped at some point: whole calls of send().
  virtual void send(const std::string& bytes) = 0;
};

class Hypervisor {
 public:
  virtual ~Hypervisor() = default;
  virtual void subscribe(HypervisorEvents events) = 0;  // once, before other calls
  virtual Result<std::vector<std::string>> list(Deadline deadline) = 0;
  // Absent is not an error.
  virtual Result<VmLook> look(const std::string& vm, Deadline deadline) = 0;
  virtual Status create(const std::string& xml, Deadline deadline) = 0;
  virtual Status shutdown(const std::string& vm, Deadline deadline) = 0;  // asks the guest
  virtual Status destroy(const std::string& vm, Deadline deadline) = 0;
  virtual Status suspend(const std::string& vm, Deadline deadline) = 0;
  virtual Status resume(const std::string& vm, Deadline deadline) = 0;
  virtual Status attach(const std::string& vm, const std::string& xml, Deadline deadline) = 0;
  // Asks only: HypervisorEvents::device_removed, or look(), say that it is gone.
  virtual Status ask_detach(const std::string& vm, const std::string& alias, Deadline deadline) = 0;
  // Over when the VM runs on the other host, or not at all. Aborted at the deadline. `progress`
  // comes on the calling thread; its false has no effect (the caller being gone ends nothing).
  virtual Result<MigrateStats> migrate(
      const std::string& vm, const MigrateArgs& args, Deadline deadline,
      const std::function<void(const MigrateProgress&)>& progress) = 0;
  virtual Status abort_migration(const std::string& vm, Deadline deadline) = 0;
  virtual Status pin(const std::string& vm, const Pinning& pinning, Deadline deadline) = 0;
  // Overlays and models of `domain` become the VM's: they follow it when it moves.
  virtual Status remember(const std::string& vm, const LiveDomain& domain, Deadline deadline) = 0;
  virtual Result<std::unique_ptr<ByteChannel>> open_channel(
      const std::string& vm, const std::string& port, std::function<void(std::string_view)> on_data,
      std::function<void()> on_close, Deadline deadline) = 0;
};

}  // namespace symvirt::host
