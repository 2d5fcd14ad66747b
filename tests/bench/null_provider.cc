#include "tests/bench/null_provider.h"

namespace symvirt::hooks::verbs::bench {

NullQueue null_queue;

namespace {

RealVerbs verbs;
ibv_context* (*open_double)(ibv_device*) = nullptr;

NullWork& next_place() { return null_queue.ring[null_queue.head++ % NullQueue::kPlaces]; }

int post_send(ibv_qp* qp, ibv_send_wr* wr, ibv_send_wr**) {
  for (; wr != nullptr; wr = wr->next) {
    NullWork& w = next_place();
    w.wr_id = wr->wr_id;
    w.address = wr->sg_list->addr;
    w.lkey = wr->sg_list->lkey;
    w.length = wr->sg_list->length;
    w.qp_number = qp->qp_num;
    if (wr->opcode == IBV_WR_RDMA_WRITE) {
      w.remote_address = wr->wr.rdma.remote_addr;
      w.rkey = wr->wr.rdma.rkey;
      w.opcode = IBV_WC_RDMA_WRITE;
    } else {
      w.remote_number = wr->wr.ud.remote_qpn;
      w.opcode = IBV_WC_SEND;
    }
  }
  return 0;
}

void post_receives(std::uint32_t qp_number, const ibv_recv_wr* wr) {
  for (; wr != nullptr; wr = wr->next) {
    NullWork& w = next_place();
    w.wr_id = wr->wr_id;
    w.address = wr->sg_list->addr;
    w.lkey = wr->sg_list->lkey;
    w.length = wr->sg_list->length;
    w.qp_number = qp_number;
    w.opcode = IBV_WC_RECV;
  }
}

int post_recv(ibv_qp* qp, ibv_recv_wr* wr, ibv_recv_wr**) {
  return post_receives(qp->qp_num, wr), 0;
}

int post_srq_recv(ibv_srq*, ibv_recv_wr* wr, ibv_recv_wr**) {
  return post_receives(null_queue.consumer, wr), 0;
}

int poll_cq(ibv_cq*, int count, ibv_wc* wc) {
  int found = 0;
  for (; found < count && null_queue.tail != null_queue.head; ++found) {
    const NullWork& w = null_queue.ring[null_queue.tail++ % NullQueue::kPlaces];
    wc[found].wr_id = w.wr_id;
    wc[found].status = IBV_WC_SUCCESS;
    wc[found].opcode = static_cast<ibv_wc_opcode>(w.opcode);
    wc[found].vendor_err = 0;
    wc[found].byte_len = w.length;
    wc[found].qp_num = w.qp_number;
    wc[found].src_qp = 0;
    wc[found].wc_flags = 0;
  }
  return found;
}

int req_notify_cq(ibv_cq*, int solicited_only) {
  null_queue.armed = solicited_only != 0 ? 1 : 2;
  return 0;
}

ibv_context* open_device(ibv_device* device) {
  ibv_context* const context = open_double(device);
  if (context == nullptr) return nullptr;
  context->ops.post_send = post_send;
  context->ops.post_recv = post_recv;
  context->ops.post_srq_recv = post_srq_recv;
  context->ops.poll_cq = poll_cq;
  context->ops.req_notify_cq = req_notify_cq;
  return context;
}

}  // namespace

const RealVerbs& null_verbs(const RealVerbs& control) {
  verbs = control;
  open_double = control.open_device;
  verbs.open_device = open_device;
  return verbs;
}

}  // namespace symvirt::hooks::verbs::bench
