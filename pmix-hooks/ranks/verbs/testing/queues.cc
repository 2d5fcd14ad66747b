// The calls of RealVerbs that are about completion queues, shared receive queues and queue pairs.
#include <cerrno>
#include <memory>
#include <utility>

#include "pmix-hooks/ranks/verbs/testing/control.h"

namespace symvirt::hooks::verbs::testing {
namespace {

ibv_comp_channel* create_comp_channel(ibv_context* public_context) {
  auto& context = *static_cast<Context*>(public_context);
  if (!context.owner->plugged) return errno = ENODEV, nullptr;
  auto* channel = new Channel();
  channel->context = public_context;
  channel->fd = channel->events.fd();
  const std::lock_guard lock(context.lock);
  context.channels.insert(channel);
  return channel;
}

int destroy_comp_channel(ibv_comp_channel* public_channel) {
  auto* channel = static_cast<Channel*>(public_channel);
  if (channel->cqs != 0) return EBUSY;
  auto& context = *static_cast<Context*>(channel->context);
  {
    const std::lock_guard lock(context.lock);
    context.channels.erase(channel);
  }
  delete channel;
  return 0;
}

ibv_cq* create_cq(ibv_context* public_context, int cqe, void* cq_context, ibv_comp_channel* channel,
                  int comp_vector) {
  auto& context = *static_cast<Context*>(public_context);
  if (!context.owner->plugged) return errno = ENODEV, nullptr;
  if (cqe < 1 || cqe > context.owner->spec.max_cqe || comp_vector != 0)
    return errno = EINVAL, nullptr;
  auto* cq = new Cq();
  cq->context = public_context;
  cq->channel = channel;
  cq->cq_context = cq_context;
  cq->handle = context.owner->next_handle++;
  cq->cqe = cqe;
  if (channel != nullptr) ++static_cast<Channel*>(channel)->cqs;
  const std::lock_guard lock(context.lock);
  context.cqs.insert(cq);
  return cq;
}

int resize_cq(ibv_cq* public_cq, int cqe) {
  auto& cq = *static_cast<Cq*>(public_cq);
  const std::lock_guard lock(cq.lock);
  if (cqe < 1 || cqe > device_of(cq.context).spec.max_cqe ||
      cq.entries.size() > static_cast<std::size_t>(cqe))
    return EINVAL;
  cq.cqe = cqe;
  return 0;
}

int destroy_cq(ibv_cq* public_cq) {
  auto* cq = static_cast<Cq*>(public_cq);
  if (cq->users != 0) return EBUSY;
  auto& context = *static_cast<Context*>(cq->context);
  if (auto* channel = static_cast<Channel*>(cq->channel)) {
    forget_events(*channel, cq);
    --channel->cqs;
  }
  forget_events(context, cq);
  cq->comp_events.wait();
  cq->async_events.wait();
  {
    const std::lock_guard lock(context.lock);
    context.cqs.erase(cq);
  }
  delete cq;
  return 0;
}

int get_cq_event(ibv_comp_channel* public_channel, ibv_cq** public_cq, void** cq_context) {
  Cq* cq = nullptr;
  const auto taken = [](Cq* of) { of->comp_events.delivered(); };
  if (!static_cast<Channel*>(public_channel)->events.pop(cq, taken)) return -1;
  *public_cq = cq;
  *cq_context = cq->cq_context;
  return 0;
}

void ack_cq_events(ibv_cq* cq, unsigned count) {
  static_cast<Cq*>(cq)->comp_events.acknowledged(count);
}

ibv_srq* create_srq(ibv_pd* pd, ibv_srq_init_attr* init) {
  auto& context = *static_cast<Context*>(pd->context);
  const DeviceSpec& spec = context.owner->spec;
  if (!context.owner->plugged) return errno = ENODEV, nullptr;
  if (init->attr.max_wr < 1 || init->attr.max_wr > spec.max_qp_wr ||
      init->attr.max_sge > spec.max_sge)
    return errno = EINVAL, nullptr;
  auto* srq = new Srq();
  srq->context = pd->context;
  srq->srq_context = init->srq_context;
  srq->pd = pd;
  srq->handle = context.owner->next_handle++;
  srq->queue.capacity = init->attr.max_wr;
  srq->queue.max_sge = init->attr.max_sge;
  ++static_cast<Pd*>(pd)->users;
  const std::lock_guard lock(context.lock);
  context.srqs.insert(srq);
  return srq;
}

int modify_srq(ibv_srq* public_srq, ibv_srq_attr* attr, int mask) {
  RecvQueue& queue = static_cast<Srq*>(public_srq)->queue;
  const std::lock_guard lock(queue.lock);
  if (mask & IBV_SRQ_MAX_WR) return EINVAL;
  if ((mask & IBV_SRQ_LIMIT) && attr->srq_limit >= queue.capacity) return EINVAL;
  if (mask & IBV_SRQ_LIMIT) queue.limit = attr->srq_limit;
  return 0;
}

int query_srq(ibv_srq* public_srq, ibv_srq_attr* attr) {
  RecvQueue& queue = static_cast<Srq*>(public_srq)->queue;
  const std::lock_guard lock(queue.lock);
  *attr = {queue.capacity, queue.max_sge, queue.limit};
  return 0;
}

int destroy_srq(ibv_srq* public_srq) {
  auto* srq = static_cast<Srq*>(public_srq);
  if (srq->users != 0) return EBUSY;
  auto& context = *static_cast<Context*>(srq->context);
  forget_events(context, srq);
  srq->async_events.wait();
  --static_cast<Pd*>(srq->pd)->users;
  {
    const std::lock_guard lock(context.lock);
    context.srqs.erase(srq);
  }
  delete srq;
  return 0;
}

void give_number(Device& device, const std::shared_ptr<Qp>& qp) {
  const std::lock_guard lock(device.qp_lock);
  while (device.qps.contains(device.next_qpn)) ++device.next_qpn;
  qp->qp_num = device.next_qpn;
  device.next_qpn = device.next_qpn == 0xffffff ? kFirstQpn : device.next_qpn + 1;
  device.qps.emplace(qp->qp_num, qp);
}

bool caps_valid(const DeviceSpec& spec, const ibv_qp_init_attr& init) {
  const ibv_qp_cap& cap = init.cap;
  return cap.max_send_wr <= spec.max_qp_wr && cap.max_recv_wr <= spec.max_qp_wr &&
         cap.max_send_sge <= spec.max_sge && cap.max_recv_sge <= spec.max_sge &&
         cap.max_inline_data <= spec.max_inline &&
         (init.qp_type == IBV_QPT_RC || init.qp_type == IBV_QPT_UC || init.qp_type == IBV_QPT_UD) &&
         init.send_cq != nullptr && init.recv_cq != nullptr;
}

ibv_qp* create_qp(ibv_pd* pd, ibv_qp_init_attr* init) {
  auto& context = *static_cast<Context*>(pd->context);
  if (!context.owner->plugged) return errno = ENODEV, nullptr;
  if (!caps_valid(context.owner->spec, *init)) return errno = EINVAL, nullptr;
  auto qp = std::make_shared<Qp>();
  qp->context = pd->context;
  qp->qp_context = init->qp_context;
  qp->pd = pd;
  qp->send_cq = init->send_cq;
  qp->recv_cq = init->recv_cq;
  qp->srq = init->srq;
  qp->handle = context.owner->next_handle++;
  qp->state = IBV_QPS_RESET;
  qp->qp_type = init->qp_type;
  qp->device = context.owner.get();
  qp->shared = static_cast<Srq*>(init->srq);
  if (init->srq != nullptr) init->cap.max_recv_wr = init->cap.max_recv_sge = 0;
  qp->cap = init->cap;
  qp->sq_sig_all = init->sq_sig_all != 0;
  qp->rq.capacity = init->cap.max_recv_wr;
  qp->rq.max_sge = init->cap.max_recv_sge;
  ++static_cast<Pd*>(pd)->users;
  ++static_cast<Cq*>(init->send_cq)->users;
  ++static_cast<Cq*>(init->recv_cq)->users;
  if (qp->shared != nullptr) ++qp->shared->users;
  give_number(*context.owner, qp);
  const std::lock_guard lock(context.lock);
  context.qps.emplace(qp.get(), qp);
  return qp.get();
}

int modify_qp(ibv_qp* public_qp, ibv_qp_attr* attr, int mask) {
  auto& qp = *static_cast<Qp*>(public_qp);
  if (!qp.device->plugged) return ENODEV;
  return modify(qp, *attr, mask);
}

int query_qp(ibv_qp* public_qp, ibv_qp_attr* attr, int, ibv_qp_init_attr* init) {
  auto& qp = *static_cast<Qp*>(public_qp);
  if (!qp.device->plugged) return ENODEV;
  const std::lock_guard lock(qp.exec);
  *attr = qp.attr;
  attr->qp_state = attr->cur_qp_state = qp.now;
  attr->cap = qp.cap;
  attr->sq_psn = qp.sq_psn;
  attr->rq_psn = qp.rq_psn;
  *init = {};
  init->qp_context = qp.qp_context;
  init->send_cq = qp.send_cq;
  init->recv_cq = qp.recv_cq;
  init->srq = qp.srq;
  init->cap = qp.cap;
  init->qp_type = qp.qp_type;
  init->sq_sig_all = qp.sq_sig_all;
  return 0;
}

void clean_cq(Cq& cq, const Qp* qp) {
  const std::lock_guard lock(cq.lock);
  std::erase_if(cq.entries, [qp](const Cqe& entry) {
    if (entry.qp != qp) return false;
    if (entry.slots && entry.free_to == 0) ++entry.slots->freed;  // an SRQ's slot
    return true;
  });
}

int destroy_qp(ibv_qp* public_qp) {
  auto& context = *static_cast<Context*>(public_qp->context);
  Device& device = *context.owner;
  std::shared_ptr<Qp> qp;
  {
    const std::lock_guard lock(context.lock);
    qp = std::move(context.qps.at(static_cast<Qp*>(public_qp)));
    context.qps.erase(qp.get());
  }
  {
    const std::lock_guard lock(qp->exec);  // nobody executes on it from here on
    qp->dead = true;
  }
  {
    const std::lock_guard lock(device.qp_lock);
    device.qps.erase(qp->qp_num);
  }
  device.forget(*qp);
  forget_events(context, static_cast<const ibv_qp*>(qp.get()));
  qp->async_events.wait();
  if (device.spec.clean_cq_on_destroy) {
    clean_cq(*static_cast<Cq*>(qp->send_cq), qp.get());
    clean_cq(*static_cast<Cq*>(qp->recv_cq), qp.get());
  }
  --static_cast<Pd*>(qp->pd)->users;
  --static_cast<Cq*>(qp->send_cq)->users;
  --static_cast<Cq*>(qp->recv_cq)->users;
  if (qp->shared != nullptr) --qp->shared->users;
  return 0;
}

int query_qp_data_in_order(ibv_qp*, ibv_wr_opcode, std::uint32_t) { return 0; }

template <typename T, typename Destroy>
int free_all(const std::set<T*>& objects, Destroy destroy) {
  int count = 0;
  const auto copy = objects;
  for (T* object : copy) count += destroy(object) == 0;
  return count;
}

}  // namespace

Acknowledged* acknowledged_by(const ibv_async_event& event) {
  switch (event.event_type) {
    case IBV_EVENT_CQ_ERR:
      return &static_cast<Cq*>(event.element.cq)->async_events;
    case IBV_EVENT_SRQ_ERR:
    case IBV_EVENT_SRQ_LIMIT_REACHED:
      return &static_cast<Srq*>(event.element.srq)->async_events;
    case IBV_EVENT_QP_FATAL:
    case IBV_EVENT_QP_REQ_ERR:
    case IBV_EVENT_QP_ACCESS_ERR:
    case IBV_EVENT_COMM_EST:
    case IBV_EVENT_SQ_DRAINED:
    case IBV_EVENT_QP_LAST_WQE_REACHED:
      return &static_cast<Qp*>(event.element.qp)->async_events;
    default:
      return nullptr;
  }
}

void free_what_is_left(Context& context) {
  int count = 0;
  const auto qps = context.qps;
  for (const auto& [qp, owner] : qps) count += destroy_qp(qp) == 0;
  const RealVerbs v = make_verbs(0);
  count += free_all(context.srqs, destroy_srq);
  count += free_all(context.cqs, destroy_cq);
  count += free_all(context.channels, destroy_comp_channel);
  count += free_all(context.ahs, v.destroy_ah);
  count += free_all(context.mrs, v.dereg_mr);
  count += free_all(context.pds, v.dealloc_pd);
  if (count != 0)
    context.owner->fabric.violation("context of " + context.owner->spec.name + " closed with " +
                                    std::to_string(count) + " objects left");
}

void fill_queue_calls(RealVerbs& v) {
  v.create_comp_channel = create_comp_channel;
  v.destroy_comp_channel = destroy_comp_channel;
  v.create_cq = create_cq;
  v.resize_cq = resize_cq;
  v.destroy_cq = destroy_cq;
  v.get_cq_event = get_cq_event;
  v.ack_cq_events = ack_cq_events;
  v.create_srq = create_srq;
  v.modify_srq = modify_srq;
  v.query_srq = query_srq;
  v.destroy_srq = destroy_srq;
  v.create_qp = create_qp;
  v.modify_qp = modify_qp;
  v.query_qp = query_qp;
  v.destroy_qp = destroy_qp;
  v.query_qp_data_in_order = query_qp_data_in_order;
}

}  // namespace symvirt::hooks::verbs::testing
