// The data path while a quiesce holds it: posts are only written down, polls are served from the
// software queues that pump() fills. Speed does not matter here; all of it runs under one mutex.
#include <sched.h>

#include <cerrno>

#include "pmix-hooks/ranks/verbs/layer.h"

namespace symvirt::hooks::verbs {
namespace {

bool holds(const Layer& layer, std::uint32_t bits) {
  return (layer.state.load(std::memory_order_relaxed) & bits) != 0;
}

int check_send(const VQp& qp, const ibv_send_wr& wr) {
  if (wr.num_sge < 0 || static_cast<std::uint32_t>(wr.num_sge) > qp.cap.max_send_sge) return EINVAL;
  if ((wr.send_flags & IBV_SEND_INLINE) == 0) return 0;
  std::uint64_t bytes = 0;
  for (int i = 0; i < wr.num_sge; ++i) bytes += wr.sg_list[i].length;
  return bytes > qp.cap.max_inline_data ? EINVAL : 0;
}

constexpr std::size_t kPumpBatch = 32;

std::size_t pump_queue(VContext& context, VCq& cq) {
  std::size_t total = 0;
  ibv_wc wc[kPumpBatch];
  while (true) {
    const int found = cq.real->context->ops.poll_cq(cq.real, kPumpBatch, wc);
    if (found <= 0) break;
    total += static_cast<std::size_t>(found);
    bool shown = false;
    for (int i = 0; i < found; ++i) {
      if (!account(context, wc[i])) continue;
      cq.soft.push_back(wc[i]);
      shown = true;
    }
    cq.soft_count.store(static_cast<std::uint32_t>(cq.soft.size()), std::memory_order_relaxed);
    if (shown && cq.armed.exchange(VCq::kNo, std::memory_order_relaxed) != VCq::kNo)
      raise_event(cq);
    if (total > 65536) break;  // a queue that never ends must not stop the others
  }
  return total;
}

}  // namespace

int held_post_send(VQp& qp, ibv_send_wr* wr, ibv_send_wr** bad, bool& again) {
  const std::lock_guard lock(qp.layer->held_mutex);
  if (!holds(*qp.layer, kSendsHeld)) {
    again = true;
    return 0;
  }
  const ibv_qp_state state = qp.pub.state;
  qp.sends.retire(qp.sends_completed.load(std::memory_order_acquire));
  for (; wr != nullptr; wr = wr->next) {
    int error = check_send(qp, *wr);
    if (state == IBV_QPS_RESET || state == IBV_QPS_INIT || state == IBV_QPS_RTR) error = EINVAL;
    if (error == 0 && qp.sends.size() >= qp.cap.max_send_wr) error = ENOMEM;
    if (error != 0) {
      *bad = wr;
      return error;
    }
    qp.sends.append(*wr);
  }
  return 0;
}

int held_post_recv(VQp& qp, ibv_recv_wr* wr, ibv_recv_wr** bad, bool& again) {
  const std::lock_guard lock(qp.layer->held_mutex);
  if (!holds(*qp.layer, kRecvsHeld)) {
    again = true;
    return 0;
  }
  qp.recvs.retire(qp.recvs_completed.load(std::memory_order_acquire));
  for (; wr != nullptr; wr = wr->next) {
    int error = qp.pub.state == IBV_QPS_RESET || qp.srq != nullptr ? EINVAL : 0;
    if (wr->num_sge < 0 || static_cast<std::uint32_t>(wr->num_sge) > qp.cap.max_recv_sge)
      error = EINVAL;
    if (error == 0 && qp.recvs.size() >= qp.cap.max_recv_wr) error = ENOMEM;
    if (error != 0) {
      *bad = wr;
      return error;
    }
    qp.recvs.append(*wr);
  }
  return 0;
}

int held_poll(VCq& cq, int count, ibv_wc* wc, bool& again) {
  int taken = 0;
  {
    const std::lock_guard lock(cq.layer->held_mutex);
    if (!holds(*cq.layer, kPollsHeld)) {
      again = true;
      return 0;
    }
    for (; taken < count && !cq.soft.empty(); ++taken) {
      wc[taken] = cq.soft.front();
      cq.soft.pop_front();
    }
    cq.soft_count.store(static_cast<std::uint32_t>(cq.soft.size()), std::memory_order_relaxed);
  }
  // Whoever polls in a loop would keep the mutex, and the CPU, from the thread that fills the
  // queue.
  if (taken == 0) sched_yield();
  return taken;
}

int held_notify(VCq& cq, int solicited_only, bool& again) {
  const std::lock_guard lock(cq.layer->held_mutex);
  if (!holds(*cq.layer, kPollsHeld)) {
    again = true;
    return 0;
  }
  cq.armed.store(solicited_only != 0 ? VCq::kSolicited : VCq::kAny, std::memory_order_relaxed);
  return 0;
}

std::size_t pump(Layer& layer) {
  std::size_t total = 0;
  for (VContext* context : layer.contexts) {
    if (context->real == nullptr) continue;
    // Events first: what the device told before is told before.
    for (VChannel* channel : context->channels) {
      if (channel->real != nullptr) drain_channel(*channel);
    }
    drain_async(*context);
    for (VCq* cq : context->cqs) {
      if (cq->real != nullptr) total += pump_queue(*context, *cq);
    }
  }
  return total;
}

}  // namespace symvirt::hooks::verbs
