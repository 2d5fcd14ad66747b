// Descriptors of the double that can be polled, and completion queues.
#include <utility>

#include "pmix-hooks/ranks/verbs/testing/objects.h"

namespace symvirt::hooks::verbs::testing {

void forget_events(Channel& channel, const Cq* cq) {
  channel.events.remove_if([cq](const Cq* other) { return other == cq; });
}

void forget_events(Context& context, const void* object) {
  context.events.remove_if([object](const ibv_async_event& event) {
    return static_cast<const void*>(event.element.qp) == object;
  });
}

void Acknowledged::delivered() {
  const std::lock_guard lock(lock_);
  ++delivered_;
}

void Acknowledged::acknowledged(unsigned count) {
  const std::lock_guard lock(lock_);
  acknowledged_ += count;
  changed_.notify_all();
}

void Acknowledged::wait() {
  std::unique_lock lock(lock_);
  changed_.wait(lock, [this] { return acknowledged_ >= delivered_; });
}

void raise_event(Context& context, const ibv_async_event& event) { context.events.push(event); }

void complete(Cq& cq, Cqe cqe) {
  bool overrun = false;
  {
    const std::lock_guard lock(cq.lock);
    if (cq.overrun) return;
    if (cq.entries.size() >= static_cast<std::size_t>(cq.cqe)) {
      overrun = cq.overrun = true;
    } else {
      const bool tell =
          cq.armed && (!cq.armed_solicited || cqe.solicited || cqe.wc.status != IBV_WC_SUCCESS);
      cq.entries.push_back(std::move(cqe));
      if (tell) cq.armed = false;
      if (tell && cq.channel != nullptr) static_cast<Channel*>(cq.channel)->events.push(&cq);
    }
  }
  if (!overrun) return;
  ibv_async_event event{};
  event.element.cq = &cq;
  event.event_type = IBV_EVENT_CQ_ERR;
  raise_event(*static_cast<Context*>(cq.context), event);
}

}  // namespace symvirt::hooks::verbs::testing
