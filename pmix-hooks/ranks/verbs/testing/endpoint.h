// One guest's worth of verbs over a RealVerbs, for tests of the double and the benchmarks: a
// context, a domain, one completion queue, and queue pairs that are easily connected.
#pragma once

#include <infiniband/verbs.h>

#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#include "pmix-hooks/ranks/verbs/real_verbs.h"

namespace symvirt::hooks::verbs::testing {

inline constexpr int kAllAccess = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE |
                                  IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC;

struct ConnectOptions {
  std::uint8_t rnr_retry = 7;
  std::uint8_t retry_cnt = 1;
  std::uint8_t timeout = 4;  // 65 us
  std::uint32_t sq_psn = 100;
  std::uint32_t rq_psn = 100;
  unsigned access = kAllAccess;
};

// No status of libibverbs', though a value that its enum can have.
inline constexpr auto kNothingCame = static_cast<ibv_wc_status>(31);

class Endpoint {
 public:
  explicit Endpoint(const RealVerbs& verbs, int cqe = 4096) : v(verbs) {
    ibv_device** list = v.get_device_list(nullptr);
    context = list[0] != nullptr ? v.open_device(list[0]) : nullptr;
    v.free_device_list(list);
    if (context == nullptr) return;
    channel = v.create_comp_channel(context);
    pd = v.alloc_pd(context);
    cq = v.create_cq(context, cqe, this, channel, 0);
    v.query_port(context, 1, &port);
    v.query_gid(context, 1, 0, &gid);
    memory.resize(1 << 16);
    mr = v.reg_mr(pd, memory.data(), memory.size(), kAllAccess);
  }
  ~Endpoint() {
    if (context == nullptr) return;
    for (ibv_qp* qp : qps) v.destroy_qp(qp);
    if (srq != nullptr) v.destroy_srq(srq);
    v.dereg_mr(mr);
    v.destroy_cq(cq);
    v.destroy_comp_channel(channel);
    v.dealloc_pd(pd);
    v.close_device(context);
  }
  Endpoint(const Endpoint&) = delete;
  Endpoint& operator=(const Endpoint&) = delete;

  ibv_qp* make_qp(ibv_qp_type type = IBV_QPT_RC, std::uint32_t depth = 64) {
    ibv_qp_init_attr init{};
    init.send_cq = init.recv_cq = cq;
    init.srq = srq;
    init.cap = {depth, depth, 4, 4, 64};
    init.qp_type = type;
    ibv_qp* qp = v.create_qp(pd, &init);
    if (qp != nullptr) qps.push_back(qp);
    return qp;
  }

  ibv_ah_attr path_to(const Endpoint& peer) const {
    ibv_ah_attr path{};
    path.port_num = 1;
    path.is_global = port.link_layer == IBV_LINK_LAYER_ETHERNET;
    path.dlid = peer.port.lid;
    path.grh.dgid = peer.gid;
    path.grh.hop_limit = 64;
    return path;
  }

