// Performs the actions of a transaction: turns (transaction, action) into calls on hypervisor,
// Slurm and fence and their answers into one event. Holds no state of the transaction; what it
// remembers (launcher jobs being waited for) can be lost at any time.
//
// Threads: everything on the engine's thread, except that Slurm calls run where `slurm_post` puts
// them. Events come back through `emit`, from any thread.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "spank-symvirt/coordinator/calls.h"
#include "spank-symvirt/coordinator/config.h"
#include "spank-symvirt/coordinator/interfaces.h"
#include "spank-symvirt/coordinator/release.h"
#include "spank-symvirt/coordinator/slurm_api.h"
#include "spank-symvirt/coordinator/transaction.h"

namespace symvirt {

class Executor {
 public:
  using Emit = std::function<void(Event)>;
  using Post = std::function<void(std::function<void()>)>;
  using OnProgress =
      std::function<void(std::int64_t tx, const std::string& vm, const nlohmann::json&)>;

  struct Parts {
    Hypervisor* hypervisor = nullptr;
    SlurmApi* slurm = nullptr;
    Clock* clock = nullptr;
    Fence* fence = nullptr;
    const Config* config = nullptr;
    Post slurm_post;  // runs a closure that may block on Slurm; one after the other, in order
    Emit emit;
    OnProgress on_progress;
  };

  explicit Executor(Parts parts);
  ~Executor();

  void start(const Transaction& tx, const Action& action, std::int64_t generation);
  // What squeue shows now; ends the waits for launcher jobs.
  void on_jobs(const std::vector<JobInfo>& jobs);
  // Ranks stay at rest while somebody says so: called now and then for transactions that hold some.
  void renew_leases(const Transaction& tx, std::int64_t generation);
  // The waits of a transaction that has left the phase are forgotten.
  void forget_waits(std::int64_t tx);

 private:
  struct Impl;
  void acquire(const Context& c, const Event& reply);
  void migrate(const Context& c, const Event& reply);
  void fence(std::int64_t tx, const std::string& host, const Event& reply);
  void locate(const Context& c, const Event& reply);
  void nudge(const Context& c);
  void release(const Context& c, const Event& reply);
  void work_out_limits(const Transaction& tx, std::vector<std::uint32_t> jobs, const Event& reply);
  static void give_back(Impl& impl, std::size_t next, const Event& reply,
                        std::shared_ptr<const ReleaseWork> work,
                        const std::vector<TimeLimit>& limits);
  static void finish_release(Impl& impl, SlurmApi& slurm, const Event& reply,
                             const ReleaseWork& work, const std::vector<TimeLimit>& limits);

  std::shared_ptr<Impl> impl_;
};

}  // namespace symvirt
