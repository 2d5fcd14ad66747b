#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <thread>

#include "pmix-hooks/ranks/verbs/addresses.h"
#include "pmix-hooks/ranks/verbs/events.h"
#include "pmix-hooks/ranks/verbs/exports.h"
#include "pmix-hooks/ranks/verbs/move.h"
#include "pmix-hooks/ranks/verbs/queue_pair.h"

namespace symvirt::hooks::verbs {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::uint32_t kNobody = 0xff'fffe;  // a queue pair number that no device gives
constexpr std::chrono::microseconds kPause{50};

template <typename F>
void for_each_qp(Layer& layer, F f) {
  for (VContext* context : layer.contexts) {
    if (context->real == nullptr) continue;
    for (VQp* qp : context->qps) f(*qp);
  }
}

// Pumps until done() or a limit. True: done. Done and pump run under the held mutex.
template <typename F>
bool pump_until(Layer& layer, milliseconds limit, milliseconds silence, F done) {
  const auto begun = Clock::now();
  auto last = begun;
  while (true) {
    std::size_t found = 0;
    {
      const std::lock_guard lock(layer.held_mutex);
      found = pump(layer);
      if (done()) return true;
    }
    const auto now = Clock::now();
    if (found > 0) last = now;
    if (now - begun > limit || now - last > silence) return false;
    if (found == 0) std::this_thread::sleep_for(kPause);
  }
}

void retire(VQp& qp) {
  qp.sends.retire(qp.sends_completed.load(std::memory_order_acquire));
  if (qp.srq == nullptr) qp.recvs.retire(qp.recvs_completed.load(std::memory_order_acquire));
}

// Everything given to the device so far is done.
void retire_all_sends(VQp& qp) {
  for (; qp.sends.tail != qp.sends.real; ++qp.sends.tail)
    qp.sends.consumed += qp.sends.record(qp.sends.tail).consumes_receive;
  qp.sends.retired_signalled = qp.sends_completed.load(std::memory_order_acquire);
}

// Completions of unsignalled work are not told; of a signalled marker behind it they are. RC and
// UC: a write of nothing, which needs no memory key and no receive. UD: a message to nobody.
bool post_marker(VQp& qp) {
  ibv_send_wr wr{};
  wr.wr_id = kMarkerId | qp.marker_sequence;
  wr.send_flags = IBV_SEND_SIGNALED;
  wr.opcode = IBV_WR_RDMA_WRITE;
  if (qp.translate) {
    const SendRecord& last = qp.sends.record(qp.sends.real - 1);
    wr.opcode = IBV_WR_SEND;
    wr.wr.ud = last.wr.ud;
    wr.wr.ud.ah = of(last.wr.ud.ah)->real;
    wr.wr.ud.remote_qpn = kNobody;
  }
  ibv_send_wr* bad = nullptr;
  return qp.real->context->ops.post_send(qp.real, &wr, &bad) == 0;
}

// One look at a queue pair: true when nothing of it is out.
bool is_drained(VQp& qp) {
  retire(qp);
  if (qp.marker_done) {
    retire_all_sends(qp);
    qp.marker_out = qp.marker_done = false;
  }
  if (qp.sends.tail == qp.sends.real && !qp.marker_out) return true;
  // In error: what was posted comes back by itself, if it has not yet.
  if (!can_send(qp)) {
    retire_all_sends(qp);
    return true;
  }
  // No place for it now (an application that filled the queue): one will be free when something
  // completes.
  if (!qp.marker_out) qp.marker_out = post_marker(qp);
  return false;
}

// Whether the work that does not get on waits for a receiver. What is in front of that send has
// been executed then (a receiver that is not ready acknowledges everything before), and
// unsignalled, or it would be known. A signalled write, read or atomic that is not done waits for
// something else.
bool waits_for_receiver(VQp& qp) {
  for (std::uint64_t i = qp.sends.tail; i != qp.sends.real; ++i) {
    const SendRecord& r = qp.sends.record(i);
    if (r.consumes_receive != 0) return true;
    if (r.signalled != 0) return false;
  }
  return qp.sends.tail == qp.sends.real;
}

// What a queue pair in error gives back: its receives, whose number is known exactly, and sends.
// Sends at the front that do not come back were done, and unsignalled.
std::uint64_t work_out(VQp& qp) {
  retire(qp);
  const std::uint64_t receives = qp.srq == nullptr ? qp.recvs.real - qp.recvs.tail : 0;
  return receives + (qp.sends.real - qp.sends.tail) + (qp.marker_out ? 1u : 0u);
}

void count_what_came_back(VQp& qp) {
  const std::uint64_t out = work_out(qp);
  for (std::uint64_t done = out - std::min(out, qp.flushed);
       done > 0 && qp.sends.tail != qp.sends.real; --done) {
    const SendRecord& r = qp.sends.record(qp.sends.tail);
    if (r.signalled != 0) break;
    qp.sends.consumed += r.consumes_receive;
    ++qp.sends.tail;
  }
  qp.marker_out = qp.marker_done = false;
}

ibv_wc_opcode completion_opcode(std::uint8_t opcode) {
  switch (static_cast<int>(opcode)) {
    case IBV_WR_RDMA_WRITE:
    case IBV_WR_RDMA_WRITE_WITH_IMM:
      return IBV_WC_RDMA_WRITE;
    case IBV_WR_RDMA_READ:
      return IBV_WC_RDMA_READ;
    case IBV_WR_ATOMIC_CMP_AND_SWP:
      return IBV_WC_COMP_SWAP;
    case IBV_WR_ATOMIC_FETCH_AND_ADD:
      return IBV_WC_FETCH_ADD;
    default:
      return IBV_WC_SEND;
  }
}

// The peer has executed the record at the front, and its acknowledgement was lost with the
// connection.
void finish_first(VQp& qp) {
  const SendRecord& r = qp.sends.record(qp.sends.tail++);
  qp.sends.consumed += r.consumes_receive;
  if (r.signalled == 0) return;
  ibv_wc wc{};
  wc.wr_id = r.wr_id;
  wc.status = IBV_WC_SUCCESS;
  wc.opcode = completion_opcode(r.opcode);
  wc.qp_num = qp.pub.qp_num;
  VCq& cq = *of(qp.init.send_cq);
  cq.soft.push_back(wc);
  cq.soft_count.store(static_cast<std::uint32_t>(cq.soft.size()), std::memory_order_relaxed);
  if (cq.armed.exchange(VCq::kNo, std::memory_order_relaxed) != VCq::kNo) raise_event(cq);
}

const QpStatement* peer_of(const VQp& qp, const Directory& directory) {
  if (!is_connected(qp)) return nullptr;
  const auto found =
      directory.find(Address::of(qp.attr.ah_attr), qp.attr.dest_qp_num, qp.pub.qp_num);
  if (!found || found->qp->peer_number != qp.pub.qp_num) return nullptr;
  return (found->qp->flags & kQpConnected) != 0 ? found->qp : nullptr;
}

void destroy_objects(VContext& context) {
  const RealVerbs& v = *real_verbs();
  const auto drop = [](auto& list, auto destroy) {
    for (auto* object : list) {
      if (object->real != nullptr) destroy(object->real);
      object->real = nullptr;
    }
  };
  drop(context.ahs, v.destroy_ah);
  drop(context.qps, v.destroy_qp);
  drop(context.srqs, v.destroy_srq);
  drop(context.cqs, v.destroy_cq);
  for (VChannel* channel : context.channels) {
    if (channel->real == nullptr) continue;
    take_from_event_fd(channel->pub.fd, channel->real->fd);
    v.destroy_comp_channel(std::exchange(channel->real, nullptr));
  }
  drop(context.mrs, v.dereg_mr);
  drop(context.pds, v.dealloc_pd);
}

// Nothing is at a device any more: all that is not done waits for the next one.
void call_back_work(VContext& context) {
  for (VQp* qp : context.qps) {
    retire(*qp);
    qp->rebuild = true;
    qp->marker_out = qp->marker_done = false;
    if (!can_send(*qp) && !qp->taken_back) retire_all_sends(*qp);
    qp->sends.real = qp->sends.tail;
    qp->recvs.real = qp->recvs.tail;
  }
  for (VSrq* srq : context.srqs) {
    for (std::uint32_t i = 0; i < srq->slot_count; ++i) srq->slots[i].posted = false;
  }
}

}  // namespace

