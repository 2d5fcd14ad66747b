// A program that uses of libibverbs what MPI libraries use, all at once, and checks every byte and
// the order of every message. Public interface of libibverbs only: it runs over soft-RoCE, with or
// without the layer preloaded (verbs_stress.cc), and in process over the provider double
// (verbs_stress_test.cc).
//
// Ranks are connected all to all, each pair by a number of queue pairs ("links") of all three
// types. Links are served by groups of two threads: one posts sends, the other polls, checks and
// posts receives; half of the groups sleep on a completion channel. Some links share an SRQ. What
// link, message number and direction say (plan_of) is what has to arrive: the receiver knows
// beforehand. On reliable links: exactly once and in order. On unreliable ones: in order, never
// twice, never altered; losses are counted.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace symvirt::verbs_stress {

struct StressOptions {
  std::string device;  // empty: the first one
  int gid_index = 0;
  std::uint64_t seed = 1;
  // Links of each type to each peer.
  int rc = 6;
  int uc = 2;
  int ud = 2;
  int groups = 2;
  std::uint32_t depth = 32;   // of the send queues
  std::uint32_t window = 16;  // messages not yet acknowledged by the peer
  std::uint32_t max_bytes = 4096;
  std::uint64_t messages = 1000;  // of each link; 0: until *stop
  const std::atomic<bool>* stop = nullptr;
  bool churn = true;        // a thread that creates, queries and destroys objects all the time
  bool slow_reader = true;  // receives are now and then posted late: RNR
  const std::atomic<bool>* deaf = nullptr;  // while true, nobody polls: senders find no receives
  int patience_s = 60;              // nothing at all moves for so long: give up, naming what waits
  std::function<void()> on_thread;  // first thing of every thread of the rank
};

struct StressResult {
  std::string error;  // empty: all was as it should be
  std::uint64_t messages = 0;
  std::uint64_t bytes = 0;
  std::uint64_t one_sided = 0;  // reads and atomics
  std::uint64_t lost = 0;       // on unreliable links
  std::uint64_t events = 0;     // of completion channels
  std::uint64_t async_events = 0;
  std::uint64_t churned = 0;
};

// How ranks find each other; not by verbs.
class Wire {
 public:
  Wire() = default;
  Wire(const Wire&) = delete;
  Wire& operator=(const Wire&) = delete;
  virtual ~Wire() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // Everybody's, by rank; also a barrier. Empty: somebody is gone.
  virtual std::vector<std::string> all_gather(const std::string& mine) = 0;
};

StressResult run_stress(const StressOptions& options, Wire& wire);

// What everything together has moved so far, for drivers that want to know that it moves. Relaxed.
std::uint64_t stress_progress();

}  // namespace symvirt::verbs_stress
