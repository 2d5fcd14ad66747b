#include "pmix-hooks/ranks/verbs/queue_pair.h"

#include <algorithm>
#include <cerrno>

#include "pmix-hooks/ranks/verbs/addresses.h"
#include "pmix-hooks/ranks/verbs/exports.h"

namespace symvirt::hooks::verbs {
namespace {

constexpr std::uint32_t kPsnMask = 0xff'ffff;

int modify(VQp& qp, ibv_qp_attr& attr, int mask) {
  return real_verbs()->modify_qp(qp.real, &attr, mask);
}

bool is_reliable(const VQp& qp) { return qp.init.qp_type == IBV_QPT_RC; }

}  // namespace

bool make_real_qp(VQp& qp) {
  ibv_qp_init_attr init = qp.init;
  init.qp_context = &qp.pub;
  init.send_cq = of(qp.init.send_cq)->real;
  init.recv_cq = of(qp.init.recv_cq)->real;
  init.srq = qp.srq == nullptr ? nullptr : qp.srq->real;
  init.cap.max_send_wr += 1;  // for the marker of a quiesce
  ibv_pd* const pd = of(qp.pub.pd)->real;
  qp.real = real_verbs()->create_qp(pd, &init);
  if (qp.real != nullptr) {
    init.cap.max_send_wr -= 1;
  } else {  // at the device's limit: the marker waits for a place then
    init.cap = qp.init.cap;
    qp.real = real_verbs()->create_qp(pd, &init);
  }
  if (qp.real == nullptr) return false;
  qp.cap = init.cap;
  return true;
}

void remember_attributes(VQp& qp, const ibv_qp_attr& attr, int mask) {
  ibv_qp_attr& a = qp.attr;
  const auto keep = [&](int bit, auto ibv_qp_attr::*field) {
    if ((mask & bit) != 0) a.*field = attr.*field;
  };
  if ((mask & IBV_QP_STATE) != 0 && attr.qp_state == IBV_QPS_RESET) {
    qp.attr_mask = 0;
    a = {};
  }
  keep(IBV_QP_ACCESS_FLAGS, &ibv_qp_attr::qp_access_flags);
  keep(IBV_QP_PKEY_INDEX, &ibv_qp_attr::pkey_index);
  keep(IBV_QP_PORT, &ibv_qp_attr::port_num);
  keep(IBV_QP_QKEY, &ibv_qp_attr::qkey);
  keep(IBV_QP_AV, &ibv_qp_attr::ah_attr);
  keep(IBV_QP_PATH_MTU, &ibv_qp_attr::path_mtu);
  keep(IBV_QP_TIMEOUT, &ibv_qp_attr::timeout);
  keep(IBV_QP_RETRY_CNT, &ibv_qp_attr::retry_cnt);
  keep(IBV_QP_RNR_RETRY, &ibv_qp_attr::rnr_retry);
  keep(IBV_QP_RQ_PSN, &ibv_qp_attr::rq_psn);
  keep(IBV_QP_MAX_QP_RD_ATOMIC, &ibv_qp_attr::max_rd_atomic);
  keep(IBV_QP_MIN_RNR_TIMER, &ibv_qp_attr::min_rnr_timer);
  keep(IBV_QP_SQ_PSN, &ibv_qp_attr::sq_psn);
  keep(IBV_QP_MAX_DEST_RD_ATOMIC, &ibv_qp_attr::max_dest_rd_atomic);
  keep(IBV_QP_DEST_QPN, &ibv_qp_attr::dest_qp_num);
  qp.attr_mask |= mask;
}

ibv_qp_attr real_attributes(VQp& qp, const ibv_qp_attr& attr, int mask) {
  ibv_qp_attr out = attr;
  // The marker is an RDMA write of nothing, and the peer's marker comes here. Without a memory key
  // a write of more than nothing is refused as before.
  if ((mask & IBV_QP_ACCESS_FLAGS) != 0 && qp.init.qp_type != IBV_QPT_UD)
    out.qp_access_flags |= IBV_ACCESS_REMOTE_WRITE;
  if ((mask & IBV_QP_AV) != 0) out.ah_attr = real_address(*qp.context, attr.ah_attr);
  if ((mask & IBV_QP_SQ_PSN) != 0) out.sq_psn = (attr.sq_psn + qp.psn_shift) & kPsnMask;
  if ((mask & IBV_QP_DEST_QPN) == 0) return out;
  qp.rkeys = nullptr;
  const Directory* const directory = qp.layer->directory.get();
  if (directory == nullptr) return out;
  const Address there = Address::of(qp.attr.ah_attr);
  if (const auto found = directory->find(there, attr.dest_qp_num, qp.pub.qp_num)) {
    out.dest_qp_num = found->qp->real_number;
    qp.rkeys = found->rkeys;
  } else if (const Directory::Place* place = directory->place(there)) {
    qp.rkeys = &place->rkeys;  // a new one of a process there: which, is not known
  }
  return out;
}

void make_visible(const VQp& qp, ibv_qp_attr& attr, ibv_qp_init_attr& init) {
  if ((qp.attr_mask & IBV_QP_AV) != 0) attr.ah_attr = qp.attr.ah_attr;
  if ((qp.attr_mask & IBV_QP_DEST_QPN) != 0) attr.dest_qp_num = qp.attr.dest_qp_num;
  if ((qp.attr_mask & IBV_QP_ACCESS_FLAGS) != 0) attr.qp_access_flags = qp.attr.qp_access_flags;
  attr.cap = qp.cap;
  init.qp_context = qp.init.qp_context;
  init.send_cq = qp.init.send_cq;
  init.recv_cq = qp.init.recv_cq;
  init.srq = qp.init.srq;
  init.cap = qp.cap;
}

void forget_work(VQp& qp) {
  qp.sends.forget();
  qp.recvs.forget();
  qp.sends_completed = 0;
  qp.recvs_completed = 0;
  qp.srq_received = 0;
  qp.marker.forget();
  qp.last_receive.forget();
  qp.errored = false;
  qp.psn_shift = 0;
  forget_taking_back(qp);
}

void forget_taking_back(VQp& qp) {
  qp.stuck = qp.taken_back = qp.all_back = false;
  qp.flushed = 0;
}

bool is_connected(const VQp& qp) {
  return qp.init.qp_type != IBV_QPT_UD && (qp.attr_mask & IBV_QP_DEST_QPN) != 0 &&
         qp.pub.state != IBV_QPS_RESET && qp.pub.state != IBV_QPS_INIT;
}

const QpStatement* peer_of(const VQp& qp, const Directory& directory) {
  if (!is_connected(qp)) return nullptr;
  const auto found =
      directory.find(Address::of(qp.attr.ah_attr), qp.attr.dest_qp_num, qp.pub.qp_num);
  if (!found || found->qp->peer_number != qp.pub.qp_num) return nullptr;
  return (found->qp->flags & kQpConnected) != 0 ? found->qp : nullptr;
}

bool can_send(const VQp& qp) {
  return qp.pub.state == IBV_QPS_RTS && !qp.errored.load(std::memory_order_relaxed);
}

int to_init(VQp& qp) {
  ibv_qp_attr attr = qp.attr;
  attr.qp_state = IBV_QPS_INIT;
  int mask = IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT;
  mask |= qp.init.qp_type == IBV_QPT_UD ? IBV_QP_QKEY : IBV_QP_ACCESS_FLAGS;
  attr = real_attributes(qp, attr, mask);
  return modify(qp, attr, mask);
}

int to_ready_to_receive(VQp& qp) {
  ibv_qp_attr attr = qp.attr;
  attr.qp_state = IBV_QPS_RTR;
  int mask = IBV_QP_STATE;
  if (qp.init.qp_type != IBV_QPT_UD)
    mask |= IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN;
  if (is_reliable(qp)) mask |= IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER;
  attr.rq_psn = (attr.rq_psn + qp.psn_shift) & kPsnMask;
  attr = real_attributes(qp, attr, mask);
  // Both ends come to the same: the least of what they wanted, and of what the two ports do now.
  if (const auto* directory = qp.layer->directory.get()) {
    const auto* place = directory->place(Address::of(qp.attr.ah_attr));
    const std::size_t port = qp.attr.port_num;
    std::uint32_t mtu = attr.path_mtu;
    if (place != nullptr && place->mtu != 0) mtu = std::min(mtu, place->mtu);
    if (port >= 1 && port <= qp.context->now.size())
      mtu = std::min<std::uint32_t>(mtu, qp.context->now[port - 1].mtu);
    attr.path_mtu = static_cast<ibv_mtu>(mtu);
  }
  return modify(qp, attr, mask);
}

int to_ready_to_send(VQp& qp) {
  ibv_qp_attr attr = qp.attr;
  attr.qp_state = IBV_QPS_RTS;
  attr.sq_psn = (attr.sq_psn + qp.psn_shift) & kPsnMask;
  int mask = IBV_QP_STATE | IBV_QP_SQ_PSN;
  if (is_reliable(qp))
    mask |= IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC;
  return modify(qp, attr, mask);
}

int to_error(VQp& qp) {
  ibv_qp_attr attr{};
  attr.qp_state = IBV_QPS_ERR;
  return modify(qp, attr, IBV_QP_STATE);
}

int to_reset(VQp& qp) {
  ibv_qp_attr attr{};
  attr.qp_state = IBV_QPS_RESET;
  return modify(qp, attr, IBV_QP_STATE);
}

}  // namespace symvirt::hooks::verbs
