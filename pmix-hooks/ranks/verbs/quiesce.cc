#include <sched.h>

#include <cerrno>
#include <cstdio>
#include <thread>

#include "pmix-hooks/ranks/verbs/addresses.h"
#include "pmix-hooks/ranks/verbs/events.h"
#include "pmix-hooks/ranks/verbs/exports.h"
#include "pmix-hooks/ranks/verbs/move.h"
#include "pmix-hooks/ranks/verbs/process_memory.h"
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

// Only while both are held.
void retire(VQp& qp) {
  qp.sends.retire(qp.sends_completed.load(std::memory_order_acquire));
  if (qp.srq == nullptr) qp.recvs.retire(qp.recvs_completed.load(std::memory_order_acquire));
}

// Everything given to the device so far is done.
void retire_all_sends(VQp& qp) {
  for (; qp.sends.tail != qp.sends.real; ++qp.sends.tail)
    qp.sends.consumed += qp.sends.record(qp.sends.tail).consumes_receive() ? 1 : 0;
  qp.sends.retired_signalled = qp.sends_completed.load(std::memory_order_acquire);
}

// Completions of unsignalled work are not told; of a signalled marker behind it they are. RC and
// UC: a write of nothing, which needs no memory key and no receive. UD: a message to nobody.
// No place for it now (a device that had none to spare): there will be when something completes.
void post_marker(VQp& qp) {
  ibv_send_wr wr{};
  wr.wr_id = qp.marker.next_id(kMarkerId);
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
  if (qp.real->context->ops.post_send(qp.real, &wr, &bad) == 0) qp.marker.posted();
}

// One look at a queue pair: true when nothing of it is out.
bool is_drained(VQp& qp) {
  // Sends only: the application may be posting receives, and does that itself.
  qp.sends.retire(qp.sends_completed.load(std::memory_order_acquire));
  if (qp.taken_back) return false;  // its receives have to be collected, too
  if (qp.marker.is_back()) {
    retire_all_sends(qp);
    qp.marker.forget();
  }
  if (qp.sends.tail == qp.sends.real && !qp.marker.is_out()) return true;
  // In error: what was posted comes back by itself, if it has not yet.
  if (!can_send(qp)) {
    retire_all_sends(qp);
    return true;
  }
  if (!qp.marker.is_out()) post_marker(qp);
  return false;
}

enum class WaitsFor { kReceiver, kPerhapsReceiver, kSomethingElse };

// What the work that does not get on waits for. The peer has no receive left and its count is
// final, so it is known which of the sends it has executed; the next one has to wait. Work in front
// of that one which needs no receive is executed, or soon will be: if it is signalled that will be
// told, if not, some silence has to do.
WaitsFor waits_for(VQp& qp, const QpStatement* peer) {
  if (qp.init.qp_type != IBV_QPT_RC) return WaitsFor::kSomethingElse;
  if (peer != nullptr && (peer->flags & kQpNoReceives) == 0) return WaitsFor::kSomethingElse;
  const std::uint64_t received = peer == nullptr ? 0 : peer->received;
  std::uint64_t executed = received - std::min(received, qp.sends.consumed);
  bool known = peer != nullptr;
  for (std::uint64_t i = qp.sends.tail; i != qp.sends.real; ++i) {
    const SendRecord& r = qp.sends.record(i);
    if (r.consumes_receive()) {
      if (executed == 0) return known ? WaitsFor::kReceiver : WaitsFor::kPerhapsReceiver;
      --executed;
    } else if (r.signalled()) {
      return WaitsFor::kSomethingElse;
    } else if (executed == 0) {
      known = false;
    }
  }
  return WaitsFor::kSomethingElse;
}

bool takes_receives(const VQp& qp) { return qp.srq == nullptr && qp.cap.max_recv_wr > 0; }

// Behind the last receive of an errored queue pair.
void post_last_receive(VQp& qp) {
  ibv_recv_wr wr{};
  wr.wr_id = qp.last_receive.next_id(kLastReceiveId);
  ibv_recv_wr* bad = nullptr;
  if (qp.real->context->ops.post_recv(qp.real, &wr, &bad) != 0) return;
  qp.last_receive.posted();
  // Some devices (rxe) look for work to flush only when they are told the state.
  to_error(qp);
}

