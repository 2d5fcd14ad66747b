// Post, poll and notify: what verbs.h calls through context->ops, tens of millions of times a
// second.
//
// Each enters the gate (gate.h), looks at one word, and passes through. What it leaves behind for a
// quiesce: posted work in the queue's log, completions counted per queue pair.
//
// Each call is there twice. The first is for what nearly always is: the thread is known, nothing is
// held, and the object's lock is biased to the thread. Everything else, and the waiting, is in
// ..._slowly.
#include <cerrno>
#include <mutex>

#include "pmix-hooks/ranks/verbs/layer.h"
#include "pmix-hooks/ranks/verbs/translate.h"

namespace symvirt::hooks::verbs {
namespace {

constexpr int kBatchSges = 64;
constexpr int kFewSges = 4;

#define SYMVIRT_INLINE __attribute__((always_inline)) inline
#define SYMVIRT_COLD __attribute__((noinline, cold))

using Taken = BiasedLock::Taken;

int refused_in_child() { return EIO; }

// Writes the list down, then gives it to the device with everything translated. On failure forgets
// what the device did not take.
int post_send_translated(VQp& qp, ibv_send_wr* wr, ibv_send_wr** bad) {
  std::uint64_t count = 0;
  for (ibv_send_wr* w = wr; w != nullptr; w = w->next, ++count) qp.sends.append(*w);
  const std::uint64_t base = qp.sends.head - count;  // append may have begun the log anew
  qp.sends.real = base;
  const int error = post_records(qp, base, qp.sends.head);
  if (error != 0) {
    for (std::uint64_t posted = qp.sends.real - base; posted > 0; --posted) wr = wr->next;
    *bad = wr;
    qp.sends.head = qp.sends.real;
  }
  return error;
}

// The same for a single request, which most are: past the log.
int post_one_translated(VQp& qp, ibv_send_wr* wr, ibv_send_wr** bad) {
  ibv_sge sges[kFewSges];
  ibv_send_wr real;
  real.wr_id = wr->wr_id;
  real.next = nullptr;
  real.sg_list = sges;
  copy_send_body(real, *wr);
  real.send_flags = as_written(wr->send_flags);
  translate_target(qp, real);
  if ((wr->send_flags & IBV_SEND_INLINE) != 0) {
    real.sg_list = wr->sg_list;
  } else {
    translate_keys(qp.context->lkeys.get(), wr->sg_list, wr->num_sge, sges);
  }
  ibv_send_wr* refused = nullptr;
  const int error = qp.real->context->ops.post_send(qp.real, &real, &refused);
  if (__builtin_expect(error != 0, 0)) {
    *bad = wr;
    return error;
  }
  qp.sends.append(*wr);
  qp.sends.real = qp.sends.head;
  return 0;
}

// Inside an operation, with the queue's lock.
SYMVIRT_INLINE int post_send_now(VQp& qp, std::uint32_t state, ibv_send_wr* wr, ibv_send_wr** bad) {
  qp.sends.retire(qp.sends_completed.load(std::memory_order_acquire));
  if (__builtin_expect((state | qp.translate) != 0, 0)) {
    if (wr->next == nullptr && wr->num_sge <= kFewSges) return post_one_translated(qp, wr, bad);
    return post_send_translated(qp, wr, bad);
  }
  const int error = qp.real->context->ops.post_send(qp.real, wr, bad);
  const ibv_send_wr* const end = __builtin_expect(error == 0, 1) ? nullptr : *bad;
  for (const ibv_send_wr* w = wr; w != end; w = w->next) qp.sends.append(*w);
  qp.sends.real = qp.sends.head;
  return error;
}

SYMVIRT_COLD int post_send_slowly(VQp& qp, ibv_send_wr* wr, ibv_send_wr** bad) {
  ThreadSlot* const slot = this_thread();
  while (true) {
    enter(slot);
    const std::uint32_t state = qp.layer->state.load(std::memory_order_acquire);
    if ((state & (kSendsHeld | kForked)) != 0) {
      leave(slot);
      if ((state & kForked) != 0) return refused_in_child();
      bool again = false;
      const int error = held_post_send(qp, wr, bad, again);
      if (!again) return error;
      continue;
    }
    const Taken taken = qp.send_lock.lock(slot);
    if (taken == Taken::kRetry) continue;
    const int error = post_send_now(qp, state, wr, bad);
    qp.send_lock.unlock(taken);
    leave(slot);
    return error;
  }
}

// Inside an operation: whether `lock` is this thread's already and nothing is held.
SYMVIRT_INLINE bool is_easy(std::uint32_t state, const BiasedLock& lock, const ThreadSlot* slot) {
  return __builtin_expect((state & ~std::uint32_t{kCarried}) == 0, 1) &&
         __builtin_expect(lock.is_biased_to(slot), 1);
}

int post_send(ibv_qp* pub, ibv_send_wr* wr, ibv_send_wr** bad) noexcept {
  VQp& qp = *of(pub);
  ThreadSlot* const slot = thread_slot;
  if (__builtin_expect(slot != nullptr, 1)) {
    enter(slot);
    const std::uint32_t state = qp.layer->state.load(std::memory_order_acquire);
    if (is_easy(state, qp.send_lock, slot)) {
      const int error = post_send_now(qp, state, wr, bad);
      leave(slot);
      return error;
    }
    leave(slot);
  }
  return post_send_slowly(qp, wr, bad);
}

int post_recv_translated(VQp& qp, ibv_recv_wr* wr, ibv_recv_wr** bad) {
  // The poller of a UD queue reads the log of receives (Layer::name_source); no other's does.
  std::unique_lock<SpinLock> lock(qp.source_lock, std::defer_lock);
  if (qp.translate) lock.lock();
  qp.recvs.retire(qp.recvs_completed.load(std::memory_order_acquire));
  const KeyTable* const lkeys = qp.context->lkeys.get();
  for (; wr != nullptr; wr = wr->next) {
    ibv_sge sges[kBatchSges];
    ibv_recv_wr real{wr->wr_id, nullptr, sges, wr->num_sge};
    ibv_recv_wr* refused = nullptr;
    int error = wr->num_sge > kBatchSges ? EINVAL : 0;
    if (error == 0) {
      translate_keys(lkeys, wr->sg_list, wr->num_sge, sges);
      error = qp.real->context->ops.post_recv(qp.real, &real, &refused);
    }
    if (error != 0) {
      *bad = wr;
      return error;
    }
    qp.recvs.append(*wr);
    qp.recvs.real = qp.recvs.head;
  }
  return 0;
}

SYMVIRT_INLINE int post_recv_now(VQp& qp, std::uint32_t state, ibv_recv_wr* wr, ibv_recv_wr** bad) {
  if (__builtin_expect(state != 0, 0)) return post_recv_translated(qp, wr, bad);
  qp.recvs.retire(qp.recvs_completed.load(std::memory_order_acquire));
  const int error = qp.real->context->ops.post_recv(qp.real, wr, bad);
  const ibv_recv_wr* const end = __builtin_expect(error == 0, 1) ? nullptr : *bad;
  for (const ibv_recv_wr* w = wr; w != end; w = w->next) qp.recvs.append(*w);
  qp.recvs.real = qp.recvs.head;
  return error;
}

SYMVIRT_COLD int post_recv_slowly(VQp& qp, ibv_recv_wr* wr, ibv_recv_wr** bad) {
  ThreadSlot* const slot = this_thread();
  while (true) {
    enter(slot);
    const std::uint32_t state = qp.layer->state.load(std::memory_order_acquire);
    if ((state & (kRecvsHeld | kForked)) != 0) {
      leave(slot);
      if ((state & kForked) != 0) return refused_in_child();
      bool again = false;
      const int error = held_post_recv(qp, wr, bad, again);
      if (!again) return error;
      continue;
    }
    const Taken taken = qp.recv_lock.lock(slot);
    if (taken == Taken::kRetry) continue;
    const int error = post_recv_now(qp, state, wr, bad);
    qp.recv_lock.unlock(taken);
    leave(slot);
    return error;
  }
}

int post_recv(ibv_qp* pub, ibv_recv_wr* wr, ibv_recv_wr** bad) noexcept {
  VQp& qp = *of(pub);
  ThreadSlot* const slot = thread_slot;
  if (__builtin_expect(slot != nullptr, 1)) {
    enter(slot);
    const std::uint32_t state = qp.layer->state.load(std::memory_order_acquire);
    if (is_easy(state, qp.recv_lock, slot)) {
      const int error = post_recv_now(qp, state, wr, bad);
      leave(slot);
      return error;
    }
    leave(slot);
  }
  return post_recv_slowly(qp, wr, bad);
}

// A free slot: those whose receive was completed are collected when none is at hand, so that
// pollers need no lock of this queue.
bool take_slot(VSrq& srq, std::uint32_t& out) {
  if (srq.free_slots.empty()) {
    for (std::uint32_t i = srq.slot_count; i-- > 0;) {
      if (!srq.slots[i].busy.load(std::memory_order_acquire)) srq.free_slots.push_back(i);
    }
  }
  if (srq.free_slots.empty()) return false;
  out = srq.free_slots.back();
  srq.free_slots.pop_back();
  return true;
}

int post_srq_elements(VSrq& srq, std::uint32_t index, ibv_sge* elements) {
  SrqSlot& s = srq.slots[index];
  ibv_recv_wr wr{kSrqTag | index, nullptr, elements, static_cast<int>(s.num_sge)};
  ibv_recv_wr* bad = nullptr;
  s.posted = true;
  const int error = srq.real->context->ops.post_srq_recv(srq.real, &wr, &bad);
  if (error != 0) s.posted = false;
  return error;
}

int post_srq_one(VSrq& srq, const ibv_recv_wr& wr, bool hold) {
  if (wr.num_sge < 0 || static_cast<std::uint32_t>(wr.num_sge) > srq.stride) return EINVAL;
  std::uint32_t index = 0;
  if (!take_slot(srq, index)) return ENOMEM;
  SrqSlot& s = srq.slots[index];
  s.wr_id = wr.wr_id;
  s.sequence = ++srq.sequence;
  s.num_sge = static_cast<std::uint32_t>(wr.num_sge);
  s.posted = false;
  for (std::uint32_t i = 0; i < s.num_sge; ++i)
    copy_sge(srq.sges[index * srq.stride + i], wr.sg_list[i]);
  s.busy.store(true, std::memory_order_release);
  if (hold) return 0;
  const int error = of(srq.pub.context)->lkeys == nullptr
                        ? post_srq_elements(srq, index, wr.sg_list)  // need no translation
                        : post_srq_slot(srq, index);
  if (error != 0) {
    s.busy.store(false, std::memory_order_relaxed);
    srq.free_slots.push_back(index);
  }
  return error;
}

int post_srq_list(VSrq& srq, ibv_recv_wr* wr, ibv_recv_wr** bad, bool hold) {
  for (; wr != nullptr; wr = wr->next) {
    const int error = post_srq_one(srq, *wr, hold);
    if (error != 0) {
      *bad = wr;
      return error;
    }
  }
  return 0;
}

int post_srq_recv(ibv_srq* pub, ibv_recv_wr* wr, ibv_recv_wr** bad) noexcept {
  VSrq& srq = *of(pub);
  ThreadSlot* const slot = this_thread();
  while (true) {
    enter(slot);
    const std::uint32_t state = srq.layer->state.load(std::memory_order_acquire);
    if (__builtin_expect((state & (kRecvsHeld | kForked)) != 0, 0)) {
      leave(slot);
      if ((state & kForked) != 0) return refused_in_child();
      const std::lock_guard lock(srq.layer->held_mutex);
      if ((srq.layer->state.load(std::memory_order_relaxed) & kRecvsHeld) == 0) continue;
      return post_srq_list(srq, wr, bad, true);
    }
    const Taken taken = srq.lock.lock(slot);
    if (__builtin_expect(taken == Taken::kRetry, 0)) continue;
    const int error = post_srq_list(srq, wr, bad, false);
    srq.lock.unlock(taken);
    leave(slot);
    return error;
  }
}

int take_soft(VCq& cq, int count, ibv_wc* wc) {
  int taken = 0;
  for (; taken < count && !cq.soft.empty(); ++taken) {
    wc[taken] = cq.soft.front();
    cq.soft.pop_front();
  }
  cq.soft_count.store(static_cast<std::uint32_t>(cq.soft.size()), std::memory_order_relaxed);
  return taken;
}

void add_one(std::atomic<std::uint64_t>& counter) {  // one writer at a time
  counter.store(counter.load(std::memory_order_relaxed) + 1, std::memory_order_release);
}

// account() for what nearly all completions are.
SYMVIRT_INLINE bool account_quickly(VContext& context, ibv_wc& wc) {
  VQp* const qp = context.numbers.find(wc.qp_num);
  if (__builtin_expect(qp == nullptr || wc.status != IBV_WC_SUCCESS, 0))
    return account(context, wc);
  if ((wc.opcode & IBV_WC_RECV) == 0) {
    if (__builtin_expect(is_marker(wc.wr_id), 0)) return account(context, wc);
    wc.qp_num = qp->pub.qp_num;
    add_one(qp->sends_completed);
    return true;
  }
  if (__builtin_expect(qp->translate || qp->srq != nullptr, 0)) return account(context, wc);
  wc.qp_num = qp->pub.qp_num;
  add_one(qp->recvs_completed);
  return true;
}

SYMVIRT_INLINE int poll_real(VCq& cq, int count, ibv_wc* wc) {
  const int found = cq.real->context->ops.poll_cq(cq.real, count, wc);
  int kept = 0;
  for (int i = 0; i < found; ++i) {
    if (__builtin_expect(!account_quickly(*of(cq.pub.context), wc[i]), 0)) continue;
    if (__builtin_expect(kept != i, 0)) wc[kept] = wc[i];
    ++kept;
  }
  return found < 0 ? found : kept;
}

SYMVIRT_COLD int poll_cq_slowly(VCq& cq, int count, ibv_wc* wc) {
  ThreadSlot* const slot = this_thread();
  while (true) {
    enter(slot);
    const std::uint32_t state = cq.layer->state.load(std::memory_order_acquire);
    if ((state & (kPollsHeld | kForked)) != 0) {
      leave(slot);
      if ((state & kForked) != 0) return -1;
      bool again = false;
      const int found = held_poll(cq, count, wc, again);
      if (!again) return found;
      continue;
    }
    const Taken taken = cq.lock.lock(slot);
    if (taken == Taken::kRetry) continue;
    int found = 0;
    if (cq.soft_count.load(std::memory_order_relaxed) != 0) found = take_soft(cq, count, wc);
    if (found < count) {
      const int more = poll_real(cq, count - found, wc + found);
      found = more < 0 && found == 0 ? more : found + (more < 0 ? 0 : more);
    }
    cq.lock.unlock(taken);
    leave(slot);
    return found;
  }
}

int poll_cq(ibv_cq* pub, int count, ibv_wc* wc) noexcept {
  VCq& cq = *of(pub);
  ThreadSlot* const slot = thread_slot;
  if (__builtin_expect(slot != nullptr, 1)) {
    enter(slot);
    const std::uint32_t state = cq.layer->state.load(std::memory_order_acquire);
    if (is_easy(state, cq.lock, slot) &&
        __builtin_expect(cq.soft_count.load(std::memory_order_relaxed) == 0, 1)) {
      const int found = poll_real(cq, count, wc);
      leave(slot);
      return found;
    }
    leave(slot);
  }
  return poll_cq_slowly(cq, count, wc);
}

int req_notify_cq(ibv_cq* pub, int solicited_only) noexcept {
  VCq& cq = *of(pub);
  ThreadSlot* const slot = this_thread();
  while (true) {
    enter(slot);
    const std::uint32_t state = cq.layer->state.load(std::memory_order_acquire);
    if (__builtin_expect((state & (kPollsHeld | kForked)) != 0, 0)) {
      leave(slot);
      if ((state & kForked) != 0) return refused_in_child();
      bool again = false;
      const int error = held_notify(cq, solicited_only, again);
      if (!again) return error;
      continue;
    }
    cq.armed.store(solicited_only != 0 ? VCq::kSolicited : VCq::kAny, std::memory_order_relaxed);
    const int error = cq.real->context->ops.req_notify_cq(cq.real, solicited_only);
    leave(slot);
    return error;
  }
}

bool finish_srq_receive(VSrq& srq, ibv_wc& wc) {
  if ((wc.wr_id & 0xffff'ffff'0000'0000) != kSrqTag) return false;
  const std::uint32_t index = static_cast<std::uint32_t>(wc.wr_id);
  if (index >= srq.slot_count) return false;
  SrqSlot& s = srq.slots[index];
  if (!s.busy.load(std::memory_order_relaxed)) return false;
  wc.wr_id = s.wr_id;
  s.busy.store(false, std::memory_order_release);
  return true;
}

// The layer's own work: booked, and not shown to the application.
bool is_own(VQp& qp, std::uint64_t wr_id) {
  if (is_marker(wr_id)) {
    qp.marker.came_back(wr_id);
    return true;
  }
  if (!is_last_receive(wr_id)) return false;
  qp.last_receive.came_back(wr_id);
  return true;
}

// Of a queue pair that was stopped by our own hand, or by the peer's: the work stays in the log, to
// be repeated. With whatever status: what was wrong with it will be wrong again.
void keep_for_later(VQp& qp, const ibv_wc& wc) {
  if (is_own(qp, wc.wr_id)) return;
  if (qp.srq != nullptr && (wc.wr_id & 0xffff'ffff'0000'0000) == kSrqTag) {
    const auto index = static_cast<std::uint32_t>(wc.wr_id);
    if (index < qp.srq->slot_count) qp.srq->slots[index].posted = false;
  } else {
    ++qp.flushed;
  }
}

// The opcode of a failed completion is undefined: whether it was a send or a receive is not known.
// It does not matter: the queue pair is in its error state, and all its work comes back this way.
bool account_error(VQp& qp, ibv_wc& wc) {
  wc.qp_num = qp.pub.qp_num;
  // A quiesce holds receives, and the calls that would connect the peer: who does not wait for ever
  // gives up because of us. If it is not because of us, it will happen again.
  if ((wc.status == IBV_WC_RNR_RETRY_EXC_ERR || wc.status == IBV_WC_RETRY_EXC_ERR) &&
      (qp.layer->state.load(std::memory_order_relaxed) & kPollsHeld) != 0)
    qp.taken_back = qp.rebuild = true;
  if (qp.taken_back) {
    keep_for_later(qp, wc);
    return false;
  }
  if (qp.srq != nullptr && finish_srq_receive(*qp.srq, wc)) return true;
  qp.errored.store(true, std::memory_order_relaxed);
  return !is_own(qp, wc.wr_id);
}

}  // namespace

bool account(VContext& context, ibv_wc& wc) {
  VQp* const qp = context.numbers.find(wc.qp_num);
  if (__builtin_expect(qp == nullptr, 0)) return !is_marker(wc.wr_id) && !is_last_receive(wc.wr_id);
  if (__builtin_expect(wc.status != IBV_WC_SUCCESS, 0)) return account_error(*qp, wc);
  wc.qp_num = qp->pub.qp_num;
  if ((wc.opcode & IBV_WC_RECV) == 0) {
    if (__builtin_expect(is_marker(wc.wr_id), 0)) return !is_own(*qp, wc.wr_id);
    add_one(qp->sends_completed);
    return true;
  }
  if (__builtin_expect(qp->translate, 0) &&
      (qp->layer->state.load(std::memory_order_relaxed) & kCarried) != 0)
    qp->layer->name_source(*qp, wc);
  if (__builtin_expect(qp->srq != nullptr, 0)) {
    finish_srq_receive(*qp->srq, wc);
    add_one(qp->srq_received);
  } else {
    add_one(qp->recvs_completed);
  }
  return true;
}

int post_srq_slot(VSrq& srq, std::uint32_t index) {
  const SrqSlot& s = srq.slots[index];
  ibv_sge sges[kBatchSges];
  if (s.num_sge > kBatchSges) return EINVAL;
  translate_keys(of(srq.pub.context)->lkeys.get(), &srq.sges[std::size_t{index} * srq.stride],
                 static_cast<int>(s.num_sge), sges);
  return post_srq_elements(srq, index, sges);
}

void install_data_path(ibv_context_ops& ops) {
  ops.post_send = post_send;
  ops.post_recv = post_recv;
  ops.post_srq_recv = post_srq_recv;
  ops.poll_cq = poll_cq;
  ops.req_notify_cq = req_notify_cq;
}

bool is_virtual(const ibv_context* context) { return context->ops.poll_cq == poll_cq; }

}  // namespace symvirt::hooks::verbs
