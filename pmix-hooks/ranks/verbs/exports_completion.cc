// Completion channels and queues.
#include <unistd.h>

#include "pmix-hooks/ranks/verbs/events.h"
#include "pmix-hooks/ranks/verbs/exports.h"

namespace symvirt::hooks::verbs {
namespace {

constexpr int kSpare = 128;  // for the own work of 64 queue pairs: few queues have to be resized

// For any device; else it is to refuse what the application asks for.
bool is_possible(int cqe) { return cqe > 0 && cqe < 1 << 30; }

ibv_comp_channel* create_virtual_channel(VContext& context) {
  const ControlCall call(*context.layer);
  auto channel = std::make_unique<VChannel>();
  const int fd = open_event_fd(channel->wake);
  if (fd < 0) return nullptr;
  channel->real = real_verbs()->create_comp_channel(context.real);
  if (channel->real == nullptr || !put_into_event_fd(fd, channel->real->fd)) {
    const int error = errno;
    if (channel->real != nullptr) real_verbs()->destroy_comp_channel(channel->real);
    close(channel->wake);
    close(fd);
    errno = error;
    return nullptr;
  }
  channel->pub = {&context.pub, fd, 0};
  const std::lock_guard lock(context.layer->objects_mutex);
  context.channels.add(channel.get());
  return &channel.release()->pub;
}

int destroy_virtual_channel(VChannel& channel) {
  Layer& layer = *of(channel.pub.context)->layer;
  if (forked(layer)) return 0;
  const ControlCall call(layer);
  {
    const std::lock_guard held(layer.held_mutex);
    if (channel.pub.refcnt != 0) return EBUSY;
    if (channel.real != nullptr) {
      take_from_event_fd(channel.pub.fd, channel.real->fd);
      const int error = real_verbs()->destroy_comp_channel(channel.real);
      if (error != 0) {
        put_into_event_fd(channel.pub.fd, channel.real->fd);
        return error;
      }
    }
    const std::lock_guard lock(layer.objects_mutex);
    of(channel.pub.context)->channels.remove(&channel);
  }
  close(channel.wake);
  close(channel.pub.fd);
  delete &channel;
  return 0;
}

ibv_cq* create_virtual_cq(VContext& context, int cqe, void* cq_context, ibv_comp_channel* channel,
                          int comp_vector) {
  const ControlCall call(*context.layer);
  auto cq = std::make_unique<VCq>();
  cq->layer = context.layer;
  cq->comp_vector = comp_vector;
  cq->spare = kSpare;
  cq->pub.context = &context.pub;
  cq->pub.channel = channel;
  cq->pub.cq_context = cq_context;
  cq->pub.cqe = cqe;
  if (!make_real_cq(*cq, comp_vector)) return nullptr;
  cq->pub.handle = cq->real->handle;
  pthread_mutex_init(&cq->pub.mutex, nullptr);
  pthread_cond_init(&cq->pub.cond, nullptr);
  const std::lock_guard held(context.layer->held_mutex);
  if (channel != nullptr) ++channel->refcnt;
  const std::lock_guard lock(context.layer->objects_mutex);
  context.cqs.add(cq.get());
  return &cq.release()->pub;
}

int destroy_virtual_cq(VCq& cq) {
  Layer& layer = *cq.layer;
  VContext& context = *of(cq.pub.context);
  if (forked(layer)) return 0;
  {
    const ControlCall call(layer);
    if (const int error = cq.real == nullptr ? 0 : real_verbs()->destroy_cq(cq.real)) return error;
    const std::lock_guard held(layer.held_mutex);
    if (cq.pub.channel != nullptr) {
      forget_events_of(*of(cq.pub.channel), &cq);
      --cq.pub.channel->refcnt;
    }
    forget_async_of(context, &cq);
    const std::lock_guard lock(layer.objects_mutex);
    context.cqs.remove(&cq);
  }
  await_acknowledged(cq.pub.mutex, cq.pub.cond, cq.pub.comp_events_completed, cq.comp_events_given);
  await_acknowledged(cq.pub.mutex, cq.pub.cond, cq.pub.async_events_completed,
                     cq.async_events_given);
  synchronize();
  pthread_cond_destroy(&cq.pub.cond);
  pthread_mutex_destroy(&cq.pub.mutex);
  delete &cq;
  return 0;
}

}  // namespace

bool make_real_cq(VCq& cq, int comp_vector) {
  ibv_comp_channel* const channel = cq.pub.channel == nullptr ? nullptr : of(cq.pub.channel)->real;
  const auto create = [&](int cqe) {
    cq.real = real_verbs()->create_cq(of(cq.pub.context)->real, cqe, &cq.pub, channel, comp_vector);
    return cq.real != nullptr;
  };
  return (is_possible(cq.pub.cqe) && create(cq.pub.cqe + cq.spare)) || create(cq.pub.cqe);
}

void reserve_own(VCq& cq, int more) {
  cq.own += more;
  if (cq.own <= cq.spare) return;
  const int spare = cq.own * 2;
  if (real_verbs()->resize_cq(cq.real, cq.pub.cqe + spare) == 0) cq.spare = spare;
}

}  // namespace symvirt::hooks::verbs

