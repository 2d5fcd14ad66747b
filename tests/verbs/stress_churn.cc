// Control calls all the time, beside the traffic: what a quiesce must wait for, and what must wait
// for it.
#include <cstring>

#include "tests/verbs/stress_rank.h"

namespace symvirt::verbs_stress {

void Rank::churn_loop() {
  if (options_.on_thread) options_.on_thread();
  Random random(mix(options_.seed) + 77 + static_cast<std::uint64_t>(rank()));
  while (!ending_ && !failed()) {
    if (!churn_once(random)) return fail("a control call failed");
    ++churned_;
    std::this_thread::sleep_for(std::chrono::microseconds(random.below(2000)));
  }
}

bool Rank::churn_once(Random& random) {
  std::vector<std::uint8_t> memory(4096 + random.below(4096));
  ibv_mr* mr = ibv_reg_mr(pd_, memory.data(), memory.size(), IBV_ACCESS_LOCAL_WRITE);
  if (mr == nullptr) return false;
  ibv_pd* pd = ibv_alloc_pd(context_);
  ibv_comp_channel* channel = random.chance(50) ? ibv_create_comp_channel(context_) : nullptr;
  ibv_cq* cq = ibv_create_cq(context_, 16, nullptr, channel, 0);
  if (pd == nullptr || cq == nullptr) return false;
  ibv_qp_init_attr init{};
  init.send_cq = init.recv_cq = cq;
  init.cap = {4, 4, 1, 1, 0};
  init.qp_type = random.chance(50) ? IBV_QPT_RC : IBV_QPT_UD;
  ibv_qp* qp = ibv_create_qp(pd, &init);
  if (qp == nullptr) return false;
  ibv_qp_attr attr{};
  attr.qp_state = IBV_QPS_INIT;
  attr.port_num = 1;
  attr.qkey = kQkey;
  const int last = init.qp_type == IBV_QPT_UD ? IBV_QP_QKEY : IBV_QP_ACCESS_FLAGS;
  if (ibv_modify_qp(qp, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | last) != 0)
    return false;
  if (random.chance(30)) std::this_thread::sleep_for(std::chrono::milliseconds(random.below(20)));
  if (ibv_query_qp(qp, &attr, IBV_QP_STATE, &init) != 0 || attr.qp_state != IBV_QPS_INIT)
    return false;
  ibv_port_attr port{};
  if (ibv_query_port(context_, 1, &port) != 0) return false;
  // Posted, and flushed when the queue pair is stopped.
  ibv_mr* own = ibv_reg_mr(pd, memory.data(), memory.size(), IBV_ACCESS_LOCAL_WRITE);
  if (own == nullptr) return false;
  ibv_sge sge{reinterpret_cast<std::uintptr_t>(memory.data()), 64, own->lkey};
  ibv_recv_wr wr{7, nullptr, &sge, 1};
  ibv_recv_wr* bad = nullptr;
  if (ibv_post_recv(qp, &wr, &bad) != 0) return false;
  attr = {};
  attr.qp_state = IBV_QPS_ERR;
  if (ibv_modify_qp(qp, &attr, IBV_QP_STATE) != 0) return false;
  ibv_wc wc{};
  for (int i = 0; ibv_poll_cq(cq, 1, &wc) == 0; ++i) {
    if (i > 20000 || failed()) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  const bool flushed = wc.wr_id == 7 && wc.status == IBV_WC_WR_FLUSH_ERR && wc.qp_num == qp->qp_num;
  return ibv_destroy_qp(qp) == 0 && ibv_destroy_cq(cq) == 0 && ibv_dereg_mr(own) == 0 &&
         (channel == nullptr || ibv_destroy_comp_channel(channel) == 0) &&
         ibv_dealloc_pd(pd) == 0 && ibv_dereg_mr(mr) == 0 && flushed;
}

}  // namespace symvirt::verbs_stress
