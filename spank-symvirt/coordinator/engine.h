// Runs transactions: journals every event, applies it, starts what the state asks for.
//
//     event -> journal.append -> apply -> next_actions -> executor -> event
//
// Recovery is the same loop without its last step: replay the journal, then do what the states ask
// for. Every action is safe to perform again, so nothing has to be known about what was under way.
//
// Threads: all calls from the engine's thread, except post(), which may come from any.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>

#include "spank-symvirt/coordinator/executor.h"
#include "spank-symvirt/coordinator/interfaces.h"
#include "spank-symvirt/coordinator/transaction.h"

namespace symvirt {

// What the coordinator knows of a VM: a fold over the transactions that ended.
struct VmRecord {
  std::string vm;
  std::string vm_class;
  std::string host;  // empty: off
  std::uint32_t launcher_job = 0;
  std::int64_t since_ns = 0;
  bool up() const { return !host.empty(); }
};

class Engine {
 public:
  struct Parts {
    Journal* journal = nullptr;
    Clock* clock = nullptr;
    // What performs actions; the Executor in the daemon.
    std::function<void(const Transaction&, const Action&, std::int64_t generation)> start;
    std::function<void(std::int64_t tx)> forget;
    std::function<void(const Transaction&, std::int64_t generation)> renew;
    // After every applied event; for event streams, metrics and logs. May be empty.
    std::function<void(const Event&, const Transaction&)> observe;
    // Wakes the engine's thread; called by post() from any thread. May be empty.
    std::function<void()> wake;
  };

  explicit Engine(Parts parts);

  // Reads the journal and takes the next generation. Once, before anything else.
  Status recover();

  // Journals the beginning of a transaction. Its id is given here. kPrecondition when one of its
  // VMs is in another one; kInternal when the journal failed (then the daemon must stop).
  Result<std::int64_t> begin(Transaction tx);
  Status cancel(std::int64_t tx);

  void post(Event event);
  // Applies what was posted, starts what is due. An error is the journal's: the daemon must stop.
  Status turn();
  // When turn() has something to do without an event; INT64_MAX: never.
  std::int64_t next_wakeup_ns() const;

  std::int64_t generation() const { return generation_; }
  const std::map<std::int64_t, Transaction>& transactions() const { return transactions_; }
  const std::map<std::string, VmRecord>& vms() const { return vms_; }
  std::size_t actions_in_flight() const { return in_flight_.size(); }
  const Transaction* live_transaction_of(const std::string& vm) const;
  // A VM found dead by other means (it is on no host).
  Status forget_vm(const std::string& vm, const std::string& why);

 private:
  Status commit(const Event& event);
  void fold_end(const Transaction& tx);
  void start_due(const Transaction& tx, std::int64_t now);
  void forget_actions(std::int64_t tx);
  void drop_old();

  Parts p_;
  std::int64_t generation_ = 0;
  std::int64_t last_id_ = 0;
  std::map<std::int64_t, std::int64_t> renewed_ns_;  // when, of each live transaction
  std::map<std::int64_t, Transaction> transactions_;
  std::set<std::int64_t> live_;
  std::map<std::string, VmRecord> vms_;
  std::set<std::string> in_flight_;  // keys of actions started and not answered

  std::mutex mutex_;
  std::deque<Event> posted_;
};

}  // namespace symvirt
