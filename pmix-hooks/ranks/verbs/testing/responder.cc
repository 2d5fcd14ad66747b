// What a queue pair does with a message that arrives.
#include <arpa/inet.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "pmix-hooks/ranks/verbs/testing/objects.h"

namespace symvirt::hooks::verbs::testing {
namespace {

constexpr std::uint32_t kPsnMask = 0xffffff;
constexpr std::uint32_t kPsnHalf = 0x800000;

bool with_receive(ibv_wr_opcode opcode) {
  return opcode == IBV_WR_SEND || opcode == IBV_WR_SEND_WITH_IMM ||
         opcode == IBV_WR_RDMA_WRITE_WITH_IMM;
}

void raise_srq_limit(Qp& qp) {
  Srq& srq = *qp.shared;
  ibv_async_event event{};
  event.element.srq = &srq;
  event.event_type = IBV_EVENT_SRQ_LIMIT_REACHED;
  raise_event(*static_cast<Context*>(srq.context), event);
}

std::optional<RecvWqe> take_receive(Qp& qp) {
  RecvQueue& queue = qp.receives();
  bool limit = false;
  std::optional<RecvWqe> taken;
  {
    const std::lock_guard lock(queue.lock);
    if (queue.work.empty()) return std::nullopt;
    taken = std::move(queue.work.front());
    queue.work.pop_front();
    limit = queue.limit != 0 && queue.work.size() < queue.limit;
    if (limit) queue.limit = 0;
  }
  if (limit && qp.shared != nullptr) raise_srq_limit(qp);
  return taken;
}

void complete_receive(Qp& qp, const RecvWqe& receive, ibv_wc wc, bool solicited) {
  wc.wr_id = receive.wr_id;
  wc.qp_num = qp.qp_num;
  Cqe cqe{wc, solicited, &qp, nullptr, 0};
  if (qp.device->spec.free_slots_at_poll) {
    cqe.slots = qp.receives().slots;
  } else {
    ++qp.receives().slots->freed;
  }
  complete(*static_cast<Cq*>(qp.recv_cq), std::move(cqe));
}

ibv_wc wc_of(const Message& m) {
  ibv_wc wc{};
  wc.status = IBV_WC_SUCCESS;
  wc.opcode = m.opcode == IBV_WR_RDMA_WRITE_WITH_IMM ? IBV_WC_RECV_RDMA_WITH_IMM : IBV_WC_RECV;
  wc.byte_len = static_cast<std::uint32_t>(m.payload.size());
  wc.src_qp = m.from_qpn;
  wc.slid = m.from->spec.lid;
  wc.sl = m.path.sl;
  if (m.opcode != IBV_WR_SEND) {
    wc.wc_flags |= IBV_WC_WITH_IMM;
    wc.imm_data = m.imm_data;
  }
  return wc;
}

Reply nak(ibv_wc_status status) { return {Fate::kNak, status, 0, {}}; }

// The responder's side of an error it made itself with a receive.
Reply receive_failed(Qp& qp, const RecvWqe& receive, ibv_wc_status status) {
  ibv_wc wc{};
  wc.status = status;
  complete_receive(qp, receive, wc, true);
  to_error(qp);
  return nak(status == IBV_WC_LOC_LEN_ERR ? IBV_WC_REM_INV_REQ_ERR : IBV_WC_REM_OP_ERR);
}

Reply refuse(Qp& qp, ibv_wc_status status) {
  raise_qp_event(qp,
                 status == IBV_WC_REM_ACCESS_ERR ? IBV_EVENT_QP_ACCESS_ERR : IBV_EVENT_QP_REQ_ERR);
  to_error(qp);
  return nak(status);
}

Reply execute_one_sided(Qp& qp, const Message& m) {
  Reply reply{Fate::kExecuted, IBV_WC_SUCCESS, 0, {}};
  const unsigned access = qp.attr.qp_access_flags;
  ibv_wc_status status = IBV_WC_REM_ACCESS_ERR;
  if (m.opcode == IBV_WR_RDMA_WRITE) {
    if (access & IBV_ACCESS_REMOTE_WRITE) status = remote_write(*qp.device, qp.pd, m);
  } else if (m.opcode == IBV_WR_RDMA_READ) {
    if (access & IBV_ACCESS_REMOTE_READ) status = remote_read(*qp.device, qp.pd, m, reply.data);
  } else if (access & IBV_ACCESS_REMOTE_ATOMIC) {
    status = remote_atomic(*qp.device, qp.pd, m, reply.data);
  }
  return status == IBV_WC_SUCCESS ? reply : refuse(qp, status);
}

Reply execute_with_receive(Qp& qp, const Message& m) {
  const bool write = m.opcode == IBV_WR_RDMA_WRITE_WITH_IMM;
  const auto receive = take_receive(qp);
  if (!receive) return {Fate::kRnr, IBV_WC_SUCCESS, qp.attr.min_rnr_timer, {}};
  if (write) {
    ibv_wc_status status = IBV_WC_REM_ACCESS_ERR;
    if (qp.attr.qp_access_flags & IBV_ACCESS_REMOTE_WRITE)
      status = remote_write(*qp.device, qp.pd, m);
    if (status != IBV_WC_SUCCESS) {
      const std::lock_guard lock(qp.receives().lock);
      qp.receives().work.push_front(*receive);
      return refuse(qp, status);
    }
  } else {
    const auto status = scatter(*qp.device, qp.pd, receive->list, 0, m.payload);
    if (status != IBV_WC_SUCCESS) return receive_failed(qp, *receive, status);
  }
  complete_receive(qp, *receive, wc_of(m), m.solicited);
  return {Fate::kExecuted, IBV_WC_SUCCESS, 0, {}};
}

Bytes with_grh(const Message& m) {
  ibv_grh grh{};
  grh.version_tclass_flow = htonl(6u << 28 | m.path.grh.traffic_class << 20);
  grh.paylen = htons(static_cast<std::uint16_t>(m.payload.size()));
  grh.next_hdr = 0x1b;
  grh.hop_limit = m.path.grh.hop_limit;
  grh.sgid = m.from_gid;
  grh.dgid = m.path.grh.dgid;
  static_assert(sizeof(grh) == kGrhBytes);
  Bytes all(kGrhBytes + m.payload.size());
  std::memcpy(all.data(), &grh, kGrhBytes);
  std::copy(m.payload.begin(), m.payload.end(), all.begin() + kGrhBytes);
  return all;
}

// Whatever does not fit is dropped, as on the wire.
void deliver_datagram(Qp& qp, const Message& m) {
  if (m.qkey != qp.attr.qkey) return;
  const auto receive = take_receive(qp);
  if (!receive) return;
  const bool global = m.path.is_global != 0;
  const auto status = global ? scatter(*qp.device, qp.pd, receive->list, 0, with_grh(m))
                             : scatter(*qp.device, qp.pd, receive->list, kGrhBytes, m.payload);
  if (status != IBV_WC_SUCCESS) {
    const std::lock_guard lock(qp.receives().lock);
    qp.receives().work.push_front(*receive);
    return;
  }
  ibv_wc wc = wc_of(m);
  wc.byte_len += kGrhBytes;
  if (global) wc.wc_flags |= IBV_WC_GRH;
  complete_receive(qp, *receive, wc, m.solicited);
}

Reply deliver_connected(Qp& qp, const Message& m) {
  if (qp.attr.dest_qp_num != m.from_qpn || !leads_to(qp.attr.ah_attr, *m.from)) return {};
  const bool reliable = m.type == IBV_QPT_RC;
  const std::uint32_t ahead = (m.psn - qp.rq_psn) & kPsnMask;
  if (reliable && ahead != 0) {
    if (ahead < kPsnHalf) return {};
    if (m.opcode == IBV_WR_RDMA_READ) return execute_one_sided(qp, m);
    // A duplicate is acknowledged, and not executed again; an old atomic's result is not kept.
    if (m.opcode == IBV_WR_ATOMIC_CMP_AND_SWP || m.opcode == IBV_WR_ATOMIC_FETCH_AND_ADD) return {};
    return {Fate::kExecuted, IBV_WC_SUCCESS, 0, {}};
  }
  const Reply reply =
      with_receive(m.opcode) ? execute_with_receive(qp, m) : execute_one_sided(qp, m);
  if (reply.fate == Fate::kExecuted) {
    qp.rq_psn = (m.psn + m.packets) & kPsnMask;
    ++qp.device->fabric.executed;
  }
  return reply;
}

}  // namespace

bool leads_to(const ibv_ah_attr& path, const Device& device) {
  if (!path.is_global) return !device.spec.ethernet && path.dlid == device.spec.lid;
  return std::any_of(device.spec.gids.begin(), device.spec.gids.end(), [&](const ibv_gid& gid) {
    return std::memcmp(gid.raw, path.grh.dgid.raw, sizeof(gid.raw)) == 0;
  });
}

void raise_qp_event(Qp& qp, ibv_event_type type) {
  ibv_async_event event{};
  event.element.qp = &qp;
  event.event_type = type;
  raise_event(*static_cast<Context*>(qp.context), event);
}

void to_error(Qp& qp) {
  qp.now = IBV_QPS_ERR;
  qp.device->schedule(qp);
}

void flush_receives(Qp& qp) {
  if (qp.shared != nullptr) {
    if (!qp.last_wqe_told) raise_qp_event(qp, IBV_EVENT_QP_LAST_WQE_REACHED);
    qp.last_wqe_told = true;
    return;
  }
  while (const auto receive = take_receive(qp)) {
    ibv_wc wc{};
    wc.status = IBV_WC_WR_FLUSH_ERR;
    complete_receive(qp, *receive, wc, true);
  }
}

Reply deliver(Device& device, const Message& message) {
  if (!device.plugged || !device.port_up) return {};
  std::shared_ptr<Qp> qp;
  {
    const std::shared_lock lock(device.qp_lock);
    const auto found = device.qps.find(message.to_qpn);
    if (found == device.qps.end()) return {};
    qp = found->second;
  }
  const std::lock_guard lock(qp->exec);
  const ibv_qp_state state = qp->now;
  if (qp->dead || qp->qp_type != message.type) return {};
  if (state == IBV_QPS_RESET || state == IBV_QPS_INIT || state == IBV_QPS_ERR) return {};
  if (message.type != IBV_QPT_UD) return deliver_connected(*qp, message);
  deliver_datagram(*qp, message);
  return {};
}

}  // namespace symvirt::hooks::verbs::testing
