#include "pmix-hooks/ranks/verbs/real_verbs.h"

#include <dlfcn.h>

#include <atomic>
#include <mutex>

namespace symvirt::hooks::verbs {
namespace {

std::atomic<const RealVerbs*> current{nullptr};
std::mutex load_mutex;

// An application that links libibverbs has it; UCX brings it with dlopen(libuct_ib.so), privately,
// so RTLD_NEXT would not see it.
void* open_library() {
  if (void* handle = dlopen("libibverbs.so.1", RTLD_LAZY | RTLD_NOLOAD)) return handle;
  return dlopen("libibverbs.so.1", RTLD_LAZY | RTLD_LOCAL);
}

// The current ABI is IBVERBS_1.1; calls that came later have other versions, and only one.
template <typename F>
void find(void* library, const char* name, F& out) {
  void* symbol = dlvsym(library, name, "IBVERBS_1.1");
  if (symbol == nullptr) symbol = dlsym(library, name);
  out = reinterpret_cast<F>(symbol);
}

void find_all(void* lib, RealVerbs& v) {
#define SYMVIRT_FIND(name) find(lib, "ibv_" #name, v.name)
  SYMVIRT_FIND(get_device_list);
  SYMVIRT_FIND(free_device_list);
  SYMVIRT_FIND(get_device_name);
  SYMVIRT_FIND(get_device_guid);
  SYMVIRT_FIND(get_device_index);
  SYMVIRT_FIND(open_device);
  SYMVIRT_FIND(close_device);
  SYMVIRT_FIND(get_async_event);
  SYMVIRT_FIND(ack_async_event);
  SYMVIRT_FIND(query_device);
  SYMVIRT_FIND(query_port);
  SYMVIRT_FIND(query_gid);
  find(lib, "_ibv_query_gid_ex", v.query_gid_ex);
  find(lib, "_ibv_query_gid_table", v.query_gid_table);
  SYMVIRT_FIND(query_pkey);
  SYMVIRT_FIND(get_pkey_index);
  SYMVIRT_FIND(alloc_pd);
  SYMVIRT_FIND(dealloc_pd);
  SYMVIRT_FIND(reg_mr);
  SYMVIRT_FIND(reg_mr_iova);
  SYMVIRT_FIND(reg_mr_iova2);
  SYMVIRT_FIND(reg_dmabuf_mr);
  SYMVIRT_FIND(rereg_mr);
  SYMVIRT_FIND(dereg_mr);
  SYMVIRT_FIND(create_comp_channel);
  SYMVIRT_FIND(destroy_comp_channel);
  SYMVIRT_FIND(create_cq);
  SYMVIRT_FIND(resize_cq);
  SYMVIRT_FIND(destroy_cq);
  SYMVIRT_FIND(get_cq_event);
  SYMVIRT_FIND(ack_cq_events);
  SYMVIRT_FIND(create_srq);
  SYMVIRT_FIND(modify_srq);
  SYMVIRT_FIND(query_srq);
  SYMVIRT_FIND(destroy_srq);
  SYMVIRT_FIND(create_qp);
  SYMVIRT_FIND(modify_qp);
  SYMVIRT_FIND(query_qp);
  SYMVIRT_FIND(destroy_qp);
  SYMVIRT_FIND(query_qp_data_in_order);
  SYMVIRT_FIND(query_ece);
  SYMVIRT_FIND(set_ece);
  SYMVIRT_FIND(create_ah);
  SYMVIRT_FIND(destroy_ah);
  SYMVIRT_FIND(init_ah_from_wc);
  SYMVIRT_FIND(resolve_eth_l2_from_gid);
  SYMVIRT_FIND(attach_mcast);
  SYMVIRT_FIND(detach_mcast);
  SYMVIRT_FIND(import_device);
  SYMVIRT_FIND(import_pd);
  SYMVIRT_FIND(import_mr);
  SYMVIRT_FIND(import_dm);
  SYMVIRT_FIND(qp_to_qp_ex);
#undef SYMVIRT_FIND
}

const RealVerbs* load() {
  static RealVerbs verbs;
  const std::lock_guard lock(load_mutex);
  if (const RealVerbs* found = current.load(std::memory_order_acquire)) return found;
  void* library = open_library();
  if (library == nullptr) return nullptr;
  find_all(library, verbs);
  if (verbs.open_device == nullptr || verbs.create_qp == nullptr) return nullptr;
  current.store(&verbs, std::memory_order_release);
  return &verbs;
}

}  // namespace

const RealVerbs* real_verbs() {
  const RealVerbs* verbs = current.load(std::memory_order_acquire);
  return __builtin_expect(verbs != nullptr, 1) ? verbs : load();
}

void set_real_verbs_for_test(const RealVerbs* verbs) {
  current.store(verbs, std::memory_order_release);
}

}  // namespace symvirt::hooks::verbs
