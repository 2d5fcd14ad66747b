// From the application's numbers to what they are now, in requests on their way to the device.
//
// Inside an operation of the data path (gate.h), or alone.
#pragma once

#include "pmix-hooks/ranks/verbs/layer.h"

namespace symvirt::hooks::verbs {

// Remote key, remote number, address handle.
__attribute__((always_inline)) inline void translate_target(const VQp& qp, ibv_send_wr& wr) {
  if (qp.translate) {
    const VAh& ah = *of(wr.wr.ud.ah);
    if (ah.numbers != nullptr) wr.wr.ud.remote_qpn = (*ah.numbers)[wr.wr.ud.remote_qpn];
    wr.wr.ud.ah = ah.real;
    return;
  }
  if (qp.rkeys == nullptr) return;
  switch (static_cast<int>(wr.opcode)) {
    case IBV_WR_RDMA_WRITE:
    case IBV_WR_RDMA_WRITE_WITH_IMM:
    case IBV_WR_RDMA_READ:
      wr.wr.rdma.rkey = (*qp.rkeys)[wr.wr.rdma.rkey];
      break;
    case IBV_WR_ATOMIC_CMP_AND_SWP:
    case IBV_WR_ATOMIC_FETCH_AND_ADD:
      wr.wr.atomic.rkey = (*qp.rkeys)[wr.wr.atomic.rkey];
      break;
    default:
      break;
  }
}

__attribute__((always_inline)) inline void translate_keys(const KeyTable* lkeys,
                                                          const ibv_sge* from, int count,
                                                          ibv_sge* to) {
  for (int i = 0; i < count; ++i) {
    copy_sge(to[i], from[i]);
    if (lkeys != nullptr) to[i].lkey = (*lkeys)[to[i].lkey];
  }
}

}  // namespace symvirt::hooks::verbs