// One look at an errored queue pair: true when all that was posted has come back, which the last of
// each queue says. What did not come back was done, and not told because nobody had asked: the
// first of the sends.
bool is_all_back(VQp& qp) {
  if (qp.all_back) return true;
  retire(qp);
  if (!qp.marker.is_out() && !qp.marker.is_back()) post_marker(qp);
  const bool receives = takes_receives(qp);
  if (receives && !qp.last_receive.is_out() && !qp.last_receive.is_back()) post_last_receive(qp);
  if (!qp.marker.is_back() || (receives && !qp.last_receive.is_back())) return false;
  std::uint64_t out = qp.sends.real - qp.sends.tail;
  if (qp.srq == nullptr) out += qp.recvs.real - qp.recvs.tail;
  for (std::uint64_t done = out - std::min(out, qp.flushed);
       done > 0 && qp.sends.tail != qp.sends.real; --done) {
    const SendRecord& r = qp.sends.record(qp.sends.tail);
    if (r.signalled()) break;
    qp.sends.consumed += r.consumes_receive() ? 1 : 0;
    ++qp.sends.tail;
  }
  qp.marker.forget();
  qp.last_receive.forget();
  return qp.all_back = true;
}

// Nothing is executed at such a queue pair any more; what was in front of it is polled later.
bool stop(const std::vector<VQp*>& qps) {
  bool all = true;
  for (VQp* qp : qps) all = to_error(*qp) == 0 && all;
  return all;
}

// Until all of them have their work back.
bool collect(Layer& layer, const Patience& patience) {
  return pump_until(layer, patience.flush, patience.flush, [&layer] {
    bool all = true;
    for_each_qp(layer, [&all](VQp& qp) { all = (!qp.taken_back || is_all_back(qp)) && all; });
    return all;
  });
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
  qp.sends.consumed += r.consumes_receive() ? 1 : 0;
  if (!r.signalled()) return;
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
void call_back_work(VQp& qp) {
  retire(qp);
  qp.rebuild = true;
  qp.marker.forget();
  qp.last_receive.forget();
  if (!can_send(qp) && !qp.taken_back) retire_all_sends(qp);
  qp.sends.real = qp.sends.tail;
  qp.recvs.real = qp.recvs.tail;
  forget_taking_back(qp);
}

void call_back_work(VContext& context) {
  for (VQp* qp : context.qps) call_back_work(*qp);
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
    const std::lock_guard lock(layer.held_mutex);
    for (VQp* qp : context->qps) {
      qp->marker.outdate();
      qp->last_receive.outdate();
      forget_taking_back(*qp);
    }
  }
}

std::string protected_memory(Layer& layer) {
  constexpr unsigned kWrites = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE |
                               IBV_ACCESS_REMOTE_ATOMIC | IBV_ACCESS_MW_BIND;
  const std::vector<Mapping> now = mappings();
  for (const VContext* context : layer.contexts) {
    for (const VMr* mr : context->mrs) {
      if (mr->kind == MrKind::kDmabuf) continue;
      const bool writes = (mr->access & kWrites) != 0;
      if (!is_protected(now, mr->pub.addr, mr->pub.length, writes)) continue;
      char text[160];
      std::snprintf(text, sizeof text,
                    "memory registered at %p (%zu bytes) is protected against %s now, so that it "
                    "could not be registered with another device",
                    mr->pub.addr, mr->pub.length, writes ? "writing" : "reading");
      return text;
    }
  }
  return {};
}

bool drain_sends(Layer& layer, const Patience& patience) {
  return pump_until(layer, patience.drain, patience.silence, [&layer] {
    bool all = true;
    for_each_qp(layer, [&all](VQp& qp) { all = is_drained(qp) && all; });
    return all;
  });
}

