// One link: posting, and checking what comes.
#include "tests/verbs/stress_link.h"

#include <arpa/inet.h>

#include <cerrno>
#include <chrono>
#include <cstring>

#include "tests/verbs/stress_rank.h"

namespace symvirt::verbs_stress {
namespace {

constexpr std::uint32_t kMaxInline = 64;

std::int64_t now_ms() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

std::uint64_t stream_name(int from, int to, int index) {
  return mix(static_cast<std::uint64_t>(from) << 40 | static_cast<std::uint64_t>(to) << 20 |
             static_cast<std::uint64_t>(index));
}

ibv_qp_type qp_type(Service service) {
  switch (service) {
    case Service::kRc:
      return IBV_QPT_RC;
    case Service::kUc:
      return IBV_QPT_UC;
    case Service::kUd:
      return IBV_QPT_UD;
  }
  return IBV_QPT_RC;
}

}  // namespace

Link::Link(Rank& rank, Service service, int peer, int index)
    : rank_(rank),
      service_(service),
      peer_(peer),
      index_(index),
      depth_(rank.options().depth),
      window_(rank.options().window),
      max_(service == Service::kUd ? std::min(rank.options().max_bytes, kMtuBytes)
                                   : rank.options().max_bytes),
      out_(stream_name(rank.rank(), peer, index)),
      in_(stream_name(peer, rank.rank(), index)),
      random_(mix(rank.options().seed) ^ out_),
      posted_(depth_),
      poll_random_(mix(rank.options().seed + 1) ^ in_) {}

bool Link::create(ibv_cq* send_cq, ibv_cq* recv_cq, ibv_srq* srq) {
  shared_ = srq != nullptr;
  // An unreliable link loses what finds no receive: always more than can come.
  receive_count_ = shared_ ? 0 : reliable() ? 3 + random_.below(window_) : 4 * window_;
  receive_bytes_ = max_ + kGrh;
  const std::size_t sends = std::size_t{depth_} * max_;
  const std::size_t writes = std::size_t{window_} * max_;
  const std::size_t words = (sends + writes + kReadArea + 7) / 8 * 8;
  const std::size_t total = words + 8 + std::size_t{receive_count_} * receive_bytes_;
  memory_ = std::make_unique<std::uint8_t[]>(total);
  writes_ = memory_.get() + sends;
  reads_ = writes_ + writes;
  word_ = reinterpret_cast<std::uint64_t*>(memory_.get() + words);
  receives_ = memory_.get() + words + 8;
  fill(reads_, kReadArea, in_);

  mr_ = ibv_reg_mr(rank_.pd(), memory_.get(), total,
                   IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ |
                       IBV_ACCESS_REMOTE_ATOMIC);
  if (mr_ == nullptr) return false;
  ibv_qp_init_attr init{};
  init.send_cq = send_cq;
  init.recv_cq = recv_cq;
  init.srq = srq;
  init.qp_type = qp_type(service_);
  init.cap = {depth_, std::max(receive_count_, 1u), 3, 2, kMaxInline};
  qp_ = ibv_create_qp(rank_.pd(), &init);
  psn_ = static_cast<std::uint32_t>(random_.next() & 0xffffff);
  return qp_ != nullptr;
}

LinkInfo Link::info() const {
  return {qp_->qp_num,
          psn_,
          mr_->rkey,
          reinterpret_cast<std::uintptr_t>(writes_),
          reinterpret_cast<std::uintptr_t>(reads_),
          reinterpret_cast<std::uintptr_t>(word_)};
}

bool Link::connect(const LinkInfo& peer, const PortInfo& port) {
  remote_ = peer;
  ibv_ah_attr path{};
  path.port_num = 1;
  path.dlid = port.lid;
  path.is_global = rank_.ethernet();
  path.grh.dgid = port.gid;
  path.grh.sgid_index = rank_.gid_index();
  path.grh.hop_limit = 64;
  const bool datagram = service_ == Service::kUd;

  ibv_qp_attr attr{};
  attr.qp_state = IBV_QPS_INIT;
  attr.port_num = 1;
  attr.qkey = kQkey;
  attr.qp_access_flags =
      service_ == Service::kRc
          ? IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC
          : IBV_ACCESS_REMOTE_WRITE;
  const int start = IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT;
  if (ibv_modify_qp(qp_, &attr, start | (datagram ? IBV_QP_QKEY : IBV_QP_ACCESS_FLAGS)) != 0)
    return false;
  for (std::uint32_t slot = 0; slot < receive_count_; ++slot)
    if (!post_receive(slot)) return false;

  attr = {};
  attr.qp_state = IBV_QPS_RTR;
  attr.path_mtu = IBV_MTU_1024;
  attr.dest_qp_num = peer.qpn;
  attr.rq_psn = peer.psn;
  attr.max_dest_rd_atomic = 4;
  attr.min_rnr_timer = 1;
  attr.ah_attr = path;
  int mask = IBV_QP_STATE;
  if (!datagram) mask |= IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN;
  if (reliable()) mask |= IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER;
  if (ibv_modify_qp(qp_, &attr, mask) != 0) return false;

  attr = {};
  attr.qp_state = IBV_QPS_RTS;
  attr.sq_psn = psn_;
  attr.timeout = 14;
  attr.retry_cnt = 7;
  attr.rnr_retry = 7;
  attr.max_rd_atomic = 4;
  mask = IBV_QP_STATE | IBV_QP_SQ_PSN;
  if (reliable())
    mask |= IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC;
  if (ibv_modify_qp(qp_, &attr, mask) != 0) return false;
  if (!datagram) return true;
  ah_ = ibv_create_ah(rank_.pd(), &path);
  return ah_ != nullptr;
}

void Link::destroy() {
  if (qp_ != nullptr && ibv_destroy_qp(qp_) != 0) rank_.fail("destroy_qp: " + name());
  if (ah_ != nullptr && ibv_destroy_ah(ah_) != 0) rank_.fail("destroy_ah: " + name());
  if (mr_ != nullptr && ibv_dereg_mr(mr_) != 0) rank_.fail("dereg_mr: " + name());
  qp_ = nullptr;
  ah_ = nullptr;
  mr_ = nullptr;
}

std::string Link::name() const {
  const char* service = reliable() ? "RC" : service_ == Service::kUc ? "UC" : "UD";
  return std::string(service) + " link " + std::to_string(index_) + " of rank " +
         std::to_string(rank_.rank()) + " with " + std::to_string(peer_);
}

std::string Link::state() const {
  return name() + ": sent " + std::to_string(next_) + ", acknowledged " +
         std::to_string(acknowledged_) + ", work " + std::to_string(work_) + ", completed " +
         std::to_string(completed_) + ", received " + std::to_string(received());
}

std::uint32_t Link::room() const {
  return depth_ - static_cast<std::uint32_t>(work_ - completed_.load(std::memory_order_acquire));
}

std::uint64_t Link::unacknowledged() {
  const std::uint64_t acked = std::max(acknowledged_.load(std::memory_order_acquire), given_up_);
  if (reliable() || next_ - acked < window_) {
    stalled_at_ = ~0ull;
    return next_ - acked;
  }
  // The acknowledgement may have been lost, or the messages.
  if (stalled_at_ != acked) {
    stalled_at_ = acked;
    stalled_since_ = now_ms();
  } else if (now_ms() - stalled_since_ > (service_ == Service::kUd ? 2000 : 20000)) {
    // Not soon where writes go to a place that may still be looked at.
    given_up_ = next_;
  }
  return window_;
}

void Link::remember(ibv_send_wr& wr, const Posted& posted, bool signalled) {
  // The last before the queue is full is signalled, or there would never be room again.
  signalled = signalled || ++unsignalled_ >= depth_ / 2;
  if (signalled) unsignalled_ = 0;
  wr.wr_id = work_;
  if (signalled) wr.send_flags |= IBV_SEND_SIGNALED;
  if (service_ == Service::kUd) wr.wr.ud = {ah_, remote_.qpn, kQkey};
  Posted& place = posted_[work_ % depth_];
  place = posted;
  place.signalled = signalled;
  ++work_;
}

bool Link::post(ibv_send_wr* first, int count) {
  for (int i = 0; i + 1 < count; ++i) first[i].next = first + i + 1;
  ibv_send_wr* bad = nullptr;
  const int error = ibv_post_send(qp_, first, &bad);
  if (error != 0) rank_.fail("post_send: " + state() + ": " + std::strerror(error));
  return error == 0;
}

std::uint32_t Link::sges(ibv_sge* list, std::uint8_t* from, std::uint32_t bytes) {
  const std::uint32_t count = bytes < 3 ? 1 : 1 + random_.below(3);
  std::uint32_t done = 0;
  for (std::uint32_t i = 0; i < count; ++i) {
    const std::uint32_t part = i + 1 == count ? bytes - done : bytes / 3;
    list[i] = {reinterpret_cast<std::uintptr_t>(from + done), part, mr_->lkey};
    done += part;
  }
  return count;
}

bool Link::post_message() {
  if (room() < 2 || unacknowledged() >= window_) return false;
  const Plan plan = plan_of(out_, next_, service_, max_, kMaxInline);
  ibv_send_wr wr[2]{};
  ibv_sge list[3];
  std::uint8_t* slot = send_slot(work_);
  fill(slot, plan.bytes, plan.pattern);
  wr[0].sg_list = list;
  wr[0].num_sge = static_cast<int>(sges(list, slot, plan.bytes));
  wr[0].imm_data = htonl(low_bits(next_));
  const bool signalled = random_.chance(30);
  const Posted posted{Op::kMessage, false, plan.bytes, 0, 0};
  int count = 1;
  switch (plan.kind) {
    case Kind::kSend:
      wr[0].opcode = IBV_WR_SEND;
      break;
    case Kind::kSendImm:
      wr[0].opcode = IBV_WR_SEND_WITH_IMM;
      break;
    case Kind::kInline:
      wr[0].opcode = IBV_WR_SEND;
      wr[0].send_flags = IBV_SEND_INLINE;
      break;
    case Kind::kWriteImm:
    case Kind::kWriteThenSend:
      wr[0].opcode = plan.kind == Kind::kWriteImm ? IBV_WR_RDMA_WRITE_WITH_IMM : IBV_WR_RDMA_WRITE;
      wr[0].wr.rdma = {remote_.writes + next_ % window_ * max_, remote_.rkey};
      break;
  }
  remember(wr[0], posted, signalled);
  if (plan.kind == Kind::kWriteThenSend) {
    wr[1].opcode = IBV_WR_SEND_WITH_IMM;
    wr[1].imm_data = wr[0].imm_data;
    remember(wr[1], {Op::kMessage, false, 0, 0, 0}, random_.chance(30));
    count = 2;
  }
  ++next_;
  if (!post(wr, count)) return false;
  if (plan.kind == Kind::kInline) std::memset(slot, 0xee, plan.bytes);  // was copied
  return true;
}

bool Link::post_one_sided() {
  if (room() < 1) return false;
  ibv_send_wr wr{};
  ibv_sge list[3];
  std::uint8_t* slot = send_slot(work_);
  wr.sg_list = list;
  wr.num_sge = 1;
  Posted posted;
  posted.bytes = 8;
  const std::uint32_t dice = random_.below(3);
  if (dice == 0) {
    posted.op = Op::kRead;
    posted.bytes = 1 + random_.below(std::min(max_, kReadArea / 2));
    posted.offset = random_.below(kReadArea / 2);
    std::memset(slot, 0xdd, posted.bytes);
    wr.opcode = IBV_WR_RDMA_READ;
    wr.num_sge = static_cast<int>(sges(list, slot, posted.bytes));
    wr.wr.rdma = {remote_.reads + posted.offset, remote_.rkey};
  } else {
    // The word counts them all: each sees what those before it have left.
    posted.op = dice == 1 ? Op::kFetchAdd : Op::kCompareSwap;
    posted.expected = atomics_++;
    wr.opcode = dice == 1 ? IBV_WR_ATOMIC_FETCH_AND_ADD : IBV_WR_ATOMIC_CMP_AND_SWP;
    wr.wr.atomic = {remote_.word, dice == 1 ? 1 : posted.expected, posted.expected + 1,
                    remote_.rkey};
    list[0] = {reinterpret_cast<std::uintptr_t>(slot), 8, mr_->lkey};
  }
  remember(wr, posted, true);
  return post(&wr, 1);
}

bool Link::post_ack(bool signalled) {
  if (room() < 1) return false;
  acked_at_ = now_ms();
  acked_to_peer_ = received();
  ibv_send_wr wr{};
  wr.opcode = IBV_WR_SEND_WITH_IMM;
  wr.imm_data = htonl(low_bits(acked_to_peer_) | kAckBit);
  remember(wr, {Op::kAck, false, 0, 0, 0}, signalled);
  return post(&wr, 1);
}

bool Link::nothing_left_to_send() const {
  const std::uint64_t wanted = rank_.options().messages;
  return (wanted != 0 && next_ >= wanted) || rank_.stopping();
}

bool Link::post_sealed() {
  const bool tail = work_ != completed_.load(std::memory_order_acquire);
  settled_at_.store(!tail && acked_to_peer_ == received() ? acked_to_peer_ : ~0ull,
                    std::memory_order_release);
  // The unsignalled end of the queue becomes known by something signalled behind it.
  return tail && unsignalled_ != 0 && post_ack(true);
}

bool Link::post_some() {
  if (!sealed() && nothing_left_to_send()) sealed_.store(true, std::memory_order_release);
  const std::uint64_t behind = received() - acked_to_peer_;
  if (behind >= window_ / 4 || (behind != 0 && sealed())) return post_ack(false);
  if (sealed()) return post_sealed();
  if (!reliable() && received() != 0 && now_ms() - acked_at_ > 50) return post_ack(false);
  if (reliable() && random_.chance(20)) return post_one_sided();
  return post_message();
}

void Link::on_send_done(const ibv_wc& wc) {
  if (wc.status != IBV_WC_SUCCESS) {
    rank_.fail("send failed: " + state() + ", work " + std::to_string(wc.wr_id) + ": status " +
               std::to_string(wc.status));
    return;
  }
  // All before it are done; none of them may have been signalled without having been seen.
  for (; done_ < wc.wr_id; ++done_) {
    if (posted_[done_ % depth_].signalled)
      return rank_.fail("completion missing or out of order: " + state() + ", got work " +
                        std::to_string(wc.wr_id) + " before " + std::to_string(done_));
  }
  if (done_ != wc.wr_id)
    return rank_.fail("completion twice: " + state() + ", work " + std::to_string(wc.wr_id));
  const Posted& posted = posted_[done_ % depth_];
  if (!posted.signalled) rank_.fail("completion of unsignalled work: " + state());
  const std::uint8_t* slot = send_slot(done_);
  if (posted.op == Op::kRead) {
    const auto wrong = first_wrong(slot, posted.bytes, out_, posted.offset);
    if (wrong != posted.bytes)
      rank_.fail("read: " + state() + ": byte " + std::to_string(wrong) + " of " +
                 std::to_string(posted.bytes));
    ++rank_.one_sided;
  } else if (posted.op == Op::kFetchAdd || posted.op == Op::kCompareSwap) {
    std::uint64_t got = 0;
    std::memcpy(&got, slot, 8);
    if (got != posted.expected)
      rank_.fail("atomic: " + state() + ": found " + std::to_string(got) + ", should be " +
                 std::to_string(posted.expected));
    ++rank_.one_sided;
  }
  ++done_;
  completed_.store(done_, std::memory_order_release);
  moved.fetch_add(1, std::memory_order_relaxed);
}

void Link::check_message(std::uint64_t number, const ibv_wc& wc, const std::uint8_t* data) {
  const Plan plan = plan_of(in_, number, service_, max_, kMaxInline);
  const bool write = plan.kind == Kind::kWriteImm || plan.kind == Kind::kWriteThenSend;
  const auto opcode = plan.kind == Kind::kWriteImm ? IBV_WC_RECV_RDMA_WITH_IMM : IBV_WC_RECV;
  const std::uint32_t grh = service_ == Service::kUd ? kGrh : 0;
  const std::uint32_t length = plan.kind == Kind::kWriteThenSend ? 0 : plan.bytes;
  const auto wrong_is = [&](const std::string& what) {
    rank_.fail(state() + ", message " + std::to_string(number) + ": " + what);
  };
  if (wc.opcode != opcode || wc.byte_len != length + grh)
    return wrong_is("opcode " + std::to_string(wc.opcode) + ", length " +
                    std::to_string(wc.byte_len) + " instead of " + std::to_string(opcode) + ", " +
                    std::to_string(length + grh));
  const bool imm = plan.kind != Kind::kSend && plan.kind != Kind::kInline;
  if (imm != ((wc.wc_flags & IBV_WC_WITH_IMM) != 0) ||
      (imm && ntohl(wc.imm_data) != low_bits(number)))
    return wrong_is("immediate data");
  if (service_ == Service::kUd && wc.src_qp != remote_.qpn)
    return wrong_is("came from queue pair " + std::to_string(wc.src_qp) + " not " +
                    std::to_string(remote_.qpn));
  const std::uint8_t* at = write ? write_slot(number) : data + grh;
  const std::size_t wrong = first_wrong(at, plan.bytes, plan.pattern);
  if (wrong != plan.bytes)
    return wrong_is("byte " + std::to_string(wrong) + " of " + std::to_string(plan.bytes));
  rank_.bytes += plan.bytes;
  ++rank_.messages;
}

void Link::on_receive(const ibv_wc& wc, std::uint8_t* data, std::uint32_t slot) {
  if (wc.status != IBV_WC_SUCCESS) {
    rank_.fail("receive failed: " + state() + ": status " + std::to_string(wc.status));
    return;
  }
  if (!shared_) {
    if (slot != next_slot_) rank_.fail("receives out of order: " + state());
    next_slot_ = (next_slot_ + 1) % receive_count_;
    data = receives_ + std::size_t{slot} * receive_bytes_;
  }
  const bool imm = (wc.wc_flags & IBV_WC_WITH_IMM) != 0;
  const std::uint32_t value = imm ? ntohl(wc.imm_data) : 0;
  if (imm && (value & kAckBit) != 0) {
    const std::uint64_t acked = widen(value & ~kAckBit, acknowledged_);
    if (acked < acknowledged_) rank_.fail("acknowledgement goes back: " + state());
    acknowledged_.store(acked, std::memory_order_release);
  } else {
    if (!reliable()) {
      const std::uint64_t number = widen(value, expected_);
      if (number < expected_)
        rank_.fail("message " + std::to_string(number) + " twice or out of order: " + state());
      rank_.lost += number - expected_;
      expected_ = number;
    }
    check_message(expected_, wc, data);
    ++expected_;
    received_.store(expected_, std::memory_order_release);
  }
  moved.fetch_add(1, std::memory_order_relaxed);
  if (shared_) return;
  unposted_.push_back(slot);
  if (!reliable() || !rank_.options().slow_reader || !poll_random_.chance(10))
    post_receives_that_wait();
}

bool Link::post_receive(std::uint32_t slot) {
  std::uint8_t* at = receives_ + std::size_t{slot} * receive_bytes_;
  ibv_sge list[2] = {
      {reinterpret_cast<std::uintptr_t>(at), kGrh, mr_->lkey},
      {reinterpret_cast<std::uintptr_t>(at + kGrh), receive_bytes_ - kGrh, mr_->lkey}};
  ibv_recv_wr wr{kReceive | slot, nullptr, list, 2};
  ibv_recv_wr* bad = nullptr;
  const int error = ibv_post_recv(qp_, &wr, &bad);
  if (error != 0) rank_.fail("post_recv: " + state() + ": " + std::strerror(error));
  return error == 0;
}

void Link::post_receives_that_wait() {
  while (!unposted_.empty()) {
    const std::uint32_t slot = unposted_.front();
    unposted_.pop_front();
    if (!post_receive(slot)) return;
  }
}

}  // namespace symvirt::verbs_stress