void begin_move(Layer& layer) {
  for (VContext* context : layer.contexts) {
    if (context->real == nullptr) continue;
    context->now = read_ports(*context);
    if (context->known.empty()) context->known = context->now;
    for (VQp* qp : context->qps) {
      ++qp->marker_sequence;
      qp->marker_out = qp->marker_done = false;
    }
  }
}

bool drain_sends(Layer& layer, const Patience& patience) {
  return pump_until(layer, patience.drain, patience.silence, [&layer] {
    bool all = true;
    for_each_qp(layer, [&all](VQp& qp) { all = is_drained(qp) && all; });
    return all;
  });
}

bool all_wait_for_receivers(Layer& layer) {
  bool all = true;
  const std::lock_guard lock(layer.held_mutex);
  for_each_qp(layer, [&all](VQp& qp) {
    all = all && (qp.taken_back || is_drained(qp) || waits_for_receiver(qp));
  });
  return all;
}

// All are stopped before anything is waited for: a peer's work on one that was stopped here is not
// answered any more, and the peer's patience with it (its retries) is short.
void take_back_stuck(Layer& layer, const Patience& patience) {
  std::vector<VQp*> stuck;
  {
    const std::lock_guard lock(layer.held_mutex);
    for_each_qp(layer, [&stuck](VQp& qp) {
      if (!qp.taken_back && is_drained(qp)) return;
      if (!qp.taken_back) qp.flushed = 0;
      qp.taken_back = qp.rebuild = true;
      stuck.push_back(&qp);
    });
  }
  for (VQp* qp : stuck) to_error(*qp);
  const auto all = [&stuck](auto holds) { return std::all_of(stuck.begin(), stuck.end(), holds); };
  const auto is_back = [](VQp* qp) { return qp->flushed >= work_out(*qp); };
  // The marker is the last in its queue. Where the queue was too full for one, all that is known is
  // that nothing comes any more.
  const auto is_last_back = [](VQp* qp) { return !qp->marker_out || qp->marker_done; };
  const auto limit = Clock::now() + patience.flush;
  while (!pump_until(layer, patience.flush, patience.silence, [&] { return all(is_back); }) &&
         !all(is_last_back) && Clock::now() < limit) {
  }
  const std::lock_guard lock(layer.held_mutex);
  for (VQp* qp : stuck) count_what_came_back(*qp);
}

