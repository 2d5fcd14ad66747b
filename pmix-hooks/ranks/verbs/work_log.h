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

struct SendRecord {
  std::uint64_t wr_id = 0;
  std::uint8_t opcode = 0;
  std::uint8_t flags = 0;  // ibv_send_flags
  std::uint8_t signalled = 0;
  std::uint8_t consumes_receive = 0;
  std::uint16_t num_sge = 0;  // of the list behind; 0 with inline data
  std::uint16_t unused = 0;
  std::uint32_t inline_bytes = 0;
  std::uint32_t imm_data = 0;
  decltype(ibv_send_wr::wr)
      wr;  // as the application gave it: virtual keys, numbers, address handle
  // ibv_sge[num_sge] or inline_bytes of data follow
};

inline bool consumes_receive(ibv_wr_opcode opcode) {
  return opcode == IBV_WR_SEND || opcode == IBV_WR_SEND_WITH_IMM ||
         opcode == IBV_WR_RDMA_WRITE_WITH_IMM || opcode == IBV_WR_SEND_WITH_INV;
}

class SendLog : public Ring {
 public:
  void configure(std::uint32_t max_wr, std::uint32_t max_sge, std::uint32_t max_inline, bool all);
  SendRecord& record(std::uint64_t index) { return *reinterpret_cast<SendRecord*>(at(index)); }
  void append(const ibv_send_wr& wr) {
    auto& r = *reinterpret_cast<SendRecord*>(push());
    r.wr_id = wr.wr_id;
    r.opcode = static_cast<std::uint8_t>(wr.opcode);
    r.flags = static_cast<std::uint8_t>(wr.send_flags);
    r.signalled = all_signalled_ || (wr.send_flags & IBV_SEND_SIGNALED) != 0;
    r.consumes_receive = consumes_receive(wr.opcode);
    r.imm_data = wr.imm_data;
    r.wr = wr.wr;
    auto* behind = reinterpret_cast<std::byte*>(&r + 1);
    if (__builtin_expect((wr.send_flags & IBV_SEND_INLINE) != 0, 0)) {
      r.num_sge = 0;
      r.inline_bytes = copy_inline(wr, behind);
      return;
    }
    r.inline_bytes = 0;
    r.num_sge = static_cast<std::uint16_t>(wr.num_sge);
    auto* list = reinterpret_cast<ibv_sge*>(behind);
    for (int i = 0; i < wr.num_sge; ++i) list[i] = wr.sg_list[i];
  }
  static ibv_sge* list_of(SendRecord& r) { return reinterpret_cast<ibv_sge*>(&r + 1); }
  // Drops what is done: `completed` signalled ones have been seen by whoever polls.
  void retire(std::uint64_t completed) {
    while (retired_signalled != completed && tail != real) {
      SendRecord& r = record(tail++);
      retired_signalled += r.signalled;
      consumed += r.consumes_receive;
    }
  }
  void forget() { clear(), retired_signalled = 0, consumed = 0; }

  std::uint64_t retired_signalled = 0;
  std::uint64_t consumed = 0;  // retired ones that consumed a receive of the peer

 private:
  std::uint32_t copy_inline(const ibv_send_wr& wr, std::byte* to) const;
  bool all_signalled_ = false;
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
    for (int i = 0; i < wr.num_sge; ++i) list_of(r)[i] = wr.sg_list[i];
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
