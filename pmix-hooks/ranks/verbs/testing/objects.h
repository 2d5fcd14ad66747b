// Inside the provider double: its objects and how they lock. See fabric.h for what it is.
//
// Lock order: Qp::exec, then RecvQueue::lock or Qp::sq_lock, then Cq::lock, then EventQueue::lock.
// Device::mr_lock (shared) is held while data moves, under Qp::exec. Nothing is called with two
// Qp::exec held: a message travels by value.
#pragma once

#include <fcntl.h>
#include <infiniband/verbs.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstddef>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <shared_mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "pmix-hooks/ranks/verbs/testing/fabric.h"

namespace symvirt::hooks::verbs::testing {

using Clock = std::chrono::steady_clock;

struct Device;
struct Context;
struct Cq;
struct Qp;

// Events behind a descriptor that is readable exactly while there are some.
template <typename Event>
class EventQueue {
 public:
  EventQueue() : fd_(eventfd(0, EFD_CLOEXEC)) {
    if (fd_ < 0) std::abort();
  }
  ~EventQueue() { close(fd_); }
  int fd() const { return fd_; }
  void push(const Event& event) {
    const std::lock_guard lock(lock_);
    events_.push_back(event);
    if (events_.size() == 1 && eventfd_write(fd_, 1) != 0) std::abort();
  }
  // Blocks unless the descriptor is O_NONBLOCK; false with errno. `taken` is called before anybody
  // can know that the event is gone from here.
  template <typename Taken>
  bool pop(Event& event, Taken taken) {
    while (true) {
      {
        const std::lock_guard lock(lock_);
        if (!events_.empty()) {
          event = events_.front();
          events_.pop_front();
          taken(event);
          become_unreadable_if_empty();
          return true;
        }
      }
      const int flags = fcntl(fd_, F_GETFL);
      if (flags >= 0 && (flags & O_NONBLOCK) != 0) return errno = EAGAIN, false;
      pollfd wait{fd_, POLLIN, 0};
      if (poll(&wait, 1, -1) < 0) return false;
    }
  }
  template <typename Predicate>
  void remove_if(Predicate predicate) {
    const std::lock_guard lock(lock_);
    if (events_.empty()) return;
    std::erase_if(events_, predicate);
    become_unreadable_if_empty();
  }

 private:
  void become_unreadable_if_empty() {
    eventfd_t count = 0;
    if (events_.empty() && eventfd_read(fd_, &count) != 0) std::abort();
  }

  int fd_;
  std::mutex lock_;
  std::deque<Event> events_;
};

// Delivered events have to be acknowledged before their object can go.
class Acknowledged {
 public:
  void delivered();
  void acknowledged(unsigned count);
  void wait();