bool find_stuck(Layer& layer, const Statements& statements, const Patience& patience) {
  const Directory directory(statements);
  bool perhaps = false;
  const auto look = [&] {
    bool sure = perhaps = true;
    for_each_qp(layer, [&](VQp& qp) {
      qp.stuck = !is_drained(qp);
      if (!qp.stuck || qp.taken_back) return;
      const WaitsFor what = waits_for(qp, peer_of(qp, directory));
      sure = sure && what == WaitsFor::kReceiver;
      perhaps = perhaps && what != WaitsFor::kSomethingElse;
    });
    return sure;
  };
  return pump_until(layer, patience.drain, patience.silence, look) || perhaps;
}

bool take_back_stuck(Layer& layer, const Statements& statements, const Patience& patience) {
  const Directory directory(statements);
  std::vector<VQp*> stuck;
  {
    // All are marked before anything is polled: a peer that is faster than we are has stopped its
    // end, and ours may have noticed.
    const std::lock_guard lock(layer.held_mutex);
    for_each_qp(layer, [&](VQp& qp) {
      const QpStatement* const peer = peer_of(qp, directory);
      if (!qp.stuck && (peer == nullptr || (peer->flags & kQpStuck) == 0)) return;
      qp.taken_back = qp.rebuild = true;
      stuck.push_back(&qp);
    });
  }
  return stop(stuck) && collect(layer, patience);
}

bool take_back_half_rebuilt(Layer& layer, const Statements& statements, const Patience& patience) {
  const Directory directory(statements);
  std::vector<VQp*> half;
  {
    const std::lock_guard lock(layer.held_mutex);
    for_each_qp(layer, [&](VQp& qp) {
      const QpStatement* const peer = peer_of(qp, directory);
      if (qp.fresh || qp.all_back || peer == nullptr) return;
      if (!qp.rebuild && (peer->flags & kQpRebuild) == 0) return;
      qp.taken_back = qp.rebuild = true;
      half.push_back(&qp);
    });
  }
  return stop(half) && collect(layer, patience);
}

bool await_arrivals(Layer& layer, const Statements& statements, const Patience& patience) {
  const Directory directory(statements);
  return pump_until(layer, patience.arrival, patience.arrival, [&] {
    bool all = true;
    for_each_qp(layer, [&](VQp& qp) {
      const QpStatement* const peer = peer_of(qp, directory);
      // Unreliable ones may have lost some, and one in error says nothing.
      if (peer == nullptr || qp.init.qp_type != IBV_QPT_RC || qp.errored || qp.taken_back) return;
      if ((peer->flags & (kQpStuck | kQpTakenBack)) != 0) return;
      const std::uint64_t received = qp.recvs_completed + qp.srq_received;
      all = all && received >= peer->sent;
    });
    return all;
  });
}

void take_in(Layer& layer) {
  pump(layer);
  for_each_qp(layer, [](VQp& qp) { retire(qp); });
}

void resolve_taken_back(Layer& layer, const Statements& statements) {
  const Directory directory(statements);
  const std::lock_guard lock(layer.held_mutex);
  for_each_qp(layer, [&](VQp& qp) {
    if (!qp.taken_back) return;
    const QpStatement* const peer = peer_of(qp, directory);
    if (peer == nullptr) return;
    // Unreliable ones rather lose a message than send it twice.
    const bool lose = qp.init.qp_type != IBV_QPT_RC;
    while (qp.sends.tail != qp.sends.real && (lose || qp.sends.consumed < peer->received))
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

void keep_devices(Layer& layer, const Statements& statements) {
  const Directory directory(statements);
  const std::lock_guard lock(layer.held_mutex);
  take_in(layer);
  for_each_qp(layer, [&](VQp& qp) {
    if (qp.taken_back) {
      call_back_work(qp);  // has come back, all of it; the peer does the same
    } else if (is_connected(qp)) {
      const auto peer =
          directory.find(Address::of(qp.attr.ah_attr), qp.attr.dest_qp_num, qp.pub.qp_num);
      qp.rebuild = qp.rebuild || (peer && peer->left);
    }
  });
}

}  // namespace symvirt::hooks::verbs
