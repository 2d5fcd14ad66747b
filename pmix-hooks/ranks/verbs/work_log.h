// What the layer remembers of the work an application posted, until it is known to be done.
//
// Needed at a quiesce only: receives that were not consumed are posted again on the next device,
// sends that could not be executed are taken back and repeated. Before that it must cost next to
// nothing: a record is written behind the real post (64 bytes and the scatter list), nobody reads
// it in normal running, and an empty log begins again at its first record, so that a ping-pong
// stays in two cache lines.
//
// Indices: [tail, real) was given to the device and is not known to be done; [real, head) waits for
// one.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>

#include "pmix-hooks/ranks/verbs/verbs_api.h"

namespace symvirt::hooks::verbs {

struct VAh;

// Fixed-size records with a tail of their own kind, in a ring that grows when a provider takes more
// than it promised.
class Ring {
 public:
  void configure(std::uint32_t capacity, std::uint32_t record_bytes);
  std::byte* at(std::uint64_t index) { return bytes_.get() + (index & mask_) * stride_; }
  std::uint64_t size() const { return head - tail; }
  bool empty() const { return head == tail; }
  void clear() { head = real = tail = 0; }
  // A place for one more; may move what is there.
  std::byte* push() {
    if (__builtin_expect(head - tail > mask_, 0)) grow();
    if (head == tail) clear();
    return at(head++);
  }

  std::uint64_t tail = 0;
  std::uint64_t real = 0;
  std::uint64_t head = 0;

 private:
  void grow();

  std::unique_ptr<std::byte[]> bytes_;
  std::uint64_t mask_ = 0;
  std::uint32_t stride_ = 0;
};

// wr_id of the layer's own work; the lowest byte is OwnWork::sequence.
inline constexpr std::uint64_t kMarkerId = 0x53594d5649525400;
inline bool is_marker(std::uint64_t wr_id) { return (wr_id & ~std::uint64_t{0xff}) == kMarkerId; }
// The last of a receive queue that was errored.
inline constexpr std::uint64_t kLastReceiveId = 0x53594d5649525500;
inline bool is_last_receive(std::uint64_t wr_id) {
  return (wr_id & ~std::uint64_t{0xff}) == kLastReceiveId;
}

// The layer's own work in one of an application's queues. Never more than one there, through any
// number of quiesces that are given up: the application has to find the places it was granted.
struct OwnWork {
  enum State : std::uint8_t {
    kNone,
    kOut,       // in the queue, behind all that the application has posted
    kOutdated,  // in the queue, and the application may have posted since
    kBack,      // came back; all in front of it is done
  };

  bool is_out() const { return state == kOut || state == kOutdated; }
  bool is_back() const { return state == kBack; }
  // For the next one to post. Each has a number of its own, as completions outlive a queue that is
  // reset.
  std::uint64_t next_id(std::uint64_t base) const { return base | ((sequence + 1u) & 0xff); }
  void posted() { state = kOut, ++sequence; }
  void came_back(std::uint64_t wr_id) {
    if ((wr_id & 0xff) == sequence && is_out()) state = state == kOut ? kBack : kNone;
  }
  // The application posts again.
  void outdate() { state = is_out() ? kOutdated : kNone; }
  void forget() { state = kNone; }  // its queue is empty now

  std::atomic<State> state{kNone};  // a poller's thread, or whoever has all threads held
  std::uint8_t sequence = 0;
};

inline bool consumes_receive(std::uint32_t opcode) {
  constexpr std::uint32_t kOnes = 1u << IBV_WR_SEND | 1u << IBV_WR_SEND_WITH_IMM |
                                  1u << IBV_WR_RDMA_WRITE_WITH_IMM | 1u << IBV_WR_SEND_WITH_INV;
  return (kOnes >> (opcode & 31) & 1) != 0;
}

// As the application gave it: virtual keys, numbers, address handle.
struct SendRecord {
  std::uint64_t wr_id;
  std::int32_t num_sge;
  std::uint32_t opcode;
  std::uint32_t flags;  // ibv_send_flags; signalled also where the queue does that to all
  std::uint32_t imm_data;
  decltype(ibv_send_wr::wr) wr;
  std::uint32_t inline_bytes;
  std::uint32_t unused;
  // inline_bytes of data if there are any, else ibv_sge[num_sge] follow

