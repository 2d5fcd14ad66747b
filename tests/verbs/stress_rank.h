// Inside verbs_stress: one process's (or, in a test, one set of threads') part.
#pragma once

#include <map>

#include "tests/verbs/stress_link.h"

namespace symvirt::verbs_stress {

inline constexpr std::uint32_t kSrqDepth = 64;

// Two threads, their completion queues and links.
struct Group {
  int index = 0;
  ibv_comp_channel* channel = nullptr;  // null: polls
  ibv_cq* send_cq = nullptr;
  ibv_cq* recv_cq = nullptr;  // may be the same
  std::vector<Link*> links;
  std::map<std::uint32_t, Link*> by_number;
  std::thread poster;
  std::thread poller;
};

class Rank {
 public:
  Rank(const StressOptions& options, Wire& wire);
  ~Rank();
  Rank(const Rank&) = delete;
  Rank& operator=(const Rank&) = delete;

  StressResult run();

  void fail(const std::string& what);  // the first one is kept; all threads end
  bool failed() const { return failed_.load(std::memory_order_relaxed); }
  bool stopping() const {
    return options_.stop != nullptr && options_.stop->load(std::memory_order_relaxed);
  }

  const StressOptions& options() const { return options_; }
  int rank() const { return wire_.rank(); }
  ibv_context* context() const { return context_; }
  ibv_pd* pd() const { return pd_; }
  std::uint8_t gid_index() const { return static_cast<std::uint8_t>(options_.gid_index); }
  bool ethernet() const { return port_.link_layer == IBV_LINK_LAYER_ETHERNET; }

  // The SRQ's buffers: any polling thread.
  std::uint8_t* srq_buffer(std::uint32_t slot) { return srq_memory_.get() + slot * srq_bytes_; }
  void post_srq(std::uint32_t slot);
  void arm_srq();

  std::atomic<std::uint64_t> bytes{0};
  std::atomic<std::uint64_t> messages{0};
  std::atomic<std::uint64_t> one_sided{0};
  std::atomic<std::uint64_t> lost{0};

 private:
  bool open();
  bool create_srq();
  bool create_groups();
  bool create_links();
  bool connect();
  bool settle();
  bool gather_counts();
  void join();
  void close();
  void post_loop(Group& group);
  void poll_loop(Group& group);
  int poll_once(Group& group, ibv_cq* cq);
  void sleep_for_events(Group& group);
  void churn_loop();
  const char* churn_once(Random& random);
  void async_loop();
  bool wait_for_links(bool (*done)(const Link&, std::uint64_t sent), const char* what);

  const StressOptions& options_;
  Wire& wire_;
  ibv_context* context_ = nullptr;
  ibv_pd* pd_ = nullptr;
  ibv_srq* srq_ = nullptr;
  ibv_mr* srq_mr_ = nullptr;
  ibv_port_attr port_{};
  std::unique_ptr<std::uint8_t[]> srq_memory_;
  std::uint32_t srq_bytes_ = 0;
  std::vector<std::unique_ptr<Link>> links_;
  std::vector<std::unique_ptr<Group>> groups_;
  std::vector<PortInfo> ports_;
  std::thread churner_;
  std::thread async_;
  std::vector<std::uint64_t> peer_sent_;  // of each link, in the order of links_
  std::vector<std::uint64_t> peer_atomics_;
  std::atomic<bool> ending_{false};
  std::atomic<bool> failed_{false};
  std::mutex error_lock_;
  StressResult result_;
  std::atomic<std::uint64_t> events_{0};
  std::atomic<std::uint64_t> async_events_{0};
  std::atomic<std::uint64_t> churned_{0};
};

// What all the threads of the process have moved.
extern std::atomic<std::uint64_t> moved;

}  // namespace symvirt::verbs_stress
