// Hypervisor over libvirt.
//
// Every libvirt call can hang (a stuck QEMU monitor, a stopped libvirtd), so each runs on a thread
// of its own and the caller leaves at its deadline. A connection on which a call hangs for long is
// abandoned, never closed under the call; so is one that broke (libvirtd restarted). The next call
// opens a new one. Events arrive on the thread of libvirt's default event loop.
#pragma once

#include <libvirt/libvirt.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>
#include <thread>

#include "node-helper/host/config.h"
#include "node-helper/host/detached_calls.h"
#include "node-helper/host/hypervisor.h"

namespace symvirt::host {

class Libvirt : public Hypervisor {
 public:
  explicit Libvirt(const NodedConfig& config);
  ~Libvirt() override;

  void subscribe(HypervisorEvents events) override;
  Result<std::vector<std::string>> list(Deadline deadline) override;
  Result<VmLook> look(const std::string& vm, Deadline deadline) override;
  Status create(const std::string& xml, Deadline deadline) override;
  Status shutdown(const std::string& vm, Deadline deadline) override;
  Status destroy(const std::string& vm, Deadline deadline) override;
  Status suspend(const std::string& vm, Deadline deadline) override;
  Status resume(const std::string& vm, Deadline deadline) override;
  Status attach(const std::string& vm, const std::string& xml, Deadline deadline) override;
  Status ask_detach(const std::string& vm, const std::string& alias, Deadline deadline) override;
  Result<MigrateStats> migrate(
      const std::string& vm, const MigrateArgs& args, Deadline deadline,
      const std::function<void(const MigrateProgress&)>& progress) override;
  Status abort_migration(const std::string& vm, Deadline deadline) override;
  Status pin(const std::string& vm, const Pinning& pinning, Deadline deadline) override;
  Status remember(const std::string& vm, const LiveDomain& domain, Deadline deadline) override;
  Result<std::unique_ptr<ByteChannel>> open_channel(const std::string& vm, const std::string& port,
                                                    std::function<void(std::string_view)> on_data,
                                                    std::function<void()> on_close,
                                                    Deadline deadline) override;

  // Shared with the threads of calls, which may outlive this object.
  struct Shared;
  struct Connection;
  using ConnectionPtr = std::shared_ptr<Connection>;

 private:
  template <typename T>
  Result<T> call(const std::string& what, const std::string& vm, Deadline deadline,
                 std::function<Result<T>(virConnectPtr)> work, bool may_be_long = false);
  Status domain_call(const std::string& what, const std::string& vm, Deadline deadline,
                     std::function<int(virDomainPtr)> work);
  std::optional<MigrateProgress> job_progress(const std::string& vm);

  NodedConfig config_;
  std::shared_ptr<Shared> shared_;
  DetachedCalls detached_{64, 16};
  std::atomic<bool> stopping_{false};
  int wake_timer_ = -1;
  std::thread event_thread_;
};

// The error libvirt left for this thread: "what: libvirt's message".
Error libvirt_error(const std::string& what);

}  // namespace symvirt::host