  bool signalled() const { return (flags & IBV_SEND_SIGNALED) != 0; }
  bool consumes_receive() const { return verbs::consumes_receive(opcode); }
};

// Requests were written just before they are copied, field by field. A copy that takes several
// fields at once has to wait until those stores have left the store buffer (12 cycles or more, and
// the compiler would make such ones); of the same width they are forwarded.
template <typename T>
T as_written(const T& field) {
  return *const_cast<const volatile T*>(&field);
}
inline void copy_sge(ibv_sge& to, const ibv_sge& from) {
  to.addr = as_written(from.addr);
  to.length = as_written(from.length);
  to.lkey = as_written(from.lkey);
}
// What a record has of a request, but for the flags.
template <typename To, typename From>
void copy_send_body(To& to, const From& from) {
  to.num_sge = as_written(from.num_sge);
  to.opcode = static_cast<decltype(to.opcode)>(as_written(from.opcode));
  to.imm_data = as_written(from.imm_data);
  // The same places in each of the union's members: address (handle), key or number, the rest.
  to.wr.rdma.remote_addr = as_written(from.wr.rdma.remote_addr);
  to.wr.ud.remote_qpn = as_written(from.wr.ud.remote_qpn);
  to.wr.ud.remote_qkey = as_written(from.wr.ud.remote_qkey);
  to.wr.atomic.swap = as_written(from.wr.atomic.swap);
  to.wr.atomic.rkey = as_written(from.wr.atomic.rkey);
}
static_assert(offsetof(ibv_send_wr, wr.ud.remote_qpn) == offsetof(ibv_send_wr, wr.rdma.rkey) &&
              offsetof(ibv_send_wr, wr.ud.remote_qpn) ==
                  offsetof(ibv_send_wr, wr.atomic.compare_add) &&
              offsetof(ibv_send_wr, wr.ud.remote_qkey) + 4 ==
                  offsetof(ibv_send_wr, wr.atomic.swap) &&
              sizeof(ibv_send_wr::wr) == 32);

class SendLog : public Ring {
 public:
  void configure(std::uint32_t max_wr, std::uint32_t max_sge, std::uint32_t max_inline, bool all);
  SendRecord& record(std::uint64_t index) { return *reinterpret_cast<SendRecord*>(at(index)); }
  void append(const ibv_send_wr& wr) {
    auto& r = *reinterpret_cast<SendRecord*>(push());
    r.wr_id = wr.wr_id;
    copy_send_body(r, wr);
    r.flags = as_written(wr.send_flags) | always_;
    auto* behind = reinterpret_cast<std::byte*>(&r + 1);
    if (__builtin_expect((wr.send_flags & IBV_SEND_INLINE) != 0, 0)) {
      r.num_sge = 0;
      r.inline_bytes = copy_inline(wr, behind);
      return;
    }
    r.inline_bytes = 0;
    auto* list = reinterpret_cast<ibv_sge*>(behind);
    for (int i = 0; i < wr.num_sge; ++i) copy_sge(list[i], wr.sg_list[i]);
  }
  static ibv_sge* list_of(SendRecord& r) { return reinterpret_cast<ibv_sge*>(&r + 1); }
  // Drops what is done: `completed` signalled ones have been seen by whoever polls.
  void retire(std::uint64_t completed) {
    if (retired_signalled == completed) return;
    std::uint64_t index = tail, seen = retired_signalled, used = consumed;
    while (seen != completed && index != real) {
      const SendRecord& r = record(index++);
      seen += r.signalled() ? 1 : 0;
      used += r.consumes_receive() ? 1 : 0;
    }
    tail = index, retired_signalled = seen, consumed = used;
  }
  void forget() { clear(), retired_signalled = 0, consumed = 0; }

  std::uint64_t retired_signalled = 0;
  std::uint64_t consumed = 0;  // retired ones that consumed a receive of the peer

 private:
  std::uint32_t copy_inline(const ibv_send_wr& wr, std::byte* to) const;
  std::uint32_t always_ = 0;  // flags of all
  std::uint32_t room_ = 0;
};

struct RecvRecord {
  std::uint64_t wr_id = 0;
  std::uint32_t num_sge = 0;
  std::uint32_t unused = 0;
  // ibv_sge[num_sge] follows
};

class RecvLog : public Ring {
 public:
  void configure(std::uint32_t max_wr, std::uint32_t max_sge);
  RecvRecord& record(std::uint64_t index) { return *reinterpret_cast<RecvRecord*>(at(index)); }
  static ibv_sge* list_of(RecvRecord& r) { return reinterpret_cast<ibv_sge*>(&r + 1); }
  void append(const ibv_recv_wr& wr) {
    auto& r = *reinterpret_cast<RecvRecord*>(push());
    r.wr_id = wr.wr_id;
    r.num_sge = static_cast<std::uint32_t>(wr.num_sge);
    for (int i = 0; i < wr.num_sge; ++i) copy_sge(list_of(r)[i], wr.sg_list[i]);
  }
  // Receives of one queue are consumed in the order they were posted.
  void retire(std::uint64_t completed) {
    const std::uint64_t done = completed - retired;
    const std::uint64_t here = real - tail;
    tail += done < here ? done : here;
    retired = completed;
  }
  void forget() { clear(), retired = 0; }

  std::uint64_t retired = 0;
};

}  // namespace symvirt::hooks::verbs