bool await_arrivals(Layer& layer, const Statements& statements, const Patience& patience) {
  const Directory directory(statements);
  return pump_until(layer, patience.arrival, patience.arrival, [&] {
    bool all = true;
    for_each_qp(layer, [&](VQp& qp) {
      const QpStatement* const peer = peer_of(qp, directory);
      // Unreliable ones may have lost some, and one in error says nothing.
      if (peer == nullptr || qp.init.qp_type != IBV_QPT_RC || qp.errored || qp.taken_back) return;
      if ((peer->flags & kQpStuck) != 0) return;
      const std::uint64_t received = qp.recvs_completed + qp.srq_received;
      all = all && received >= peer->sent;
    });
    return all;
  });
}

void collect(Layer& layer) {
  pump(layer);
  for_each_qp(layer, [](VQp& qp) { retire(qp); });
}

void settle(Layer& layer, const Patience& patience) {
  pump_until(layer, patience.arrival, patience.settle, [] { return false; });
}

void resolve_taken_back(Layer& layer, const Statements& statements) {
  const Directory directory(statements);
  const std::lock_guard lock(layer.held_mutex);
  for_each_qp(layer, [&](VQp& qp) {
    if (!qp.taken_back) return;
    const QpStatement* const peer = peer_of(qp, directory);
    while (peer != nullptr && qp.sends.consumed < peer->received && qp.sends.tail != qp.sends.real)
      finish_first(qp);
  });
}

void tear_down(Layer& layer) {
  const std::lock_guard lock(layer.held_mutex);
  pump(layer);
  for (VContext* context : layer.contexts) {
    if (context->real == nullptr) continue;
    call_back_work(*context);
    destroy_objects(*context);
    context->numbers.clear();
    take_from_event_fd(context->pub.async_fd, context->real->async_fd);
    close_real(*context);
  }
}

}  // namespace symvirt::hooks::verbs
