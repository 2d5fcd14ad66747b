// Control calls all the time, beside the traffic: what a quiesce must wait for, and what must wait
// for it.
#include <cerrno>
#include <string>
#include <system_error>

#include "tests/verbs/stress_rank.h"

namespace symvirt::verbs_stress {

void Rank::churn_loop() {
  if (options_.on_thread) options_.on_thread();
  Random random(mix(options_.seed) + 77 + static_cast<std::uint64_t>(rank()));
  while (!ending_ && !failed()) {
    errno = 0;
    if (const char* what = churn_once(random))
      return fail(std::string(what) + ": " + std::generic_category().message(errno));
    ++churned_;
    std::this_thread::sleep_for(std::chrono::microseconds(random.below(2000)));
  }
}

// What failed, with errno's reason; or nullptr.
const char* Rank::churn_once(Random& random) {
  std::vector<std::uint8_t> memory(4096 + random.below(4096));
  ibv_mr* mr = ibv_reg_mr(pd_, memory.data(), memory.size(), IBV_ACCESS_LOCAL_WRITE);
  if (mr == nullptr) return "ibv_reg_mr";
  ibv_pd* pd = ibv_alloc_pd(context_);
  if (pd == nullptr) return "ibv_alloc_pd";
  ibv_comp_channel* channel = random.chance(50) ? ibv_create_comp_channel(context_) : nullptr;
  ibv_cq* cq = ibv_create_cq(context_, 16, nullptr, channel, 0);
  if (cq == nullptr) return "ibv_create_cq";
  ibv_qp_init_attr init{};
  init.send_cq = init.recv_cq = cq;
  init.cap = {4, 4, 1, 1, 0};
  init.qp_type = random.chance(50) ? IBV_QPT_RC : IBV_QPT_UD;
  ibv_qp* qp = ibv_create_qp(pd, &init);
  if (qp == nullptr) return "ibv_create_qp";
  ibv_qp_attr attr{};
  attr.qp_state = IBV_QPS_INIT;
  attr.port_num = 1;
  attr.qkey = kQkey;
  const int last = init.qp_type == IBV_QPT_UD ? IBV_QP_QKEY : IBV_QP_ACCESS_FLAGS;
  if (ibv_modify_qp(qp, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | last) != 0)
    return "ibv_modify_qp to INIT";
  if (random.chance(30)) std::this_thread::sleep_for(std::chrono::milliseconds(random.below(20)));
  if (ibv_query_qp(qp, &attr, IBV_QP_STATE, &init) != 0) return "ibv_query_qp";
  if (attr.qp_state != IBV_QPS_INIT) return "ibv_query_qp: not INIT";
  ibv_port_attr port{};
  if (ibv_query_port(context_, 1, &port) != 0) return "ibv_query_port";
  // Posted, and flushed when the queue pair is stopped.
  ibv_mr* own = ibv_reg_mr(pd, memory.data(), memory.size(), IBV_ACCESS_LOCAL_WRITE);
  if (own == nullptr) return "ibv_reg_mr in an own domain";
  ibv_sge sge{reinterpret_cast<std::uintptr_t>(memory.data()), 64, own->lkey};
  ibv_recv_wr wr{7, nullptr, &sge, 1};
  ibv_recv_wr* bad = nullptr;
  if (ibv_post_recv(qp, &wr, &bad) != 0) return "ibv_post_recv";
  attr = {};
  attr.qp_state = IBV_QPS_ERR;
  if (ibv_modify_qp(qp, &attr, IBV_QP_STATE) != 0) return "ibv_modify_qp to ERR";
  ibv_wc wc{};
  const auto begin = std::chrono::steady_clock::now();
  while (ibv_poll_cq(cq, 1, &wc) == 0) {
    if (failed()) return "";
    if (std::chrono::steady_clock::now() - begin > std::chrono::seconds(options_.patience_s))
      return "the receive of a stopped queue pair was not flushed";
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  if (wc.wr_id != 7 || wc.status != IBV_WC_WR_FLUSH_ERR || wc.qp_num != qp->qp_num)
    return "the flushed receive looks different";
  if (ibv_destroy_qp(qp) != 0) return "ibv_destroy_qp";
  if (ibv_destroy_cq(cq) != 0) return "ibv_destroy_cq";
  if (ibv_dereg_mr(own) != 0) return "ibv_dereg_mr in the own domain";
  if (channel != nullptr && ibv_destroy_comp_channel(channel) != 0)
    return "ibv_destroy_comp_channel";
  if (ibv_dealloc_pd(pd) != 0) return "ibv_dealloc_pd";
  return ibv_dereg_mr(mr) == 0 ? nullptr : "ibv_dereg_mr";
}

}  // namespace symvirt::verbs_stress
