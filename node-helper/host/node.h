// The host daemon's methods (docs/protocols.md section 1): what runs here, whose it is, and how it
// comes and goes. Knows libvirt only as a Hypervisor and nothing of Slurm.
//
// Threads: handlers run concurrently on the RPC server's threads and may block until their
// deadline. Operations on one VM come one after the other (vm_lock); reading and aborting do not
// wait for them.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>

#include "node-helper/host/config.h"
#include "node-helper/host/guest_link.h"
#include "node-helper/host/hypervisor.h"
#include "node-helper/host/passthrough.h"
#include "node-helper/host/pci_bus.h"
#include "node-helper/host/store.h"
#include "node-helper/host/timed_gate.h"
#include "node-helper/protocol/operation_log.h"
#include "node-helper/protocol/rpc.h"

namespace symvirt::host {

class Node {
 public:
  // `available_memory`: bytes that could be given to a VM now; `root`: where /sys and /proc are.
  // Tests give their own.
  Node(const NodedConfig& config, Hypervisor& hypervisor, Store& store,
       std::function<std::int64_t()> available_memory = {}, const std::string& root = "");
  ~Node();

  // Compares what is stored with what runs; what runs wins. An unreachable libvirtd is no error: it
  // is asked again later.
  void reconcile();
  void add_methods(RpcServer& server);
  void stop();  // handlers that wait end with kUnavailable; VMs are not touched

  Result<nlohmann::json> handle(const RpcRequest& request);  // by request.method

 private:
  using json = nlohmann::json;
  using Handler = Result<json> (Node::*)(const RpcRequest&, const OperationLog::Progress&);
  struct Method {
    Handler handler;
    bool changes;  // wants gen, and is run once for each op
  };
  static const std::map<std::string, Method>& methods();

  // node.cc
  Result<json> host_info(const RpcRequest&, const OperationLog::Progress&);
  Result<json> vm_info(const RpcRequest&, const OperationLog::Progress&);
  Result<json> guest_call(const RpcRequest&, const OperationLog::Progress&);
  // node_devices.cc
  Result<json> device_reserve(const RpcRequest&, const OperationLog::Progress&);
  Result<json> device_release(const RpcRequest&, const OperationLog::Progress&);
  Result<json> device_detach(const RpcRequest&, const OperationLog::Progress&);
  Result<json> device_attach(const RpcRequest&, const OperationLog::Progress&);
  // node_vms.cc
  Result<json> vm_start(const RpcRequest&, const OperationLog::Progress&);
  Result<json> vm_stop(const RpcRequest&, const OperationLog::Progress&);
  Result<json> vm_suspend(const RpcRequest&, const OperationLog::Progress&);
  Result<json> vm_resume(const RpcRequest&, const OperationLog::Progress&);
  Result<json> vm_migrate(const RpcRequest&, const OperationLog::Progress&);
  Result<json> vm_migrate_abort(const RpcRequest&, const OperationLog::Progress&);
  // node_leases.cc
  Result<json> lease_wait(const RpcRequest&, const OperationLog::Progress&);
  Result<json> lease_open(const RpcRequest&, const OperationLog::Progress&);

  // node_generation.cc
  Status check_generation(const RpcRequest& request, bool changes);
  Status still_current(const json& params, std::int64_t newest) const;
  Status still_current(const RpcRequest& request) const;
  // The VM is this request's until the lock goes; its coordinator is still the newest one.
  Result<std::unique_lock<TimedGate>> hold(const std::string& vm, const RpcRequest& request);
  class OperationHold {
   public:
    OperationHold(Node& node, const std::string& op, const json& params);
    ~OperationHold();
    OperationHold(const OperationHold&) = delete;
    OperationHold& operator=(const OperationHold&) = delete;

