// Completion channels and asynchronous events.
//
// The descriptor an application sees is an epoll descriptor of the layer's own, for the whole life
// of the object: applications put it into their epoll sets, and a replaced descriptor would
// silently leave those. In it are the real descriptor, which comes and goes, and an eventfd for
// events that were read from the real one during a quiesce, or stand for completions that moved to
// the software queue.
//
// The real descriptors never block: who has to wait waits on the layer's.
#include "pmix-hooks/ranks/verbs/events.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>

#include "pmix-hooks/ranks/verbs/real_verbs.h"

namespace symvirt::hooks::verbs {
namespace {

void wake_up(int fd) { static_cast<void>(eventfd_write(fd, 1)); }
void calm_down(int fd) {
  eventfd_t value = 0;
  static_cast<void>(eventfd_read(fd, &value));
}

void count_one(pthread_mutex_t& mutex, std::uint32_t& count) {
  pthread_mutex_lock(&mutex);
  ++count;
  pthread_mutex_unlock(&mutex);
}

void count_given(ibv_async_event& event) {
  switch (static_cast<int>(event.event_type)) {
    case IBV_EVENT_CQ_ERR:
      return count_one(event.element.cq->mutex, of(event.element.cq)->async_events_given);
    case IBV_EVENT_SRQ_ERR:
    case IBV_EVENT_SRQ_LIMIT_REACHED:
      return count_one(event.element.srq->mutex, of(event.element.srq)->async_events_given);
    default:
      if (concerns_qp(event))
        count_one(event.element.qp->mutex, of(event.element.qp)->async_events_given);
      return;
  }
}

// Real objects carry ours as their context pointer.
void make_virtual(ibv_async_event& event) {
  switch (static_cast<int>(event.event_type)) {
    case IBV_EVENT_CQ_ERR:
      event.element.cq = static_cast<ibv_cq*>(event.element.cq->cq_context);
      break;
    case IBV_EVENT_SRQ_LIMIT_REACHED:
      event.element.srq = static_cast<ibv_srq*>(event.element.srq->srq_context);
      of(event.element.srq)->limit = 0;
      break;
    case IBV_EVENT_SRQ_ERR:
      event.element.srq = static_cast<ibv_srq*>(event.element.srq->srq_context);
      break;
    default:
      if (concerns_qp(event)) event.element.qp = static_cast<ibv_qp*>(event.element.qp->qp_context);
      break;
  }
}

// The device's next event, acknowledged there; null: none.
VCq* take_event(VChannel& channel) {
  ibv_cq* cq = nullptr;
  void* ours = nullptr;
  if (channel.real == nullptr || real_verbs()->get_cq_event(channel.real, &cq, &ours) != 0)
    return nullptr;
  real_verbs()->ack_cq_events(cq, 1);
  return static_cast<VCq*>(ours);
}

// True when there is something to read; false: EAGAIN for a descriptor that does not block, or the
// error poll() met, in errno.
bool await(int fd) {
  const int flags = fcntl(fd, F_GETFL);
  if (flags >= 0 && (flags & O_NONBLOCK) != 0) {
    errno = EAGAIN;
    return false;
  }
  pollfd p{fd, POLLIN, 0};
  return poll(&p, 1, -1) > 0;
}

}  // namespace

bool concerns_qp(const ibv_async_event& event) {
  switch (static_cast<int>(event.event_type)) {
    case IBV_EVENT_QP_FATAL:
    case IBV_EVENT_QP_REQ_ERR:
    case IBV_EVENT_QP_ACCESS_ERR:
    case IBV_EVENT_COMM_EST:
    case IBV_EVENT_SQ_DRAINED:
    case IBV_EVENT_PATH_MIG:
    case IBV_EVENT_PATH_MIG_ERR:
    case IBV_EVENT_QP_LAST_WQE_REACHED:
      return true;
    default:
      return false;
  }
}

int open_event_fd(int& wake) {
  const int fd = epoll_create1(EPOLL_CLOEXEC);
  if (fd < 0) return -1;
  wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  epoll_event event{};
  event.events = EPOLLIN;
  if (wake >= 0 && epoll_ctl(fd, EPOLL_CTL_ADD, wake, &event) == 0) return fd;
  const int error = errno;
  if (wake >= 0) close(wake);
  close(fd);
  errno = error;
  return -1;
}

bool put_into_event_fd(int event_fd, int real_fd) {
  const int flags = fcntl(real_fd, F_GETFL);
  if (flags < 0 || fcntl(real_fd, F_SETFL, flags | O_NONBLOCK) != 0) return false;
  epoll_event event{};
  event.events = EPOLLIN;
  return epoll_ctl(event_fd, EPOLL_CTL_ADD, real_fd, &event) == 0;
}

void take_from_event_fd(int event_fd, int real_fd) {
  epoll_ctl(event_fd, EPOLL_CTL_DEL, real_fd, nullptr);
}

void raise_event(VCq& cq) {
  if (cq.pub.channel == nullptr) return;
  VChannel& channel = *of(cq.pub.channel);
  channel.soft_events.push_back(&cq);
  wake_up(channel.wake);
}

void raise_async(VContext& context, const ibv_async_event& event) {
  context.soft_async.push_back(event);
  wake_up(context.wake);
}

bool drain_channel(VChannel& channel) {
  bool any = false;
  while (VCq* cq = take_event(channel)) {
    raise_event(*cq);
    any = true;
  }
  return any;
}

bool drain_async(VContext& context) {
  bool any = false;
  ibv_async_event event{};
  while (real_verbs()->get_async_event(context.real, &event) == 0) {
    ibv_async_event real = event;
    make_virtual(event);
    real_verbs()->ack_async_event(&real);
    any = true;
    // Of a queue pair that the layer errored: not the application's business.
    if (concerns_qp(event) && of(event.element.qp)->taken_back) continue;
    raise_async(context, event);
  }
  return any;
}

int next_cq_event(VChannel& channel, VCq*& out) {
  Layer& layer = *of(channel.pub.context)->layer;
  while (true) {
    {
      const std::lock_guard lock(layer.held_mutex);
      if (channel.soft_events.empty()) {
        // As nearly always: one system call, as without the layer, when an event is there.
        out = take_event(channel);
      } else {
        out = channel.soft_events.front();
        channel.soft_events.pop_front();
        if (channel.soft_events.empty()) calm_down(channel.wake);
      }
      if (out != nullptr) {
        pthread_mutex_lock(&out->pub.mutex);
        ++out->comp_events_given;
        pthread_mutex_unlock(&out->pub.mutex);
        return 0;
      }
    }
    if (!await(channel.pub.fd)) return -1;
  }
}

int next_async_event(VContext& context, ibv_async_event& out) {
  Layer& layer = *context.layer;
  while (true) {
    {
      const std::lock_guard lock(layer.held_mutex);
      if (context.soft_async.empty() && context.real != nullptr) drain_async(context);
      if (!context.soft_async.empty()) {
        out = context.soft_async.front();
        context.soft_async.pop_front();
        if (context.soft_async.empty()) calm_down(context.wake);
        count_given(out);
        return 0;
      }
    }
    if (!await(context.pub.async_fd)) return -1;
  }
}

void forget_events_of(VChannel& channel, const VCq* cq) {
  std::erase(channel.soft_events, cq);
  if (channel.soft_events.empty()) calm_down(channel.wake);
}

void forget_async_of(VContext& context, const void* element) {
  std::erase_if(context.soft_async, [element](const ibv_async_event& e) {
    const bool has_element = concerns_qp(e) || e.event_type == IBV_EVENT_CQ_ERR ||
                             e.event_type == IBV_EVENT_SRQ_ERR ||
                             e.event_type == IBV_EVENT_SRQ_LIMIT_REACHED;
    return has_element && static_cast<const void*>(e.element.cq) == element;
  });
  if (context.soft_async.empty()) calm_down(context.wake);
}

}  // namespace symvirt::hooks::verbs
