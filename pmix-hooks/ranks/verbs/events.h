// Completion channels and asynchronous events (events.cc). All but next_* are called with
// Layer::held_mutex held.
#pragma once

#include "pmix-hooks/ranks/verbs/layer.h"

namespace symvirt::hooks::verbs {

bool concerns_qp(const ibv_async_event& event);

// An epoll descriptor with an eventfd (wake) in it, or -1 and errno.
int open_event_fd(int& wake);
bool put_into_event_fd(int event_fd, int real_fd);
void take_from_event_fd(int event_fd, int real_fd);

// As ibv_get_cq_event and ibv_get_async_event: 0, or -1 and errno. They wait, unless the
// application made the descriptor O_NONBLOCK.
int next_cq_event(VChannel& channel, VCq*& out);
int next_async_event(VContext& context, ibv_async_event& out);

// The object is about to go.
void forget_events_of(VChannel& channel, const VCq* cq);
void forget_async_of(VContext& context, const void* element);

}  // namespace symvirt::hooks::verbs
