// The calls of RealVerbs that are about devices, memory and address handles. The others: queues.cc.
#include "pmix-hooks/ranks/verbs/testing/control.h"

#include <endian.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>

namespace symvirt::hooks::verbs::testing {
namespace {

// A list keeps its devices alive, as libibverbs' does.
std::mutex lists_lock;
std::map<ibv_device**, std::vector<std::shared_ptr<ibv_device>>> lists;

ibv_device** device_list(int host, int* count) {
  Fabric::Impl* fabric = the_fabric;
  std::vector<std::shared_ptr<ibv_device>> found;
  if (fabric != nullptr) {
    const std::shared_lock lock(fabric->devices_lock);
    for (const auto& device : fabric->devices)
      if (device->host == host) found.push_back(device->handle);
  }
  auto** list = new ibv_device* [found.size() + 1] {};
  for (std::size_t i = 0; i < found.size(); ++i) list[i] = found[i].get();
  if (count != nullptr) *count = static_cast<int>(found.size());
  const std::lock_guard lock(lists_lock);
  lists.emplace(list, std::move(found));
  return list;
}

template <int kHost>
ibv_device** get_device_list(int* count) {
  return device_list(kHost, count);
}

void free_device_list(ibv_device** list) {
  const std::lock_guard lock(lists_lock);
  lists.erase(list);
  delete[] list;
}

std::shared_ptr<Device> device_behind(const ibv_device* handle) {
  const Fabric::Impl* fabric = the_fabric;
  const std::shared_lock lock(fabric->devices_lock);
  for (const auto& device : fabric->devices)
    if (device->handle.get() == handle) return device;
  return nullptr;
}

const char* get_device_name(ibv_device* device) { return device->name; }

__be64 get_device_guid(ibv_device* handle) {
  const auto device = device_behind(handle);
  return device ? htobe64(device->spec.guid) : 0;
}

int get_device_index(ibv_device*) { return 1; }

ibv_context* open_device(ibv_device* handle) {
  const auto device = device_behind(handle);
  if (!device) return errno = ENODEV, nullptr;
  auto* context = new Context();
  context->owner = device;
  context->device_handle = device->handle;
  context->device = handle;
  context->async_fd = context->events.fd();
  context->cmd_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
  context->num_comp_vectors = 1;
  fill_ops(context->ops);
  const std::lock_guard lock(device->context_lock);
  device->contexts.insert(context);
  return context;
}

int close_device(ibv_context* public_context) {
  auto* context = static_cast<Context*>(public_context);
  Device& device = *context->owner;
  free_what_is_left(*context);
  {
    const std::lock_guard lock(device.context_lock);
    device.contexts.erase(context);
  }
  close(context->cmd_fd);
  delete context;
  return 0;
}

int get_async_event(ibv_context* public_context, ibv_async_event* event) {
  auto& context = *static_cast<Context*>(public_context);
  const auto taken = [](const ibv_async_event& e) {
    if (Acknowledged* of = acknowledged_by(e)) of->delivered();
  };
  return context.events.pop(*event, taken) ? 0 : -1;
}

void ack_async_event(ibv_async_event* event) {
  if (Acknowledged* of = acknowledged_by(*event)) of->acknowledged(1);
}

int query_device(ibv_context* context, ibv_device_attr* attr) {
  const Device& device = device_of(context);
  if (!device.plugged) return ENODEV;
  const DeviceSpec& spec = device.spec;
  *attr = {};
  std::strncpy(attr->fw_ver, "double", sizeof(attr->fw_ver) - 1);
  attr->node_guid = attr->sys_image_guid = htobe64(spec.guid);
  attr->max_mr_size = ~0ull;
  attr->page_size_cap = ~0xfffull;
  attr->max_qp = attr->max_cq = attr->max_mr = attr->max_pd = attr->max_ah = attr->max_srq = 1
                                                                                             << 20;
  attr->max_qp_wr = attr->max_srq_wr = static_cast<int>(spec.max_qp_wr);
  attr->max_sge = attr->max_sge_rd = attr->max_srq_sge = static_cast<int>(spec.max_sge);
  attr->max_cqe = spec.max_cqe;
  attr->max_qp_rd_atom = attr->max_qp_init_rd_atom = spec.max_rd_atom;
  attr->max_res_rd_atom = spec.max_rd_atom * 1024;
  attr->atomic_cap = IBV_ATOMIC_HCA;
  attr->max_pkeys = 1;
  attr->phys_port_cnt = 1;
  return 0;
}

int query_port(ibv_context* context, std::uint8_t port, ibv_port_attr* attr) {
  const Device& device = device_of(context);
  if (!device.plugged) return ENODEV;
  if (port != 1) return EINVAL;
  *attr = {};
  attr->state = device.port_up ? IBV_PORT_ACTIVE : IBV_PORT_DOWN;
  attr->max_mtu = attr->active_mtu = device.spec.mtu;
  attr->gid_tbl_len = static_cast<int>(device.spec.gids.size());
  attr->port_cap_flags = IBV_PORT_CM_SUP | IBV_PORT_IP_BASED_GIDS;
  attr->max_msg_sz = 1u << 30;
  attr->pkey_tbl_len = 1;
  attr->lid = device.spec.lid;
  attr->active_width = 1;
  attr->active_speed = 1;
  attr->phys_state = device.port_up ? 5 : 3;
  attr->link_layer = device.spec.ethernet ? IBV_LINK_LAYER_ETHERNET : IBV_LINK_LAYER_INFINIBAND;
  return 0;
}

int query_gid(ibv_context* context, std::uint8_t port, int index, ibv_gid* gid) {
  const Device& device = device_of(context);
  if (!device.plugged) return errno = ENODEV, -1;
  if (port != 1 || index < 0 || static_cast<std::size_t>(index) >= device.spec.gids.size())
    return errno = EINVAL, -1;
  *gid = device.spec.gids[index];
  return 0;
}

int query_gid_ex(ibv_context* context, std::uint32_t port, std::uint32_t index,
                 ibv_gid_entry* entry, std::uint32_t flags, std::size_t size) {
  const Device& device = device_of(context);
  if (!device.plugged) return ENODEV;
  if (port != 1 || index >= device.spec.gids.size() || flags != 0 || size != sizeof(*entry))
    return EINVAL;
  *entry = {};
  entry->gid = device.spec.gids[index];
  entry->gid_index = index;
  entry->port_num = 1;
  entry->gid_type = device.spec.ethernet ? IBV_GID_TYPE_ROCE_V2 : IBV_GID_TYPE_IB;
  return 0;
}

ssize_t query_gid_table(ibv_context* context, ibv_gid_entry* entries, std::size_t max,
                        std::uint32_t flags, std::size_t size) {
  const std::size_t count = device_of(context).spec.gids.size();
  if (count > max) return -EINVAL;
  for (std::size_t i = 0; i < count; ++i)
    if (const int error =
            query_gid_ex(context, 1, static_cast<std::uint32_t>(i), entries + i, flags, size))
      return -error;
  return static_cast<ssize_t>(count);
}

int query_pkey(ibv_context* context, std::uint8_t port, int index, __be16* pkey) {
  if (!device_of(context).plugged) return errno = ENODEV, -1;
  if (port != 1 || index != 0) return errno = EINVAL, -1;
  *pkey = 0xffff;
  return 0;
}

int get_pkey_index(ibv_context*, std::uint8_t port, __be16 pkey) {
  if (port != 1 || pkey != 0xffff) return errno = EINVAL, -1;
  return 0;
}

ibv_pd* alloc_pd(ibv_context* public_context) {
  auto& context = *static_cast<Context*>(public_context);
  if (!context.owner->plugged) return errno = ENODEV, nullptr;
  auto* pd = new Pd();
  pd->context = public_context;
  pd->handle = context.owner->next_handle++;
  const std::lock_guard lock(context.lock);
  context.pds.insert(pd);
  return pd;
}

int dealloc_pd(ibv_pd* public_pd) {
  auto* pd = static_cast<Pd*>(public_pd);
  if (pd->users != 0) return EBUSY;
  auto& context = *static_cast<Context*>(pd->context);
  {
    const std::lock_guard lock(context.lock);
    context.pds.erase(pd);
  }
  delete pd;
  return 0;
}

void give_keys(Device& device, Mr& mr) {
  const std::lock_guard lock(device.mr_lock);
  mr.lkey = device.next_key++ << 8;
  device.lkeys.emplace(mr.lkey, &mr);
  constexpr unsigned kRemote =
      IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_ATOMIC;
  mr.rkey = 0;  // as on soft-RoCE, when nobody else may use it
  if ((mr.access & kRemote) == 0) return;
  mr.rkey = mr.lkey | (device.spec.distinct_rkeys ? 0x55 : 0);
  device.rkeys.emplace(mr.rkey, &mr);
}

// As get_user_pages sees it.
bool is_mapped(void* address, std::size_t length) {
  constexpr std::uintptr_t kPage = 4096;
  const auto begin = reinterpret_cast<std::uintptr_t>(address) & ~(kPage - 1);
  const auto end = reinterpret_cast<std::uintptr_t>(address) + length;
  return msync(reinterpret_cast<void*>(begin), end - begin, MS_ASYNC) == 0;
}

ibv_mr* reg_mr_iova2(ibv_pd* public_pd, void* address, std::size_t length, std::uint64_t iova,
                     unsigned access) {
  auto& context = *static_cast<Context*>(public_pd->context);
  if (!context.owner->plugged) return errno = ENODEV, nullptr;
  constexpr unsigned kRemote = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_ATOMIC;
  if ((access & kRemote) && !(access & IBV_ACCESS_LOCAL_WRITE)) return errno = EINVAL, nullptr;
  if (access & (IBV_ACCESS_ON_DEMAND | IBV_ACCESS_MW_BIND)) return errno = EOPNOTSUPP, nullptr;
  if (!is_mapped(address, length)) return errno = EFAULT, nullptr;
  auto* mr = new Mr();
  mr->context = public_pd->context;
  mr->pd = public_pd;
  mr->addr = address;
  mr->length = length;
  mr->handle = context.owner->next_handle++;
  mr->iova = (access & IBV_ACCESS_ZERO_BASED) ? 0 : iova;
  mr->base = static_cast<std::byte*>(address);
  mr->access = access;
  give_keys(*context.owner, *mr);
  ++static_cast<Pd*>(public_pd)->users;
  const std::lock_guard lock(context.lock);
  context.mrs.insert(mr);
  return mr;
}

ibv_mr* reg_mr(ibv_pd* pd, void* address, std::size_t length, int access) {
  return reg_mr_iova2(pd, address, length, reinterpret_cast<std::uintptr_t>(address),
                      static_cast<unsigned>(access));
}

ibv_mr* reg_mr_iova(ibv_pd* pd, void* address, std::size_t length, std::uint64_t iova, int access) {
  return reg_mr_iova2(pd, address, length, iova, static_cast<unsigned>(access));
}

int rereg_mr(ibv_mr* public_mr, int flags, ibv_pd* pd, void* address, std::size_t length,
             int access) {
  auto& mr = *static_cast<Mr*>(public_mr);
  Device& device = device_of(mr.context);
  {
    const std::lock_guard lock(device.mr_lock);
    device.lkeys.erase(mr.lkey);
    device.rkeys.erase(mr.rkey);
  }
  if (flags & IBV_REREG_MR_CHANGE_PD) {
    --static_cast<Pd*>(mr.pd)->users;
    ++static_cast<Pd*>(pd)->users;
    mr.pd = pd;
  }
  if (flags & IBV_REREG_MR_CHANGE_TRANSLATION) {
    mr.addr = address;
    mr.length = length;
    mr.iova = reinterpret_cast<std::uintptr_t>(address);
    mr.base = static_cast<std::byte*>(address);
  }
  if (flags & IBV_REREG_MR_CHANGE_ACCESS) mr.access = static_cast<unsigned>(access);
  give_keys(device, mr);
  return 0;
}

int dereg_mr(ibv_mr* public_mr) {
  auto* mr = static_cast<Mr*>(public_mr);
  auto& context = *static_cast<Context*>(mr->context);
  {
    const std::lock_guard lock(context.owner->mr_lock);
    context.owner->lkeys.erase(mr->lkey);
    context.owner->rkeys.erase(mr->rkey);
  }
  --static_cast<Pd*>(mr->pd)->users;
  {
    const std::lock_guard lock(context.lock);
    context.mrs.erase(mr);
  }
  delete mr;
  return 0;
}

ibv_ah* create_ah(ibv_pd* pd, ibv_ah_attr* attr) {
  auto& context = *static_cast<Context*>(pd->context);
  const Device& device = *context.owner;
  if (!device.plugged) return errno = ENODEV, nullptr;
  if (attr->port_num != 1 || (device.spec.ethernet && !attr->is_global) ||
      (attr->is_global && attr->grh.sgid_index >= device.spec.gids.size()))
    return errno = EINVAL, nullptr;
  auto* ah = new Ah();
  ah->context = pd->context;
  ah->pd = pd;
  ah->handle = context.owner->next_handle++;
  ah->attr = *attr;
  ++static_cast<Pd*>(pd)->users;
  const std::lock_guard lock(context.lock);
  context.ahs.insert(ah);
  return ah;
}

int destroy_ah(ibv_ah* public_ah) {
  auto* ah = static_cast<Ah*>(public_ah);
  auto& context = *static_cast<Context*>(ah->context);
  --static_cast<Pd*>(ah->pd)->users;
  {
    const std::lock_guard lock(context.lock);
    context.ahs.erase(ah);
  }
  delete ah;
  return 0;
}

int init_ah_from_wc(ibv_context* context, std::uint8_t port, ibv_wc* wc, ibv_grh* grh,
                    ibv_ah_attr* attr) {
  *attr = {};
  attr->dlid = wc->slid;
  attr->sl = wc->sl;
  attr->src_path_bits = wc->dlid_path_bits;
  attr->port_num = port;
  if (!(wc->wc_flags & IBV_WC_GRH)) return 0;
  attr->is_global = 1;
  attr->grh.dgid = grh->sgid;
  const auto& gids = device_of(context).spec.gids;
  for (std::size_t i = 0; i < gids.size(); ++i)
    if (std::memcmp(gids[i].raw, grh->dgid.raw, sizeof(ibv_gid)) == 0)
      attr->grh.sgid_index = static_cast<std::uint8_t>(i);
  attr->grh.hop_limit = 0xff;
  return 0;
}

int no_mcast(ibv_qp*, const ibv_gid*, std::uint16_t) { return EOPNOTSUPP; }

int resolve_mac(ibv_context*, ibv_ah_attr* attr, std::uint8_t mac[6], std::uint16_t* vid) {
  std::memcpy(mac, attr->grh.dgid.raw + 10, 6);
  *vid = 0xffff;
  return 0;
}

ibv_device** get_thread_device_list(int* count) { return device_list(host_of_thread(), count); }

template <int kHost>
void set_list(RealVerbs& verbs, int host) {
  if (host == kHost) verbs.get_device_list = get_device_list<kHost>;
  if constexpr (kHost + 1 < kMaxHosts) set_list<kHost + 1>(verbs, host);
}

}  // namespace

RealVerbs make_verbs(int host) {
  RealVerbs v;
  v.get_device_list = get_thread_device_list;
  set_list<0>(v, host);
  v.free_device_list = free_device_list;
  v.get_device_name = get_device_name;
  v.get_device_guid = get_device_guid;
  v.get_device_index = get_device_index;
  v.open_device = open_device;
  v.close_device = close_device;
  v.get_async_event = get_async_event;
  v.ack_async_event = ack_async_event;
  v.query_device = query_device;
  v.query_port = query_port;
  v.query_gid = query_gid;
  v.query_gid_ex = query_gid_ex;
  v.query_gid_table = query_gid_table;
  v.query_pkey = query_pkey;
  v.get_pkey_index = get_pkey_index;
  v.alloc_pd = alloc_pd;
  v.dealloc_pd = dealloc_pd;
  v.reg_mr = reg_mr;
  v.reg_mr_iova = reg_mr_iova;
  v.reg_mr_iova2 = reg_mr_iova2;
  v.rereg_mr = rereg_mr;
  v.dereg_mr = dereg_mr;
  v.create_ah = create_ah;
  v.destroy_ah = destroy_ah;
  v.init_ah_from_wc = init_ah_from_wc;
  v.resolve_eth_l2_from_gid = resolve_mac;
  v.attach_mcast = no_mcast;
  v.detach_mcast = no_mcast;
  fill_queue_calls(v);
  return v;
}

}  // namespace symvirt::hooks::verbs::testing
