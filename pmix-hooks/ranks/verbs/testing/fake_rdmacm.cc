#include "pmix-hooks/ranks/verbs/testing/fake_rdmacm.h"

namespace {
int calls = 0;
}

namespace symvirt::hooks::verbs::testing {
int fake_rdmacm_calls() { return calls; }
}  // namespace symvirt::hooks::verbs::testing

extern "C" {
int rdma_bind_addr(void*, sockaddr*) { return ++calls, 0; }
int rdma_resolve_addr(void*, sockaddr*, sockaddr*, int) { return ++calls, 0; }
}
