// Between control.cc and queues.cc.
#pragma once

#include "pmix-hooks/ranks/verbs/testing/objects.h"

namespace symvirt::hooks::verbs::testing {

void fill_queue_calls(RealVerbs& verbs);
// What waits for this event to be acknowledged; null: nothing (of the port, the device).
Acknowledged* acknowledged_by(const ibv_async_event& event);
// As the kernel does when the descriptor is closed.
void free_what_is_left(Context& context);

}  // namespace symvirt::hooks::verbs::testing
