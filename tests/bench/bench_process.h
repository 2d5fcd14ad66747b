// A "process" of the benchmark: the layer, its transport, and what an application holds; or the
// application alone.
#pragma once

#include <memory>
#include <string>

#include "pmix-hooks/ranks/verbs/layer.h"
#include "pmix-hooks/ranks/verbs/testing/endpoint.h"
#include "pmix-hooks/ranks/verbs/testing/fabric.h"
#include "pmix-hooks/ranks/verbs/verbs_transport.h"

namespace symvirt::hooks::verbs::bench {

// The interposed functions, in the form that an Endpoint takes.
const RealVerbs& interposed();

struct Process {
  // `device` is plugged at the host. The real verbs are `under` (set_real_verbs_for_test).
  Process(testing::Fabric& fabric, const RealVerbs& under, int host, bool with_layer,
          int cqe = 4096);
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  void act() const { testing::set_thread_host(host); }
  // Another device with other numbers.
  bool replace_device();

  testing::Fabric& fabric;
  const int host;
  std::unique_ptr<Layer> layer;  // null: without
  std::unique_ptr<VerbsTransport> transport;
  std::unique_ptr<testing::Endpoint> end;

 private:
  void plug();
  int devices_ = 0;
};

}  // namespace symvirt::hooks::verbs::bench