using namespace symvirt::hooks::verbs;

extern "C" {

ibv_comp_channel* ibv_create_comp_channel(ibv_context* pub) {
  if (!is_virtual(pub)) return real_verbs()->create_comp_channel(pub);
  if (forked(*of(pub)->layer)) return errno = EIO, nullptr;
  return no_throw<ibv_comp_channel*>(nullptr, [&] { return create_virtual_channel(*of(pub)); });
}

int ibv_destroy_comp_channel(ibv_comp_channel* channel) {
  if (!is_virtual(channel->context)) return real_verbs()->destroy_comp_channel(channel);
  return destroy_virtual_channel(*of(channel));
}

ibv_cq* ibv_create_cq(ibv_context* pub, int cqe, void* cq_context, ibv_comp_channel* channel,
                      int comp_vector) {
  if (!is_virtual(pub)) return real_verbs()->create_cq(pub, cqe, cq_context, channel, comp_vector);
  if (forked(*of(pub)->layer)) return errno = EIO, nullptr;
  return no_throw<ibv_cq*>(
      nullptr, [&] { return create_virtual_cq(*of(pub), cqe, cq_context, channel, comp_vector); });
}

int ibv_resize_cq(ibv_cq* pub, int cqe) {
  if (!is_virtual(pub->context)) return real_verbs()->resize_cq(pub, cqe);
  VCq& cq = *of(pub);
  if (forked(*cq.layer)) return EIO;
  const ControlCall call(*cq.layer);
  const RealVerbs& v = *real_verbs();
  if (!is_possible(cqe) || v.resize_cq(cq.real, cqe + cq.spare) != 0) {
    if (const int error = v.resize_cq(cq.real, cqe)) return error;
  }
  pub->cqe = cqe;
  return 0;
}

int ibv_destroy_cq(ibv_cq* cq) {
  if (!is_virtual(cq->context)) return real_verbs()->destroy_cq(cq);
  return no_throw<int>(ENOMEM, [&] { return destroy_virtual_cq(*of(cq)); });
}

int ibv_get_cq_event(ibv_comp_channel* channel, ibv_cq** cq, void** cq_context) {
  if (!is_virtual(channel->context)) return real_verbs()->get_cq_event(channel, cq, cq_context);
  if (forked(*of(channel->context)->layer)) return errno = EIO, -1;
  return no_throw<int>(-1, [&] {
    VCq* found = nullptr;
    if (next_cq_event(*of(channel), found) != 0) return -1;
    *cq = &found->pub;
    *cq_context = found->pub.cq_context;
    return 0;
  });
}

void ibv_ack_cq_events(ibv_cq* cq, unsigned int count) {
  if (!is_virtual(cq->context)) return real_verbs()->ack_cq_events(cq, count);
  acknowledge(cq->mutex, cq->cond, cq->comp_events_completed, count);
}

}  // extern "C"