   private:
    Node& node_;
    const std::string op_;
    bool counted_ = false;
  };
  json vm_to_json(const std::string& vm, const VmLook& look, const VmRecord& record) const;
  json device_to_json(const DeviceConfig& config, const PassthroughDevice& device) const;
  json devices_to_json(const NodeState& state, const std::map<std::string, VmLook>& looks) const;
  bool is_ours(const VmLook& look, const VmRecord& record) const;
  Result<VmLook> look_here(const std::string& vm,
                           Deadline deadline);  // running or paused, or an error
  std::shared_ptr<TimedGate> vm_lock(const std::string& vm);

  // What the configuration describes, as it is now, by name.
  using Inventory = std::map<std::string, PassthroughDevice>;
  Inventory inventory() const;
  // What reserve does to a record.
  Status assign(NodeState& state, const std::string& vm, const json& slots, bool replace,
                const LiveDomain& domain, const Inventory& inventory) const;
  const DeviceConfig* choose(const std::set<std::string>& taken, const Reservation& wanted,
                             const std::string& guest_model, const Inventory& inventory,
                             std::optional<Error>& why_not) const;
  Status check_device(const DeviceConfig& config, const std::string& slot,
                      const std::string& guest_model, const Inventory& inventory) const;
  void remember_models(const std::string& vm, const VmRecord& record, LiveDomain domain,
                       const Inventory& inventory, Deadline deadline);
  Status wait_detached(const std::string& vm, const std::vector<std::string>& aliases,
                       Deadline deadline, std::chrono::milliseconds ask_again);
  Status attach_slot(const std::string& vm, const Reservation& slot, int index, const VmLook& look,
                     const PassthroughDevice& device, Deadline deadline, bool& attached);
  // "device mlx5_0 of hv1 (slot ib0)", as far as that is on record.
  std::string device_named(const std::string& vm, const std::string& slot) const;
  std::string device_of_alias(const std::string& vm, const std::string& alias) const;
  // node_unplugs.cc
  Status set_unplugs(const std::string& vm, const std::vector<std::string>& aliases);
  void unplug_decided(const std::string& vm, const std::string& alias);
  void watch_unplugs();  // thread
  void settle_unplugs(const std::string& vm);
  Status wait_gone(const std::string& vm, Deadline deadline);
  void remove_overlays(const std::string& vm, const std::vector<std::string>& overlays);
  Status make_overlays(const json& overlays, Deadline deadline, std::vector<std::string>& made);
  json lease_to_json(const Lease& lease) const;
  Status begin_lease(const std::string& vm, const Lease& lease, std::uint64_t& token);
  void end_lease(const std::string& vm, std::uint64_t token, bool forget);

  void on_ended(const std::string& vm, VmEnd end);
  void work();  // thread: what events ask for and must not be done on the event thread

  const NodedConfig config_;
  Hypervisor& hypervisor_;
  Store& store_;
  std::function<std::int64_t()> available_memory_;
  const PciBus bus_;
  GuestLink guests_;
  OperationLog operations_;
  std::atomic<bool> stopping_{false};
  std::atomic<std::uint64_t> next_line_{1};

  // Events, and whoever waits for them.
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::uint64_t changes_ = 0;
  std::set<std::pair<std::string, std::string>> removed_;  // vm, alias
  std::set<std::pair<std::string, std::string>> removal_failed_;
  std::map<std::string, VmEnd> ends_;
  std::set<std::string> stopped_by_us_;
  struct LiveLease {
    std::int64_t job_id = 0;
    std::uint64_t token = 0;
    bool connected = false;
    bool seen = false;  // the VM has been here under this lease
  };
  std::map<std::string, LiveLease> leases_;
  std::uint64_t next_token_ = 1;
  std::map<std::string, std::shared_ptr<TimedGate>> locks_;
  struct AskedFor {
    std::int64_t generation = 0;  // highest of those who wait for it
    int callers = 0;
  };
  std::map<std::string, AskedFor> asked_for_;  // by op
  std::uint64_t unplug_news_ = 0;
  std::deque<std::function<void()>> jobs_;
  std::thread worker_;
  std::thread
      unplug_watcher_;  // giving a device back takes long; the worker has other things to do
};

}  // namespace symvirt::host
