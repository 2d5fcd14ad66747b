// Shared receive queues and queue pairs.
#include <algorithm>
#include <vector>

#include "pmix-hooks/ranks/verbs/addresses.h"
#include "pmix-hooks/ranks/verbs/events.h"
#include "pmix-hooks/ranks/verbs/exports.h"
#include "pmix-hooks/ranks/verbs/queue_pair.h"

namespace symvirt::hooks::verbs {
namespace {

constexpr std::size_t kMaxTries = 1u << 16;  // to get a number that is not carried

ibv_srq* create_virtual_srq(ibv_pd* pd, ibv_srq_init_attr& init) {
  VContext& context = *of(pd->context);
  const ControlCall call(*context.layer);
  auto srq = std::make_unique<VSrq>();
  srq->layer = context.layer;
  srq->pub.context = &context.pub;
  srq->pub.srq_context = init.srq_context;
  srq->pub.pd = pd;
  srq->wanted = init.attr;
  if (!make_real_srq(*srq)) return nullptr;
  init.attr.max_wr = srq->attr.max_wr;
  init.attr.max_sge = srq->attr.max_sge;
  srq->pub.handle = srq->real->handle;
  // A provider may take a few more than it granted.
  srq->slot_count = srq->attr.max_wr + 64;
  srq->stride = std::max(srq->attr.max_sge, 1u);
  srq->slots = std::make_unique<SrqSlot[]>(srq->slot_count);
  srq->sges = std::make_unique<ibv_sge[]>(std::size_t{srq->slot_count} * srq->stride);
  srq->free_slots.reserve(srq->slot_count);
  pthread_mutex_init(&srq->pub.mutex, nullptr);
  pthread_cond_init(&srq->pub.cond, nullptr);
  const std::lock_guard lock(context.layer->objects_mutex);
  context.srqs.add(srq.get());
  return &srq.release()->pub;
}

int destroy_virtual_srq(VSrq& srq) {
  Layer& layer = *srq.layer;
  if (forked(layer)) return 0;
  {
    const ControlCall call(layer);
    if (const int error = srq.real == nullptr ? 0 : real_verbs()->destroy_srq(srq.real))
      return error;
    const std::lock_guard held(layer.held_mutex);
    forget_async_of(*of(srq.pub.context), &srq);
    const std::lock_guard lock(layer.objects_mutex);
    of(srq.pub.context)->srqs.remove(&srq);
  }
  await_acknowledged(srq.pub.mutex, srq.pub.cond, srq.pub.events_completed, srq.async_events_given);
  synchronize();
  pthread_cond_destroy(&srq.pub.cond);
  pthread_mutex_destroy(&srq.pub.mutex);
  delete &srq;
  return 0;
}

// A new queue pair's number is what it seems: one that is carried will not do.
bool make_new_qp(VQp& qp) {
  std::vector<ibv_qp*> unfit;
  bool made = false;
  while (unfit.size() < kMaxTries && make_real_qp(qp)) {
    made = !number_is_carried(*qp.context, qp.real->qp_num);
    if (made) break;
    unfit.push_back(std::exchange(qp.real, nullptr));
  }
  for (ibv_qp* other : unfit) real_verbs()->destroy_qp(other);
  return made;
}

void fill_public(VQp& qp, ibv_pd* pd) {
  qp.pub.context = &qp.context->pub;
  qp.pub.qp_context = qp.init.qp_context;
  qp.pub.pd = pd;
  qp.pub.send_cq = qp.init.send_cq;
  qp.pub.recv_cq = qp.init.recv_cq;
  qp.pub.srq = qp.init.srq;
  qp.pub.qp_type = qp.init.qp_type;
  qp.pub.state = IBV_QPS_RESET;
  pthread_mutex_init(&qp.pub.mutex, nullptr);
  pthread_cond_init(&qp.pub.cond, nullptr);
}

ibv_qp* create_virtual_qp(ibv_pd* pd, ibv_qp_init_attr& init) {
  VContext& context = *of(pd->context);
  const ControlCall call(*context.layer);
  auto qp = std::make_unique<VQp>();
  qp->layer = context.layer;
  qp->context = &context;
  qp->translate = init.qp_type == IBV_QPT_UD;
  qp->init = init;
  qp->srq = init.srq == nullptr ? nullptr : of(init.srq);
  fill_public(*qp, pd);
  if (!make_new_qp(*qp)) return nullptr;
  if (init.qp_type != IBV_QPT_RC && init.qp_type != IBV_QPT_UC && init.qp_type != IBV_QPT_UD)
    context.layer->mark_immovable("queue pair of type " + std::to_string(init.qp_type) +
                                  " (only RC, UC and UD can be moved)");
  init.cap = qp->cap;
  qp->pub.handle = qp->real->handle;
  qp->pub.qp_num = qp->real->qp_num;
  qp->sends.configure(qp->cap.max_send_wr + 2, qp->cap.max_send_sge, qp->cap.max_inline_data,
                      init.sq_sig_all != 0);
  if (qp->srq == nullptr) qp->recvs.configure(qp->cap.max_recv_wr, qp->cap.max_recv_sge);
  context.numbers.set(qp->real->qp_num, qp.get());
  const std::lock_guard lock(context.layer->objects_mutex);
  reserve_own(*of(init.send_cq), 1);
  reserve_own(*of(init.recv_cq), 1);
  context.qps.add(qp.get());
  return &qp.release()->pub;
}

int destroy_virtual_qp(VQp& qp) {
  Layer& layer = *qp.layer;
  VContext& context = *qp.context;
  if (forked(layer)) return 0;
  {
    const ControlCall call(layer);
    const std::uint32_t number = qp.real == nullptr ? 0 : qp.real->qp_num;
    if (const int error = qp.real == nullptr ? 0 : real_verbs()->destroy_qp(qp.real)) return error;
    context.numbers.set(number, nullptr);
    const std::lock_guard held(layer.held_mutex);
    forget_async_of(context, &qp);
    const std::lock_guard lock(layer.objects_mutex);
    reserve_own(*of(qp.init.send_cq), -1);
    reserve_own(*of(qp.init.recv_cq), -1);
    context.qps.remove(&qp);
  }
  await_acknowledged(qp.pub.mutex, qp.pub.cond, qp.pub.events_completed, qp.async_events_given);
  synchronize();  // a poller may have found it just before
  pthread_cond_destroy(&qp.pub.cond);
  pthread_mutex_destroy(&qp.pub.mutex);
  delete &qp;
  return 0;
}

// f with both of a queue pair's logs to itself, against posting threads.
template <typename F>
void alone_with_logs(VQp& qp, F f) {
  ThreadSlot* const slot = this_thread();
  while (true) {
    enter(slot);
    const auto send = qp.send_lock.lock(slot);
    if (send == BiasedLock::Taken::kRetry) continue;
    const auto recv = qp.recv_lock.lock(slot);
    if (recv != BiasedLock::Taken::kRetry) {
      f();
      qp.recv_lock.unlock(recv);
      qp.send_lock.unlock(send);
      leave(slot);
      return;
    }
    qp.send_lock.unlock(send);
  }
}

int modify_virtual_qp(VQp& qp, const ibv_qp_attr& attr, int mask) {
  const ControlCall call(*qp.layer);
  if ((mask & IBV_QP_ALT_PATH) != 0)
    qp.layer->mark_immovable("alternate path (automatic path migration)");
  remember_attributes(qp, attr, mask);
  ibv_qp_attr real = real_attributes(qp, attr, mask);
  const int error = real_verbs()->modify_qp(qp.real, &real, mask);
  if (error != 0) return error;
  if ((mask & IBV_QP_STATE) == 0) return 0;
  qp.pub.state = attr.qp_state;
  if (attr.qp_state == IBV_QPS_RESET) {
    alone_with_logs(qp, [&qp] { forget_work(qp); });
  }
  return 0;
}

}  // namespace

bool make_real_srq(VSrq& srq) {
  ibv_srq_init_attr init{};
  init.srq_context = &srq.pub;
  init.attr = srq.wanted;
  srq.real = real_verbs()->create_srq(of(srq.pub.pd)->real, &init);
  if (srq.real == nullptr) return false;
  srq.attr = init.attr;
  return true;
}

}  // namespace symvirt::hooks::verbs

