// What verbs.h calls inline: posting, polling, arming. Checks what providers check at once; all
// else is the engine's.
#include <cerrno>
#include <cstring>

#include "pmix-hooks/ranks/verbs/testing/objects.h"

namespace symvirt::hooks::verbs::testing {
namespace {

bool opcode_valid(ibv_qp_type type, ibv_wr_opcode opcode) {
  switch (opcode) {
    case IBV_WR_SEND:
    case IBV_WR_SEND_WITH_IMM:
      return true;
    case IBV_WR_RDMA_WRITE:
    case IBV_WR_RDMA_WRITE_WITH_IMM:
      return type != IBV_QPT_UD;
    case IBV_WR_RDMA_READ:
    case IBV_WR_ATOMIC_CMP_AND_SWP:
    case IBV_WR_ATOMIC_FETCH_AND_ADD:
      return type == IBV_QPT_RC;
    default:
      return false;
  }
}

int copy_inline(const Qp& qp, const ibv_send_wr& wr, SendWqe& wqe) {
  wqe.is_inline = true;
  if (wr.opcode == IBV_WR_RDMA_READ || wqe.bytes > qp.cap.max_inline_data) return EINVAL;
  wqe.inline_data.resize(wqe.bytes);
  std::size_t at = 0;
  for (int i = 0; i < wr.num_sge; ++i) {
    if (wr.sg_list[i].length == 0) continue;
    std::memcpy(wqe.inline_data.data() + at, reinterpret_cast<const void*>(wr.sg_list[i].addr),
                wr.sg_list[i].length);
    at += wr.sg_list[i].length;
  }
  return 0;
}

int post_one_send(Qp& qp, const ibv_send_wr& wr) {
  const ibv_qp_state state = qp.now;
  if (state == IBV_QPS_RESET || state == IBV_QPS_INIT || state == IBV_QPS_RTR) return EINVAL;
  if (!opcode_valid(qp.qp_type, wr.opcode)) return EINVAL;
  if (wr.num_sge < 0 || static_cast<std::uint32_t>(wr.num_sge) > qp.cap.max_send_sge) return EINVAL;
  SendWqe wqe;
  wqe.wr = wr;
  wqe.wr.next = nullptr;
  wqe.wr.sg_list = nullptr;
  for (int i = 0; i < wr.num_sge; ++i) wqe.bytes += wr.sg_list[i].length;
  if (wr.send_flags & IBV_SEND_INLINE) {
    if (const int error = copy_inline(qp, wr, wqe)) return error;
  } else {
    wqe.list.assign(wr.sg_list, wr.sg_list + wr.num_sge);
  }
  if (qp.qp_type == IBV_QPT_UD) {
    const auto* ah = static_cast<const Ah*>(wr.wr.ud.ah);
    if (ah == nullptr || ah->pd != qp.pd) return EINVAL;
    wqe.ah = ah->attr;
  }
  wqe.signalled = qp.sq_sig_all || (wr.send_flags & IBV_SEND_SIGNALED) != 0;
  const std::lock_guard lock(qp.sq_lock);
  if (qp.posted - qp.sq_slots->freed >= qp.cap.max_send_wr) return ENOMEM;
  wqe.index = ++qp.posted;
  qp.sq.push_back(std::move(wqe));
  return 0;
}

int post_send(ibv_qp* public_qp, ibv_send_wr* wr, ibv_send_wr** bad) {
  auto& qp = *static_cast<Qp*>(public_qp);
  int error = 0;
  for (; wr != nullptr && error == 0; wr = wr->next) {
    error = post_one_send(qp, *wr);
    if (error != 0) *bad = wr;
  }
  qp.device->schedule(qp);
  return error;
}

int post_receives(RecvQueue& queue, ibv_recv_wr* wr, ibv_recv_wr** bad) {
  const std::lock_guard lock(queue.lock);
  for (; wr != nullptr; wr = wr->next) {
    *bad = wr;
    if (wr->num_sge < 0 || static_cast<std::uint32_t>(wr->num_sge) > queue.max_sge) return EINVAL;
    if (queue.posted - queue.slots->freed >= queue.capacity) return ENOMEM;
    ++queue.posted;
    queue.work.push_back({wr->wr_id, {wr->sg_list, wr->sg_list + wr->num_sge}});
  }
  return 0;
}

int post_recv(ibv_qp* public_qp, ibv_recv_wr* wr, ibv_recv_wr** bad) {
  auto& qp = *static_cast<Qp*>(public_qp);
  *bad = wr;
  if (qp.now == IBV_QPS_RESET || qp.shared != nullptr) return EINVAL;
  const int error = post_receives(qp.rq, wr, bad);
  if (qp.now == IBV_QPS_ERR) qp.device->schedule(qp);  // to be flushed
  return error;
}

int post_srq_recv(ibv_srq* srq, ibv_recv_wr* wr, ibv_recv_wr** bad) {
  return post_receives(static_cast<Srq*>(srq)->queue, wr, bad);
}

void free_slots(const Cqe& cqe) {
  if (!cqe.slots) return;
  if (cqe.free_to == 0) {
    ++cqe.slots->freed;
    return;
  }
  std::uint64_t freed = cqe.slots->freed;
  while (freed < cqe.free_to && !cqe.slots->freed.compare_exchange_weak(freed, cqe.free_to)) {
  }
}

int poll_cq(ibv_cq* public_cq, int count, ibv_wc* wc) {
  auto& cq = *static_cast<Cq*>(public_cq);
  const std::lock_guard lock(cq.lock);
  int got = 0;
  for (; got < count && !cq.entries.empty(); ++got) {
    free_slots(cq.entries.front());
    wc[got] = cq.entries.front().wc;
    cq.entries.pop_front();
  }
  return got;
}

int req_notify_cq(ibv_cq* public_cq, int solicited_only) {
  auto& cq = *static_cast<Cq*>(public_cq);
  const std::lock_guard lock(cq.lock);
  // Armed for all stays so when armed again for less.
  cq.armed_solicited = solicited_only != 0 && !(cq.armed && !cq.armed_solicited);
  cq.armed = true;
  return 0;
}

}  // namespace

void fill_ops(ibv_context_ops& ops) {
  ops.post_send = post_send;
  ops.post_recv = post_recv;
  ops.post_srq_recv = post_srq_recv;
  ops.poll_cq = poll_cq;
  ops.req_notify_cq = req_notify_cq;
}

}  // namespace symvirt::hooks::verbs::testing
