// What the layer cannot carry over a move. Most of it is refused as by a device that does not have
// it (the virtual context has no verbs_context, so that everything extended says EOPNOTSUPP in
// verbs.h itself); what is allowed makes the process say "cannot quiesce", with the reason, at
// once.
#include <dlfcn.h>
#include <sys/socket.h>

#include <cstring>

#include "pmix-hooks/ranks/verbs/exports.h"

namespace symvirt::hooks::verbs {
namespace {

// librdmacm, when an application (or UCX) has it.
template <typename F>
F rdmacm_function(const char* name) {
  void* symbol = dlsym(RTLD_NEXT, name);
  if (symbol == nullptr) {
    if (void* library = dlopen("librdmacm.so.1", RTLD_LAZY | RTLD_NOLOAD))
      symbol = dlsym(library, name);
  }
  return reinterpret_cast<F>(symbol);
}

void mark_rdma_cm() {
  Layer::current().mark_immovable("connection by rdma_cm: the kernel holds the device for it");
}

// The first call into librdmacm of each process binds an identifier to no device, to see whether
// the kernel knows AF_IB (ucma_set_af_ib_support in rdma-core's librdmacm/cma.c): UCX makes one
// whatever its transports are.
bool is_probe(const void* id, const sockaddr* address) {
  const ibv_context* verbs =
      nullptr;  // the first member of rdma_cm_id: its device, when it has one
  std::memcpy(&verbs, id, sizeof verbs);
  return address->sa_family == AF_IB && verbs == nullptr;
}

}  // namespace
}  // namespace symvirt::hooks::verbs

using namespace symvirt::hooks::verbs;

extern "C" {

int ibv_attach_mcast(ibv_qp* qp, const union ibv_gid* gid, std::uint16_t lid) {
  if (!is_virtual(qp->context)) return real_verbs()->attach_mcast(qp, gid, lid);
  const ControlCall call(*of(qp)->layer);
  const int error = real_verbs()->attach_mcast(of(qp)->real, gid, lid);
  if (error == 0) of(qp)->layer->mark_immovable("multicast group");
  return error;
}

int ibv_detach_mcast(ibv_qp* qp, const union ibv_gid* gid, std::uint16_t lid) {
  if (!is_virtual(qp->context)) return real_verbs()->detach_mcast(qp, gid, lid);
  if (forked(*of(qp)->layer)) return 0;
  const ControlCall call(*of(qp)->layer);
  return real_verbs()->detach_mcast(of(qp)->real, gid, lid);
}

ibv_context* ibv_import_device(int) { return errno = EOPNOTSUPP, nullptr; }

ibv_pd* ibv_import_pd(ibv_context* context, std::uint32_t handle) {
  if (!is_virtual(context)) return real_verbs()->import_pd(context, handle);
  return errno = EOPNOTSUPP, nullptr;
}

ibv_mr* ibv_import_mr(ibv_pd* pd, std::uint32_t handle) {
  if (!is_virtual(pd->context)) return real_verbs()->import_mr(pd, handle);
  return errno = EOPNOTSUPP, nullptr;
}

ibv_dm* ibv_import_dm(ibv_context* context, std::uint32_t handle) {
  if (!is_virtual(context)) return real_verbs()->import_dm(context, handle);
  return errno = EOPNOTSUPP, nullptr;
}

ibv_qp_ex* ibv_qp_to_qp_ex(ibv_qp* qp) {
  if (!is_virtual(qp->context)) return real_verbs()->qp_to_qp_ex(qp);
  return errno = EOPNOTSUPP, nullptr;
}

int ibv_query_ece(ibv_qp* qp, ibv_ece* ece) {
  if (is_virtual(qp->context) || real_verbs()->query_ece == nullptr) return EOPNOTSUPP;
  return real_verbs()->query_ece(qp, ece);
}

int ibv_set_ece(ibv_qp* qp, ibv_ece* ece) {
  if (is_virtual(qp->context) || real_verbs()->set_ece == nullptr) return EOPNOTSUPP;
  return real_verbs()->set_ece(qp, ece);
}

// An rdma_cm identifier is bound to a device by one of these. librdmacm itself (rdma_create_ep,
// rsockets) calls them through its PLT, so by here, too: tests/abi/check-interposed.
struct rdma_cm_id;

#pragma GCC visibility push(default)

int rdma_resolve_addr(rdma_cm_id* id, sockaddr* from, sockaddr* to, int timeout_ms) {
  const auto real = rdmacm_function<decltype(&rdma_resolve_addr)>("rdma_resolve_addr");
  if (real == nullptr) return errno = ENOSYS, -1;
  mark_rdma_cm();
  return real(id, from, to, timeout_ms);
}

int rdma_bind_addr(rdma_cm_id* id, sockaddr* address) {
  const auto real = rdmacm_function<decltype(&rdma_bind_addr)>("rdma_bind_addr");
  if (real == nullptr) return errno = ENOSYS, -1;
  const int error = real(id, address);
  if (!is_probe(id, address)) mark_rdma_cm();
  return error;
}

#pragma GCC visibility pop

}  // extern "C"
