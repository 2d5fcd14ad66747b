// Inside verbs_stress: one queue pair with its memory, and the rank it belongs to.
#pragma once

#include <infiniband/verbs.h>

#include <deque>
#include <mutex>
#include <thread>

#include "tests/verbs/stress.h"
#include "tests/verbs/stress_plan.h"

namespace symvirt::verbs_stress {

inline constexpr std::uint32_t kGrh = 40;
inline constexpr std::uint32_t kReadArea = 16384;
inline constexpr std::uint32_t kQkey = 0x11111111;
inline constexpr std::uint32_t kMtuBytes = 1024;
// In a wr_id: a receive, and one of the SRQ. The rest is its slot.
inline constexpr std::uint64_t kReceive = 1ull << 63;
inline constexpr std::uint64_t kShared = 1ull << 62;

// What the peer has to know of a link. Travels as it lies in memory.
struct LinkInfo {
  std::uint32_t qpn = 0;
  std::uint32_t psn = 0;
  std::uint32_t rkey = 0;
  std::uint64_t writes = 0;  // window slots of max_bytes
  std::uint64_t reads = 0;   // kReadArea bytes of pattern
  std::uint64_t word = 0;
};

struct PortInfo {
  ibv_gid gid{};
  std::uint16_t lid = 0;
};

enum class Op : std::uint8_t { kMessage, kAck, kRead, kFetchAdd, kCompareSwap };

// One work request that was posted, until its completion has been seen.
struct Posted {
  Op op = Op::kMessage;
  bool signalled = false;
  std::uint32_t bytes = 0;
  std::uint32_t offset = 0;    // of a read
  std::uint64_t expected = 0;  // of an atomic
};

class Rank;

class Link {
 public:
  Link(Rank& rank, Service service, int peer, int index);
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  bool create(ibv_cq* send_cq, ibv_cq* recv_cq, ibv_srq* srq);
  bool connect(const LinkInfo& peer, const PortInfo& port);
  LinkInfo info() const;
  void destroy();

  // The posting thread. True: something was posted.
  bool post_some();

  // The polling thread.
  void on_send_done(const ibv_wc& wc);
  void on_receive(const ibv_wc& wc, std::uint8_t* data, std::uint32_t slot);
  void post_receives_that_wait();
  std::uint64_t received() const { return received_.load(std::memory_order_relaxed); }

  // Anybody. Sealed: all messages are posted. Settled, once all that will come has come: they are
  // acknowledged, and no work is outstanding.
  bool sealed() const { return sealed_.load(std::memory_order_acquire); }
  bool settled() const { return settled_at_.load(std::memory_order_acquire) == received(); }
  std::uint64_t sent() const { return next_; }
  std::uint64_t atomics() const { return atomics_; }
  std::string name() const;
  std::string state() const;
  std::uint64_t word() const { return __atomic_load_n(word_, __ATOMIC_SEQ_CST); }
  Service service() const { return service_; }
  int peer() const { return peer_; }
  int index() const { return index_; }
  ibv_qp* qp() const { return qp_; }

 private:
  bool post_message();
  bool post_one_sided();
  bool post_ack(bool signalled);
  bool post_sealed();
  bool nothing_left_to_send() const;
  bool post(ibv_send_wr* first, int count);
  std::uint32_t sges(ibv_sge* list, std::uint8_t* from, std::uint32_t bytes);
  void remember(ibv_send_wr& wr, const Posted& posted, bool signalled);
  std::uint32_t room() const;
  std::uint64_t unacknowledged();
  std::uint8_t* send_slot(std::uint64_t work) { return memory_.get() + work % depth_ * max_; }
  std::uint8_t* write_slot(std::uint64_t number) { return writes_ + number % window_ * max_; }
  bool post_receive(std::uint32_t slot);
  void check_message(std::uint64_t number, const ibv_wc& wc, const std::uint8_t* data);
  bool reliable() const { return service_ == Service::kRc; }

  Rank& rank_;
  const Service service_;
  const int peer_;
  const int index_;
  const std::uint32_t depth_;
  const std::uint32_t window_;
  const std::uint32_t max_;
  std::uint64_t out_ = 0;  // streams: names of the two directions
  std::uint64_t in_ = 0;
  ibv_qp* qp_ = nullptr;
  bool shared_ = false;
  ibv_mr* mr_ = nullptr;
  ibv_ah* ah_ = nullptr;
  std::uint32_t psn_ = 0;
  LinkInfo remote_;
  std::unique_ptr<std::uint8_t[]> memory_;
  std::uint8_t* writes_ = nullptr;
  std::uint8_t* reads_ = nullptr;
  std::uint8_t* receives_ = nullptr;
  std::uint64_t* word_ = nullptr;
  std::uint32_t receive_bytes_ = 0;
  std::uint32_t receive_count_ = 0;

  // Posting thread; atomic because others may look.
  std::atomic<std::uint64_t> next_{0};  // message
  std::atomic<std::uint64_t> work_{0};  // work request
  std::atomic<std::uint64_t> atomics_{0};
  std::atomic<bool> sealed_{false};
  std::atomic<std::uint64_t> settled_at_{~0ull};
  Random random_;
  std::uint32_t unsignalled_ = 0;
  std::uint64_t acked_to_peer_ = 0;
  std::uint64_t given_up_ = 0;  // unreliable: counted as acknowledged after a time
  std::uint64_t stalled_at_ = 0;
  std::int64_t stalled_since_ = 0;
  std::int64_t acked_at_ = 0;
  std::vector<Posted> posted_;  // ring of depth_; read by the polling thread after completion

  // Polling thread.
  std::uint64_t done_ = 0;       // work requests whose completion was seen or implied
  std::uint64_t expected_ = 0;   // next message
  std::uint32_t next_slot_ = 0;  // own receive queue: they complete in the order of posting
  std::deque<std::uint32_t> unposted_;
  Random poll_random_;

  // Between the two.
  std::atomic<std::uint64_t> completed_{0};
  std::atomic<std::uint64_t> acknowledged_{0};
  std::atomic<std::uint64_t> received_{0};
};

}  // namespace symvirt::verbs_stress
