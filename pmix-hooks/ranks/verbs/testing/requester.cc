// What a queue pair does with its send queue: one work request a turn, on its device's thread.
#include <algorithm>
#include <array>
#include <utility>

#include "pmix-hooks/ranks/verbs/testing/objects.h"

namespace symvirt::hooks::verbs::testing {
namespace {

using std::chrono::microseconds;

constexpr std::uint32_t kPsnMask = 0xffffff;
constexpr std::uint32_t kMaxMessage = 1u << 30;
constexpr int kMaxUnacknowledged = 64;

// InfiniBand Architecture Specification 1.3, table 45: encoding of the RNR NAK timer.
constexpr std::array<int, 32> kRnrMicroseconds = {
    655360, 10,    20,    30,    40,    60,     80,     120,    160,    240,   320,
    480,    640,   960,   1280,  1920,  2560,   3840,   5120,   7680,   10240, 15360,
    20480,  30720, 40960, 61440, 81920, 122880, 163840, 245760, 327680, 491520};

bool reliable(const Qp& qp) { return qp.qp_type == IBV_QPT_RC; }

bool chance(Device& device, int percent) {
  return static_cast<int>(device.random() % 100) < percent;
}

ibv_wc_opcode wc_opcode(ibv_wr_opcode opcode) {
  switch (opcode) {
    case IBV_WR_RDMA_WRITE:
    case IBV_WR_RDMA_WRITE_WITH_IMM:
      return IBV_WC_RDMA_WRITE;
    case IBV_WR_RDMA_READ:
      return IBV_WC_RDMA_READ;
    case IBV_WR_ATOMIC_CMP_AND_SWP:
      return IBV_WC_COMP_SWAP;
    case IBV_WR_ATOMIC_FETCH_AND_ADD:
      return IBV_WC_FETCH_ADD;
    default:
      return IBV_WC_SEND;
  }
}

SendWqe pop_front(Qp& qp) {
  const std::lock_guard lock(qp.sq_lock);
  SendWqe wqe = std::move(qp.sq.front());
  qp.sq.pop_front();
  return wqe;
}

// The pointer stays good: only whoever holds exec takes entries away.
SendWqe* find(Qp& qp, bool executed) {
  const std::lock_guard lock(qp.sq_lock);
  for (SendWqe& wqe : qp.sq)
    if (wqe.executed == executed) return &wqe;
  return nullptr;
}

void complete_send(Qp& qp, const SendWqe& wqe, ibv_wc_status status) {
  const bool at_poll = qp.device->spec.free_slots_at_poll;
  if (!at_poll) qp.sq_slots->freed = wqe.index;
  if (!wqe.signalled && status == IBV_WC_SUCCESS) return;
  ibv_wc wc{};
  wc.wr_id = wqe.wr.wr_id;
  wc.status = status;
  wc.qp_num = qp.qp_num;
  // With an error nothing else is defined: do not help anybody who relies on it.
  if (status == IBV_WC_SUCCESS) {
    wc.opcode = wc_opcode(wqe.wr.opcode);
    if (wqe.wr.opcode == IBV_WR_RDMA_READ) wc.byte_len = wqe.bytes;
    if (wc.opcode == IBV_WC_COMP_SWAP || wc.opcode == IBV_WC_FETCH_ADD) wc.byte_len = 8;
  }
  complete(*static_cast<Cq*>(qp.send_cq),
           {wc, false, &qp, at_poll ? qp.sq_slots : nullptr, wqe.index});
}

bool front_executed(Qp& qp) {
  const std::lock_guard lock(qp.sq_lock);
  return !qp.sq.empty() && qp.sq.front().executed;
}

// False: some are left for later.
bool settle_acks(Device& device, Qp& qp, bool all) {
  if (!front_executed(qp)) return true;
  if (!all && reliable(qp)) {
    if (device.fabric.acks_held) return false;
    if (qp.acks_held < kMaxUnacknowledged && chance(device, device.fabric.options.hold_ack)) {
      ++qp.acks_held;
      return false;
    }
  }
  qp.acks_held = 0;
  while (front_executed(qp)) complete_send(qp, pop_front(qp), IBV_WC_SUCCESS);
  return true;
}

void flush_sends(Qp& qp) {
  while (true) {
    {
      const std::lock_guard lock(qp.sq_lock);
      if (qp.sq.empty()) return;
    }
    complete_send(qp, pop_front(qp), IBV_WC_WR_FLUSH_ERR);
  }
}

// The oldest work that is not executed ends with this status, and the queue pair with it.
void fail(Device& device, Qp& qp, ibv_wc_status status) {
  settle_acks(device, qp, true);
  complete_send(qp, pop_front(qp), status);
  if (reliable(qp)) {
    to_error(qp);
  } else {
    qp.now = IBV_QPS_SQE;
    device.schedule(qp);
  }
}

std::uint32_t packets_of(const Qp& qp, std::uint32_t bytes) {
  if (qp.qp_type == IBV_QPT_UD) return 1;
  const std::uint32_t mtu = 128u << qp.attr.path_mtu;
  return std::max<std::uint32_t>(1, (bytes + mtu - 1) / mtu);
}

ibv_wc_status fill_payload(Qp& qp, const SendWqe& wqe, Message& m) {
  const ibv_wr_opcode opcode = wqe.wr.opcode;
  if (opcode == IBV_WR_RDMA_READ) return writable(*qp.device, qp.pd, wqe.list);
  if (opcode == IBV_WR_ATOMIC_CMP_AND_SWP || opcode == IBV_WR_ATOMIC_FETCH_AND_ADD) {
    if (wqe.bytes != 8) return IBV_WC_LOC_LEN_ERR;
    return writable(*qp.device, qp.pd, wqe.list);
  }
  if (wqe.is_inline) {
    m.payload = wqe.inline_data;
    return IBV_WC_SUCCESS;
  }
  return gather(*qp.device, qp.pd, wqe.list, m.payload);
}

ibv_wc_status make_message(Qp& qp, const SendWqe& wqe, std::uint32_t psn, Message& m) {
  const bool datagram = qp.qp_type == IBV_QPT_UD;
  const auto& wr = wqe.wr;
  if (wqe.bytes > (datagram ? 128u << qp.device->spec.mtu : kMaxMessage)) return IBV_WC_LOC_LEN_ERR;
  m.type = qp.qp_type;
  m.opcode = wr.opcode;
  m.from = qp.device;
  m.from_qpn = qp.qp_num;
  m.path = datagram ? wqe.ah : qp.attr.ah_attr;
  if (m.path.is_global) m.from_gid = qp.device->spec.gids[m.path.grh.sgid_index];
  m.psn = psn;
  m.packets = packets_of(qp, wqe.bytes);
  m.solicited = (wr.send_flags & IBV_SEND_SOLICITED) != 0;
  m.imm_data = wr.imm_data;
  m.bytes = wqe.bytes;
  if (datagram) {
    m.to_qpn = wr.wr.ud.remote_qpn;
    m.qkey = (wr.wr.ud.remote_qkey & 0x80000000u) ? qp.attr.qkey : wr.wr.ud.remote_qkey;
  } else {
    m.to_qpn = qp.attr.dest_qp_num;
    const bool atomic =
        wr.opcode == IBV_WR_ATOMIC_CMP_AND_SWP || wr.opcode == IBV_WR_ATOMIC_FETCH_AND_ADD;
    m.remote_addr = atomic ? wr.wr.atomic.remote_addr : wr.wr.rdma.remote_addr;
    m.rkey = atomic ? wr.wr.atomic.rkey : wr.wr.rdma.rkey;
    if (atomic) {
      m.compare_add = wr.wr.atomic.compare_add;
      m.swap = wr.wr.atomic.swap;
    }
  }
  return fill_payload(qp, wqe, m);
}

// What was on the wire when the queue pair was stopped still arrives.
void leave_on_the_wire(Device& device, Qp& qp) {
  const std::uint64_t until = std::exchange(qp.wire_until, 0);
  if (until == 0 || qp.qp_type == IBV_QPT_UD) return;
  std::uint32_t psn = qp.sq_psn;
  auto due = Clock::now();
  const std::lock_guard lock(qp.sq_lock);
  for (const SendWqe& wqe : qp.sq) {
    if (wqe.executed) continue;
    if (wqe.index > until) return;
    Message message;
    if (!chance(device, device.fabric.options.late)) return;
    const auto opcode = wqe.wr.opcode;
    if (opcode == IBV_WR_RDMA_READ || opcode == IBV_WR_ATOMIC_CMP_AND_SWP ||
        opcode == IBV_WR_ATOMIC_FETCH_AND_ADD)
      return;
    if (make_message(qp, wqe, psn, message) != IBV_WC_SUCCESS) return;
    psn = (psn + message.packets) & kPsnMask;
    due += microseconds(device.random() % (device.fabric.options.late_by.count() + 1));
    device.send_late(std::move(message), due);
  }
}

void retry(Device& device, const std::shared_ptr<Qp>& qp, const Reply& reply) {
  microseconds wait{0};
  if (reply.fate == Fate::kRnr) {
    if (qp->attr.rnr_retry != 7 && qp->rnr_retries-- == 0)
      return fail(device, *qp, IBV_WC_RNR_RETRY_EXC_ERR);
    wait = microseconds(kRnrMicroseconds[reply.rnr_timer % 32]);
  } else {
    const int timeout = qp->attr.timeout;
    if (timeout == 0) wait = std::chrono::hours(1);  // waits for ever
    if (timeout != 0 && qp->retries-- == 0) return fail(device, *qp, IBV_WC_RETRY_EXC_ERR);
    if (timeout != 0) wait = microseconds((4096ull << timeout) / 1000);
  }
  settle_acks(device, *qp, false);
  qp->not_before = Clock::now() + wait;
  device.schedule_at(qp, qp->not_before);
}

void executed(Device& device, Qp& qp, SendWqe& wqe, const Message& m, const Reply& reply) {
  if (!reply.data.empty() && scatter(device, qp.pd, wqe.list, 0, reply.data) != IBV_WC_SUCCESS)
    return fail(device, qp, IBV_WC_LOC_PROT_ERR);
  wqe.executed = true;
  qp.sq_psn = (m.psn + m.packets) & kPsnMask;
  qp.retries = qp.attr.retry_cnt;
  qp.rnr_retries = qp.attr.rnr_retry;
  settle_acks(device, qp, !reliable(qp));
  device.schedule(qp);
}

void tell_drained(Qp& qp) {
  if (qp.drained_told || !qp.attr.en_sqd_async_notify) return;
  qp.drained_told = true;
  raise_qp_event(qp, IBV_EVENT_SQ_DRAINED);
}

// With exec. True: `m` is to be sent.
bool next_message(Device& device, const std::shared_ptr<Qp>& qp, Message& m) {
  const ibv_qp_state state = qp->now;
  if (state == IBV_QPS_ERR) {
    leave_on_the_wire(device, *qp);
    flush_sends(*qp);
    flush_receives(*qp);
    return false;
  }
  if (state == IBV_QPS_SQE) flush_sends(*qp);
  if (state != IBV_QPS_RTS && state != IBV_QPS_SQD) return false;
  const bool settled = settle_acks(device, *qp, false);
  SendWqe* wqe = state == IBV_QPS_RTS ? find(*qp, false) : nullptr;
  if (wqe == nullptr) {
    if (!settled) device.schedule_at(qp, Clock::now() + microseconds(20));
    if (settled && state == IBV_QPS_SQD) tell_drained(*qp);
    return false;
  }
  if (Clock::now() < qp->not_before) {
    device.schedule_at(qp, qp->not_before);
    return false;
  }
  const auto status = make_message(*qp, *wqe, qp->sq_psn, m);
  if (status != IBV_WC_SUCCESS) fail(device, *qp, status);
  return status == IBV_WC_SUCCESS;
}

}  // namespace

void turn(Device& device, const std::shared_ptr<Qp>& qp) {
  Message message;
  std::uint64_t resets = 0;
  {
    const std::lock_guard lock(qp->exec);
    if (qp->dead || !next_message(device, qp, message)) return;
    resets = qp->resets;
  }
  Reply reply;
  const auto to = device.fabric.at(message.path);
  if (to && device.port_up) reply = deliver(*to, message);

  const std::lock_guard lock(qp->exec);
  const ibv_qp_state state = qp->now;
  // Stopped meanwhile: its work is flushed, executed or not.
  if (qp->dead || qp->resets != resets || (state != IBV_QPS_RTS && state != IBV_QPS_SQD)) return;
  SendWqe* wqe = find(*qp, false);
  if (reply.fate == Fate::kExecuted || !reliable(*qp)) {
    executed(device, *qp, *wqe, message, reply);
  } else if (reply.fate == Fate::kNak) {
    fail(device, *qp, reply.status);
  } else {
    retry(device, qp, reply);
  }
}

}  // namespace symvirt::hooks::verbs::testing