 private:
  std::mutex lock_;
  std::condition_variable changed_;
  std::uint64_t delivered_ = 0;
  std::uint64_t acknowledged_ = 0;
};

struct Channel : ibv_comp_channel {
  EventQueue<Cq*> events;
  std::atomic<int> cqs{0};
};

// A receive queue or an SRQ's: `freed` counts slots that may be used again.
struct Slots {
  std::atomic<std::uint64_t> freed{0};
};

struct Cqe {
  ibv_wc wc;
  bool solicited = false;
  const Qp* qp = nullptr;
  std::shared_ptr<Slots> slots;  // of the queue the work was in
  std::uint64_t free_to = 0;     // send: all slots up to this one; receive: 0, one more
};

struct Cq : ibv_cq {
  std::mutex lock;
  std::deque<Cqe> entries;
  bool overrun = false;
  bool armed = false;
  bool armed_solicited = false;
  std::atomic<int> users{0};
  Acknowledged comp_events;
  Acknowledged async_events;
};

struct RecvWqe {
  std::uint64_t wr_id = 0;
  std::vector<ibv_sge> list;
};

struct RecvQueue {
  std::mutex lock;
  std::deque<RecvWqe> work;
  std::uint64_t posted = 0;
  std::uint32_t capacity = 0;
  std::uint32_t max_sge = 0;
  std::uint32_t limit = 0;  // SRQ: event when fewer are left, once
  std::shared_ptr<Slots> slots = std::make_shared<Slots>();
};

struct Srq : ibv_srq {
  RecvQueue queue;
  std::atomic<int> users{0};
  Acknowledged async_events;
};

struct Pd : ibv_pd {
  std::atomic<int> users{0};
};

struct Mr : ibv_mr {
  std::uint64_t iova = 0;
  std::byte* base = nullptr;
  unsigned access = 0;
};

struct Ah : ibv_ah {
  ibv_ah_attr attr{};
};

struct SendWqe {
  ibv_send_wr wr{};  // sg_list, next: not used
  std::vector<ibv_sge> list;
  std::vector<std::byte> inline_data;
  bool is_inline = false;
  bool signalled = false;
  bool executed = false;  // at the peer; waits for its acknowledgement
  ibv_ah_attr ah{};
  std::uint64_t index = 0;
  std::uint32_t bytes = 0;
};

struct Qp : ibv_qp {
  Device* device = nullptr;
  std::mutex exec;  // state and attributes, and held while somebody executes for or on it
  std::atomic<ibv_qp_state> now{IBV_QPS_RESET};
  bool dead = false;
  ibv_qp_attr attr{};
  ibv_qp_cap cap{};
  bool sq_sig_all = false;
  std::uint32_t sq_psn = 0;
  std::uint32_t rq_psn = 0;
  std::uint64_t resets = 0;  // RESET makes all earlier work void
  int retries = 0;
  int rnr_retries = 0;
  int acks_held = 0;
  Clock::time_point not_before{};  // waits for an RNR or retry timer
  std::uint64_t wire_until = 0;    // stopped: work up to here may have been sent already
  bool drained_told = false;
  bool last_wqe_told = false;

  std::mutex sq_lock;
  std::deque<SendWqe> sq;
  std::uint64_t posted = 0;
  std::shared_ptr<Slots> sq_slots = std::make_shared<Slots>();

  RecvQueue rq;
  Srq* shared = nullptr;
  RecvQueue& receives() { return shared != nullptr ? shared->queue : rq; }

  Acknowledged async_events;
  bool scheduled = false;  // Device::schedule_lock
};

struct Context : ibv_context {
  std::shared_ptr<Device> owner;
  std::shared_ptr<ibv_device> device_handle;  // device_list lends it, an open context keeps it
  EventQueue<ibv_async_event> events;
  Acknowledged port_events;
  std::mutex lock;
  std::set<Pd*> pds;
  std::set<Mr*> mrs;
  std::set<Cq*> cqs;
  std::set<Channel*> channels;
  std::set<Srq*> srqs;
  std::set<Ah*> ahs;
  std::map<Qp*, std::shared_ptr<Qp>> qps;
};

// What travels. By value: it outlives its sender.
struct Message {
  ibv_qp_type type = IBV_QPT_RC;
  ibv_wr_opcode opcode = IBV_WR_SEND;
  Device* from = nullptr;
  ibv_gid from_gid{};
  std::uint32_t from_qpn = 0;
  std::uint32_t to_qpn = 0;
  ibv_ah_attr path{};
  std::uint32_t psn = 0;
  std::uint32_t packets = 1;
  std::uint32_t qkey = 0;
  bool solicited = false;
  std::uint32_t imm_data = 0;
  std::uint64_t remote_addr = 0;
  std::uint32_t rkey = 0;
  std::uint64_t compare_add = 0;
  std::uint64_t swap = 0;
  std::uint32_t bytes = 0;  // of a read: what is asked for
  std::vector<std::byte> payload;
};

enum class Fate {
  kExecuted,
  kLost,  // no answer: the requester's timer runs out
  kRnr,
  kNak,  // Reply::status says what the requester sees
};

struct Reply {
  Fate fate = Fate::kLost;
  ibv_wc_status status = IBV_WC_SUCCESS;
  std::uint8_t rnr_timer = 0;
  std::vector<std::byte> data;  // of a read or an atomic
};

struct Late {
  Clock::time_point due;
  Message message;
};

struct Device {
  Device(Fabric::Impl& fabric_in, int host_in, DeviceSpec spec_in);
  ~Device();