  int to_init(ibv_qp* qp, unsigned access = kAllAccess) {
    ibv_qp_attr a{};
    a.qp_state = IBV_QPS_INIT;
    a.port_num = 1;
    a.qkey = 0x1234;
    a.qp_access_flags = access;
    const int last = qp->qp_type == IBV_QPT_UD ? IBV_QP_QKEY : IBV_QP_ACCESS_FLAGS;
    return v.modify_qp(qp, &a, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | last);
  }
  int to_rtr(ibv_qp* qp, const Endpoint& peer, std::uint32_t peer_qpn,
             const ConnectOptions& o = {}) {
    ibv_qp_attr a{};
    a.qp_state = IBV_QPS_RTR;
    a.path_mtu = IBV_MTU_1024;
    a.dest_qp_num = peer_qpn;
    a.rq_psn = o.rq_psn;
    a.max_dest_rd_atomic = 4;
    a.min_rnr_timer = 1;
    a.ah_attr = path_to(peer);
    int mask = IBV_QP_STATE;
    if (qp->qp_type != IBV_QPT_UD)
      mask |= IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN;
    if (qp->qp_type == IBV_QPT_RC) mask |= IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER;
    return v.modify_qp(qp, &a, mask);
  }
  int to_rts(ibv_qp* qp, const ConnectOptions& o = {}) {
    ibv_qp_attr a{};
    a.qp_state = IBV_QPS_RTS;
    a.timeout = o.timeout;
    a.retry_cnt = o.retry_cnt;
    a.rnr_retry = o.rnr_retry;
    a.sq_psn = o.sq_psn;
    a.max_rd_atomic = 4;
    int mask = IBV_QP_STATE | IBV_QP_SQ_PSN;
    if (qp->qp_type == IBV_QPT_RC)
      mask |= IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC;
    return v.modify_qp(qp, &a, mask);
  }
  int connect(ibv_qp* qp, const Endpoint& peer, std::uint32_t peer_qpn,
              const ConnectOptions& o = {}) {
    int error = to_init(qp, o.access);
    if (error == 0) error = to_rtr(qp, peer, peer_qpn, o);
    if (error == 0) error = to_rts(qp, o);
    return error;
  }
  int set_state(ibv_qp* qp, ibv_qp_state state) {
    ibv_qp_attr a{};
    a.qp_state = state;
    return v.modify_qp(qp, &a, IBV_QP_STATE);
  }
  ibv_qp_state state(ibv_qp* qp) {
    ibv_qp_attr a{};
    ibv_qp_init_attr init{};
    v.query_qp(qp, &a, IBV_QP_STATE, &init);
    return a.qp_state;
  }

  ibv_sge sge(std::size_t offset, std::uint32_t length) {
    return {reinterpret_cast<std::uintptr_t>(memory.data() + offset), length, mr->lkey};
  }
  std::uint64_t address(std::size_t offset) const {
    return reinterpret_cast<std::uintptr_t>(memory.data() + offset);
  }
  int post(ibv_qp* qp, ibv_send_wr wr, std::size_t offset, std::uint32_t length) {
    ibv_sge one = sge(offset, length);
    wr.sg_list = &one;
    wr.num_sge = 1;
    ibv_send_wr* bad = nullptr;
    return context->ops.post_send(qp, &wr, &bad);
  }
  int send(ibv_qp* qp, std::uint64_t id, std::size_t offset, std::uint32_t length,
           unsigned flags = IBV_SEND_SIGNALED) {
    ibv_send_wr wr{};
    wr.wr_id = id;
    wr.opcode = IBV_WR_SEND;
    wr.send_flags = flags;
    return post(qp, wr, offset, length);
  }
  int receive(ibv_qp* qp, std::uint64_t id, std::size_t offset, std::uint32_t length) {
    ibv_sge one = sge(offset, length);
    ibv_recv_wr wr{id, nullptr, &one, 1};
    ibv_recv_wr* bad = nullptr;
    return srq != nullptr ? context->ops.post_srq_recv(srq, &wr, &bad)
                          : context->ops.post_recv(qp, &wr, &bad);
  }
  // Within two seconds; status kNothingCame otherwise.
  ibv_wc wait_wc(std::chrono::milliseconds limit = std::chrono::seconds(2)) {
    ibv_wc wc{};
    const auto end = std::chrono::steady_clock::now() + limit;
    do {
      if (context->ops.poll_cq(cq, 1, &wc) == 1) return wc;
      std::this_thread::yield();
    } while (std::chrono::steady_clock::now() < end);
    wc.status = kNothingCame;
    return wc;
  }

  const RealVerbs v;
  ibv_context* context = nullptr;
  ibv_comp_channel* channel = nullptr;
  ibv_pd* pd = nullptr;
  ibv_cq* cq = nullptr;
  ibv_srq* srq = nullptr;
  ibv_mr* mr = nullptr;
  ibv_port_attr port{};
  ibv_gid gid{};
  std::vector<std::uint8_t> memory;
  std::vector<ibv_qp*> qps;
};

}  // namespace symvirt::hooks::verbs::testing