using namespace symvirt::hooks::verbs;

extern "C" {

ibv_srq* ibv_create_srq(ibv_pd* pd, ibv_srq_init_attr* init) {
  if (!is_virtual(pd->context)) return real_verbs()->create_srq(pd, init);
  if (forked(*of(pd->context)->layer)) return errno = EIO, nullptr;
  return no_throw<ibv_srq*>(nullptr, [&] { return create_virtual_srq(pd, *init); });
}

int ibv_modify_srq(ibv_srq* pub, ibv_srq_attr* attr, int mask) {
  if (!is_virtual(pub->context)) return real_verbs()->modify_srq(pub, attr, mask);
  VSrq& srq = *of(pub);
  if (forked(*srq.layer)) return EIO;
  // The places of its receives are numbered up to the size it was made with.
  if ((mask & IBV_SRQ_MAX_WR) != 0 && attr->max_wr > srq.attr.max_wr) return EOPNOTSUPP;
  const ControlCall call(*srq.layer);
  const int error = real_verbs()->modify_srq(srq.real, attr, mask);
  if (error == 0 && (mask & IBV_SRQ_LIMIT) != 0) srq.limit = attr->srq_limit;
  return error;
}

int ibv_query_srq(ibv_srq* pub, ibv_srq_attr* attr) {
  if (!is_virtual(pub->context)) return real_verbs()->query_srq(pub, attr);
  VSrq& srq = *of(pub);
  if (forked(*srq.layer)) return EIO;
  const ControlCall call(*srq.layer);
  return real_verbs()->query_srq(srq.real, attr);
}

int ibv_destroy_srq(ibv_srq* srq) {
  if (!is_virtual(srq->context)) return real_verbs()->destroy_srq(srq);
  return no_throw<int>(ENOMEM, [&] { return destroy_virtual_srq(*of(srq)); });
}

ibv_qp* ibv_create_qp(ibv_pd* pd, ibv_qp_init_attr* init) {
  if (!is_virtual(pd->context)) return real_verbs()->create_qp(pd, init);
  if (forked(*of(pd->context)->layer)) return errno = EIO, nullptr;
  return no_throw<ibv_qp*>(nullptr, [&] { return create_virtual_qp(pd, *init); });
}

int ibv_modify_qp(ibv_qp* qp, ibv_qp_attr* attr, int mask) {
  if (!is_virtual(qp->context)) return real_verbs()->modify_qp(qp, attr, mask);
  if (forked(*of(qp)->layer)) return EIO;
  return no_throw<int>(ENOMEM, [&] { return modify_virtual_qp(*of(qp), *attr, mask); });
}

int ibv_query_qp(ibv_qp* pub, ibv_qp_attr* attr, int mask, ibv_qp_init_attr* init) {
  if (!is_virtual(pub->context)) return real_verbs()->query_qp(pub, attr, mask, init);
  VQp& qp = *of(pub);
  if (forked(*qp.layer)) return EIO;
  const ControlCall call(*qp.layer);
  const int error = real_verbs()->query_qp(qp.real, attr, mask, init);
  if (error == 0) make_visible(qp, *attr, *init);
  if (error == 0 && (mask & IBV_QP_STATE) != 0) pub->state = attr->qp_state;
  return error;
}

int ibv_destroy_qp(ibv_qp* qp) {
  if (!is_virtual(qp->context)) return real_verbs()->destroy_qp(qp);
  return no_throw<int>(ENOMEM, [&] { return destroy_virtual_qp(*of(qp)); });
}

int ibv_query_qp_data_in_order(ibv_qp* pub, ibv_wr_opcode op, std::uint32_t flags) {
  // Of a device that may be another one later: no promise.
  if (is_virtual(pub->context) || real_verbs()->query_qp_data_in_order == nullptr) return 0;
  return real_verbs()->query_qp_data_in_order(pub, op, flags);
}

}  // extern "C"
