// The state machine of queue pairs: the kernel's qp_state_table (drivers/infiniband/core/verbs.c),
// and the values that the kernel and its drivers check.
#include <cerrno>

#include "pmix-hooks/ranks/verbs/testing/objects.h"

namespace symvirt::hooks::verbs::testing {
namespace {

struct Allowed {
  bool transition = false;
  int required = 0;
  int optional = 0;
};

constexpr int kPathOptions = IBV_QP_ALT_PATH | IBV_QP_ACCESS_FLAGS | IBV_QP_PATH_MIG_STATE;

Allowed from_init(ibv_qp_type type, ibv_qp_state to) {
  const int start = IBV_QP_PKEY_INDEX | IBV_QP_PORT;
  if (to == IBV_QPS_INIT)
    return {true, 0, start | (type == IBV_QPT_UD ? IBV_QP_QKEY : IBV_QP_ACCESS_FLAGS)};
  if (to != IBV_QPS_RTR) return {};
  if (type == IBV_QPT_UD) return {true, 0, IBV_QP_PKEY_INDEX | IBV_QP_QKEY};
  int required = IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN;
  if (type == IBV_QPT_RC) required |= IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER;
  return {true, required, IBV_QP_ALT_PATH | IBV_QP_ACCESS_FLAGS | IBV_QP_PKEY_INDEX};
}

int running_options(ibv_qp_type type) {
  if (type == IBV_QPT_UD) return IBV_QP_CUR_STATE | IBV_QP_QKEY;
  return IBV_QP_CUR_STATE | kPathOptions | (type == IBV_QPT_RC ? IBV_QP_MIN_RNR_TIMER : 0);
}

Allowed from_rtr(ibv_qp_type type, ibv_qp_state to) {
  if (to != IBV_QPS_RTS) return {};
  int required = IBV_QP_SQ_PSN;
  if (type == IBV_QPT_RC)
    required |= IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC;
  return {true, required, running_options(type)};
}

Allowed from_sqd(ibv_qp_type type, ibv_qp_state to) {
  if (to == IBV_QPS_RTS) return {true, 0, running_options(type)};
  if (to != IBV_QPS_SQD) return {};
  if (type == IBV_QPT_UD) return {true, 0, IBV_QP_PKEY_INDEX | IBV_QP_QKEY};
  int optional = IBV_QP_AV | kPathOptions | IBV_QP_PKEY_INDEX;
  if (type == IBV_QPT_RC)
    optional |= IBV_QP_PORT | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
                IBV_QP_MAX_QP_RD_ATOMIC | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER;
  return {true, 0, optional};
}

Allowed allowed(ibv_qp_type type, ibv_qp_state from, ibv_qp_state to) {
  // From RESET there is no way to ERR (the kernel's ib_modify_qp_is_ok).
  if (to == IBV_QPS_RESET || (to == IBV_QPS_ERR && from != IBV_QPS_RESET)) return {true, 0, 0};
  switch (from) {
    case IBV_QPS_RESET:
      if (to != IBV_QPS_INIT) return {};
      return {true,
              IBV_QP_PKEY_INDEX | IBV_QP_PORT |
                  (type == IBV_QPT_UD ? IBV_QP_QKEY : IBV_QP_ACCESS_FLAGS),
              0};
    case IBV_QPS_INIT:
      return from_init(type, to);
    case IBV_QPS_RTR:
      return from_rtr(type, to);
    case IBV_QPS_RTS:
      if (to == IBV_QPS_RTS) return {true, 0, running_options(type)};
      return {to == IBV_QPS_SQD, 0, IBV_QP_EN_SQD_ASYNC_NOTIFY};
    case IBV_QPS_SQD:
      return from_sqd(type, to);
    case IBV_QPS_SQE:
      return {to == IBV_QPS_RTS && type != IBV_QPT_RC, 0, running_options(type)};
    case IBV_QPS_ERR:
    case IBV_QPS_UNKNOWN:
      return {};
  }
  return {};
}

bool path_valid(const Device& device, const ibv_ah_attr& path) {
  if (path.port_num > 1) return false;
  if (!path.is_global) return !device.spec.ethernet && path.dlid != 0;
  return path.grh.sgid_index < device.spec.gids.size();
}

bool values_valid(const Device& device, const ibv_qp_attr& a, int mask) {
  if ((mask & IBV_QP_PORT) && a.port_num != 1) return false;
  if ((mask & IBV_QP_PKEY_INDEX) && a.pkey_index != 0) return false;
  if ((mask & IBV_QP_AV) && !path_valid(device, a.ah_attr)) return false;
  if ((mask & IBV_QP_ALT_PATH)) return false;
  if ((mask & IBV_QP_PATH_MTU) && (a.path_mtu < IBV_MTU_256 || a.path_mtu > device.spec.mtu))
    return false;
  if ((mask & IBV_QP_TIMEOUT) && a.timeout > 31) return false;
  if ((mask & IBV_QP_RETRY_CNT) && a.retry_cnt > 7) return false;
  if ((mask & IBV_QP_RNR_RETRY) && a.rnr_retry > 7) return false;
  if ((mask & IBV_QP_MIN_RNR_TIMER) && a.min_rnr_timer > 31) return false;
  if ((mask & IBV_QP_MAX_QP_RD_ATOMIC) && a.max_rd_atomic > device.spec.max_rd_atom) return false;
  if ((mask & IBV_QP_MAX_DEST_RD_ATOMIC) && a.max_dest_rd_atomic > device.spec.max_rd_atom)
    return false;
  return !((mask & IBV_QP_DEST_QPN) && a.dest_qp_num > 0xffffff);
}

void take(Qp& qp, const ibv_qp_attr& a, int mask) {
  ibv_qp_attr& to = qp.attr;
  if (mask & IBV_QP_ACCESS_FLAGS) to.qp_access_flags = a.qp_access_flags;
  if (mask & IBV_QP_PKEY_INDEX) to.pkey_index = a.pkey_index;
  if (mask & IBV_QP_PORT) to.port_num = a.port_num;
  if (mask & IBV_QP_QKEY) to.qkey = a.qkey;
  if (mask & IBV_QP_AV) to.ah_attr = a.ah_attr;
  if (mask & IBV_QP_PATH_MTU) to.path_mtu = a.path_mtu;
  if (mask & IBV_QP_TIMEOUT) to.timeout = a.timeout;
  if (mask & IBV_QP_RETRY_CNT) to.retry_cnt = a.retry_cnt;
  if (mask & IBV_QP_RNR_RETRY) to.rnr_retry = a.rnr_retry;
  if (mask & IBV_QP_MAX_QP_RD_ATOMIC) to.max_rd_atomic = a.max_rd_atomic;
  if (mask & IBV_QP_MAX_DEST_RD_ATOMIC) to.max_dest_rd_atomic = a.max_dest_rd_atomic;
  if (mask & IBV_QP_MIN_RNR_TIMER) to.min_rnr_timer = a.min_rnr_timer;
  if (mask & IBV_QP_DEST_QPN) to.dest_qp_num = a.dest_qp_num;
  if (mask & IBV_QP_EN_SQD_ASYNC_NOTIFY) to.en_sqd_async_notify = a.en_sqd_async_notify;
  if (mask & IBV_QP_RQ_PSN) qp.rq_psn = a.rq_psn & 0xffffff;
  if (mask & IBV_QP_SQ_PSN) qp.sq_psn = a.sq_psn & 0xffffff;
}

void stop_sending(Qp& qp, ibv_qp_state from) {
  const std::lock_guard lock(qp.sq_lock);
  qp.wire_until = from == IBV_QPS_RTS ? qp.posted : 0;
}

void drop_all_work(Qp& qp) {
  ++qp.resets;
  qp.wire_until = 0;
  const std::scoped_lock lock(qp.sq_lock, qp.rq.lock);
  qp.sq.clear();
  qp.sq_slots = std::make_shared<Slots>();
  qp.posted = 0;
  qp.rq.work.clear();
  qp.rq.slots = std::make_shared<Slots>();
  qp.rq.posted = 0;
  qp.retries = qp.rnr_retries = qp.acks_held = 0;
  qp.drained_told = qp.last_wqe_told = false;
}

}  // namespace

int modify(Qp& qp, const ibv_qp_attr& attr, int mask) {
  {
    const std::lock_guard lock(qp.exec);
    const ibv_qp_state from = qp.now;
    if ((mask & IBV_QP_CUR_STATE) && attr.cur_qp_state != from) return EINVAL;
    const ibv_qp_state to = (mask & IBV_QP_STATE) ? attr.qp_state : from;
    const Allowed rule = allowed(qp.qp_type, from, to);
    const int given = mask & ~IBV_QP_STATE;
    if (!rule.transition || (given & rule.required) != rule.required) return EINVAL;
    if ((given & ~(rule.required | rule.optional | IBV_QP_CUR_STATE)) != 0) return EINVAL;
    if (!values_valid(*qp.device, attr, mask)) return EINVAL;
    take(qp, attr, mask);
    if (to == IBV_QPS_RESET) drop_all_work(qp);
    if (to == IBV_QPS_RTS) {
      qp.retries = qp.attr.retry_cnt;
      qp.rnr_retries = qp.attr.rnr_retry;
      qp.drained_told = false;
    }
    if (to == IBV_QPS_ERR && from != IBV_QPS_ERR) {
      stop_sending(qp, from);
      to_error(qp);
    } else {
      qp.now = to;
    }
    qp.state = to;
  }
  qp.device->schedule(qp);
  return 0;
}

}  // namespace symvirt::hooks::verbs::testing