  Fabric::Impl& fabric;
  const int host;
  DeviceSpec spec;
  std::shared_ptr<ibv_device> handle;
  std::atomic<bool> plugged{true};
  std::atomic<bool> port_up{true};
  std::atomic<std::uint32_t> next_handle{1};

  mutable std::shared_mutex qp_lock;
  std::unordered_map<std::uint32_t, std::shared_ptr<Qp>> qps;
  std::uint32_t next_qpn = kFirstQpn;

  mutable std::shared_mutex mr_lock;
  std::unordered_map<std::uint32_t, Mr*> lkeys;
  std::unordered_map<std::uint32_t, Mr*> rkeys;
  std::uint32_t next_key = 0;

  mutable std::mutex context_lock;
  std::set<Context*> contexts;

  // The engine.
  void schedule(const std::shared_ptr<Qp>& qp);
  void schedule(Qp& qp);
  void schedule_at(const std::shared_ptr<Qp>& qp, Clock::time_point when);
  void forget(const Qp& qp);
  void send_late(Message message, Clock::time_point when);
  bool step(Clock::time_point& next_due);
  void engine_main();
  void stop();

  std::mutex schedule_lock;
  std::condition_variable wake;
  std::deque<std::shared_ptr<Qp>> ready;
  std::multimap<Clock::time_point, std::shared_ptr<Qp>> timers;
  std::vector<Late> late;
  bool stopping = false;
  std::thread engine;
  std::mt19937_64 random;  // engine only

 private:
  bool take_late(Message& message, Clock::time_point now, Clock::time_point& next_due);
};

struct Fabric::Impl {
  explicit Impl(Options options_in) : options(options_in) {}

  const Options options;
  RealVerbs verbs[kMaxHosts];
  RealVerbs thread_verbs;
  mutable std::shared_mutex devices_lock;
  std::vector<std::shared_ptr<Device>> devices;
  std::vector<std::shared_ptr<Device>> unplugged;  // until the end: their contexts may be open
  std::atomic<bool> acks_held{false};
  std::atomic<std::uint64_t> executed{0};
  mutable std::mutex violations_lock;
  std::vector<std::string> violations;

  std::shared_ptr<Device> find(int host, const std::string& name) const;
  // Where a path leads; null: nowhere.
  std::shared_ptr<Device> at(const ibv_ah_attr& path) const;
  void violation(std::string text);
};

inline Device& device_of(const ibv_context* context) {
  return *static_cast<const Context*>(context)->owner;
}

// events.cc
void complete(Cq& cq, Cqe cqe);
void raise_event(Context& context, const ibv_async_event& event);
void forget_events(Channel& channel, const Cq* cq);
void forget_events(Context& context, const void* object);
// memory.cc. Status as the owner of the memory sees it.
using Bytes = std::vector<std::byte>;
ibv_wc_status gather(const Device& device, const ibv_pd* pd, const std::vector<ibv_sge>& list,
                     Bytes& out);
ibv_wc_status scatter(const Device& device, const ibv_pd* pd, const std::vector<ibv_sge>& list,
                      std::size_t skip, const Bytes& data);
ibv_wc_status writable(const Device& device, const ibv_pd* pd, const std::vector<ibv_sge>& list);
ibv_wc_status remote_write(const Device& device, const ibv_pd* pd, const Message& message);
ibv_wc_status remote_read(const Device& device, const ibv_pd* pd, const Message& message,
                          Bytes& out);
ibv_wc_status remote_atomic(const Device& device, const ibv_pd* pd, const Message& message,
                            Bytes& out);
// requester.cc
void turn(Device& device, const std::shared_ptr<Qp>& qp);
// responder.cc
Reply deliver(Device& device, const Message& message);
bool leads_to(const ibv_ah_attr& path, const Device& device);
void to_error(Qp& qp);        // with exec
void flush_receives(Qp& qp);  // with exec
void raise_qp_event(Qp& qp, ibv_event_type type);
// state.cc
int modify(Qp& qp, const ibv_qp_attr& attr, int mask);
// data_path.cc
void fill_ops(ibv_context_ops& ops);
// control.cc
RealVerbs make_verbs(int host);  // -1: of the calling thread
int host_of_thread();
extern std::atomic<Fabric::Impl*> the_fabric;

}  // namespace symvirt::hooks::verbs::testing
