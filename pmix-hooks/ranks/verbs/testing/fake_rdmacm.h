// What stands in for librdmacm in tests: counts its calls. In a shared object, since the layer
// looks for what comes behind its own functions of these names.
#pragma once

#include <sys/socket.h>

namespace symvirt::hooks::verbs::testing {
__attribute__((visibility("default"))) int fake_rdmacm_calls();
}

// The layer's, as librdmacm declares them (struct rdma_cm_id and others: not looked into).
extern "C" {
int rdma_bind_addr(void* id, sockaddr* address);
int rdma_resolve_addr(void* id, sockaddr* from, sockaddr* to, int timeout_ms);
}
