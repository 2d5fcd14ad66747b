// symvirtd's inside: loop, engine, Slurm's poller, the hosts' inventory, the API.
//
//     loop thread     engine, decisions, everything that is state
//     slurm thread    every call to libslurm, and the poll
//     rpc pool        calls to symvirt-noded's; answers are posted to the loop
//     rpc server      a thread a caller; asks the loop
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <thread>

#include "node-helper/protocol/rpc.h"
#include "spank-symvirt/coordinator/config.h"
#include "spank-symvirt/coordinator/engine.h"
#include "spank-symvirt/coordinator/event_readers.h"
#include "spank-symvirt/coordinator/executor.h"
#include "spank-symvirt/coordinator/loop.h"
#include "spank-symvirt/coordinator/resume.h"
#include "spank-symvirt/coordinator/slurm_api.h"
#include "spank-symvirt/coordinator/views.h"
#include "spank-symvirt/coordinator/watch.h"

namespace symvirt {

class Daemon {
 public:
  struct Parts {
    Config config;
    std::string host;  // own short name
    std::unique_ptr<Journal> journal;
    std::unique_ptr<SlurmApi> slurm;
    std::unique_ptr<Credentials> credentials;
  };
  explicit Daemon(Parts parts);
  ~Daemon();

  // Until stop(). The error is the journal's or the listener's.
  Status run(const std::function<void()>& ready);
  void stop() { loop_.stop(); }

 private:
  struct SlurmThread;
  class Hosts;
  class CommandFence;
  class SystemClock;

  struct Snapshot {
    std::vector<NodeInfo> nodes;
    std::vector<JobInfo> jobs;
  };

  void add_methods();
  bool is_admin(uid_t uid) const;
  View view() const;
  void on_snapshot(Snapshot snapshot);
  void carry_out(const Decisions& decisions);
  void tell_slurm(std::function<Status(SlurmApi&, Deadline)> what);  // a failure is logged
  void give_up_lost(const Decision& d);
  bool launcher_is_lost(const Decision& d);
  void begin_wanted_boots();
  void ask_inventory();
  void observe(const Event& event, const Transaction& tx);
  void publish(nlohmann::json line);  // to whoever follows the events
  void fail(const Error& error);

  // The API; on the loop's thread.
  Result<nlohmann::json> api_status();
  Result<nlohmann::json> api_list(bool all);
  Result<nlohmann::json> api_show(std::int64_t id);
  Result<nlohmann::json> api_evacuate(const std::string& host);
  Result<nlohmann::json> api_migrate(const std::string& vm, const std::string& to);
  Result<nlohmann::json> api_power(const std::string& nodes, bool on);
  Result<nlohmann::json> api_devices();
  Result<nlohmann::json> api_doctor();
  // On the caller's thread.
  Result<nlohmann::json> api_events(const RpcRequest& request);
  Result<nlohmann::json> stream_events(const RpcRequest& request);

  Parts p_;
  Loop loop_;
  std::unique_ptr<SystemClock> clock_;
  std::unique_ptr<RpcPool> pool_;
  std::unique_ptr<Hosts> hypervisor_;
  std::unique_ptr<CommandFence> fence_;
  std::unique_ptr<SlurmThread> slurm_;
  std::unique_ptr<Executor> executor_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<RpcServer> server_;

  Snapshot snapshot_;
  bool slurm_answers_ = false;
  std::string slurm_error_;
  std::map<std::string, HostSeen> hosts_seen_;
  std::map<std::string, nlohmann::json> host_info_;
  std::map<std::string, std::string> host_errors_;
  std::int64_t next_inventory_ns_ = 0;
  std::map<std::string, std::string> notes_;
  std::map<std::string, int> lost_looks_;
  std::map<std::string, std::int64_t> unheld_since_ns_;  // VM -> when its launcher was missed first
  std::map<std::string, std::int64_t> powered_down_ns_;
  ResumeWishes wanted_up_;
  LiveProgress progress_;
  std::optional<Error> fatal_;

  std::mutex events_mutex_;
  std::condition_variable events_wake_;
  std::deque<nlohmann::json> events_;
  std::int64_t events_begin_ = 1;  // sequence number of events_.front()
  EventReaders event_readers_;
  bool stopping_ = false;
};

}  // namespace symvirt
