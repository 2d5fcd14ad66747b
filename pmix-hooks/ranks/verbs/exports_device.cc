// Devices, contexts and what can be asked of them.
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <map>
#include <optional>

#include "pmix-hooks/ranks/verbs/addresses.h"
#include "pmix-hooks/ranks/verbs/events.h"
#include "pmix-hooks/ranks/verbs/exports.h"

namespace symvirt::hooks::verbs {
namespace {

// Marks our devices (a field of ibv_device that is "obsolete, never used").
ibv_context* device_mark(ibv_device*, int) { return nullptr; }

SpinLock devices_lock;
std::map<std::string, VDevice*>& devices() {
  static auto* const all = new std::map<std::string, VDevice*>;
  return *all;
}

VDevice* intern(const ibv_device& real) {
  const std::lock_guard lock(devices_lock);
  VDevice*& device = devices()[real.name];
  if (device == nullptr) device = new VDevice;
  device->pub = real;
  device->pub._ops._dummy1 = device_mark;
  device->pub._ops._dummy2 = nullptr;
  return device;
}

ibv_device** virtual_list(int* count) {
  int found = 0;
  RealDevices real;
  if (!real.ok()) return nullptr;
  found = real.count();
  auto** list = static_cast<ibv_device**>(
      std::calloc(static_cast<std::size_t>(found) + 1, sizeof(ibv_device*)));
  if (list == nullptr) return nullptr;
  for (int i = 0; i < found; ++i) list[i] = &intern(*real[i])->pub;
  if (count != nullptr) *count = found;
  return list;
}

// Calls f with the real device that stands behind a virtual one.
template <typename F, typename R>
R with_real(ibv_device* device, R otherwise, F f) {
  if (virtual_device(device) == nullptr) return f(device);
  RealDevices real;
  ibv_device* const found = real.named(device->name);
  return found == nullptr ? otherwise : f(found);
}

// A quiesce and a resume may come between the question and the gate: then it is asked again, but
// not for ever.
void enter_to_open(Layer& layer, std::optional<ControlCall>& call) {
  const auto prepare = Layer::before_first_open.load();
  for (int tries = 0; tries < 3; ++tries) {
    if (prepare != nullptr && !layer.ever_opened) prepare(Layer::Ask::kWait);
    call.emplace(layer);
    if (prepare == nullptr || layer.ever_opened || prepare(Layer::Ask::kNow)) return;
    call.reset();
  }
  call.emplace(layer);
}

ibv_context* open_virtual(ibv_device* device) {
  Layer& layer = Layer::current();
  std::optional<ControlCall> call;
  enter_to_open(layer, call);
  auto context = std::make_unique<VContext>();
  context->layer = &layer;
  context->device_name = device->name;
  if (!open_real(*context, device->name)) return nullptr;
  const int fd = open_event_fd(context->wake);
  if (fd < 0 || !put_into_event_fd(fd, context->real->async_fd)) {
    const int error = errno;
    if (fd >= 0) close(fd);
    close_real(*context);
    errno = error;
    return nullptr;
  }
  ibv_context& pub = context->pub;
  pub.device = device;
  pub.cmd_fd = -1;  // nobody may talk to the kernel past the layer
  pub.async_fd = fd;
  pub.num_comp_vectors = context->real->num_comp_vectors;
  pub.abi_compat = nullptr;  // no verbs_context: everything extended says EOPNOTSUPP
  pthread_mutex_init(&pub.mutex, nullptr);
  if (layer.directory) {
    context->now = read_ports(*context);
    context->known = ports_as_known(*layer.directory, context->now);
  }
  install_data_path(pub.ops);
  const std::lock_guard lock(layer.objects_mutex);
  layer.contexts.add(context.get());
  layer.ever_opened = true;
  return &context.release()->pub;
}

}  // namespace

VDevice* virtual_device(const ibv_device* device) {
  if (device->_ops._dummy1 != device_mark) return nullptr;
  return reinterpret_cast<VDevice*>(const_cast<ibv_device*>(device));
}

RealDevices::RealDevices() {
  if (const RealVerbs* real = real_verbs()) {
    list_ = real->get_device_list(&count_);
  } else {
    errno = ENOSYS;
  }
}

RealDevices::~RealDevices() {
  if (list_ != nullptr) real_verbs()->free_device_list(list_);
}

ibv_device* RealDevices::named(const std::string& name) const {
  for (int i = 0; i < count_; ++i) {
    if (name == list_[i]->name) return list_[i];
  }
  errno = ENODEV;
  return nullptr;
}

bool open_real(VContext& context, const std::string& name) {
  RealDevices devices;
  ibv_device* const device = devices.named(name);
  if (device == nullptr) return false;
  context.real = real_verbs()->open_device(device);
  if (context.real == nullptr) return false;
  ibv_device_attr attr{};
  if (real_verbs()->query_device(context.real, &attr) == 0 && attr.phys_port_cnt > 0)
    context.port_count = attr.phys_port_cnt;
  context.device_name = name;
  return true;
}

void close_real(VContext& context) {
  if (context.real != nullptr) real_verbs()->close_device(context.real);
  context.real = nullptr;
}

}  // namespace symvirt::hooks::verbs

using namespace symvirt::hooks::verbs;

extern "C" {

ibv_device** ibv_get_device_list(int* count) {
  if (count != nullptr) *count = 0;
  return no_throw<ibv_device**>(nullptr, [&] { return virtual_list(count); });
}

void ibv_free_device_list(ibv_device** list) { std::free(list); }

const char* ibv_get_device_name(ibv_device* device) { return device->name; }

__be64 ibv_get_device_guid(ibv_device* device) {
  return no_throw<__be64>(0, [&] {
    return with_real(device, __be64{0},
                     [](ibv_device* real) { return real_verbs()->get_device_guid(real); });
  });
}

int ibv_get_device_index(ibv_device* device) {
  return no_throw<int>(-1, [&] {
    return with_real(device, -1, [](ibv_device* real) {
      return real_verbs()->get_device_index == nullptr ? -1 : real_verbs()->get_device_index(real);
    });
  });
}

ibv_context* ibv_open_device(ibv_device* device) {
  if (virtual_device(device) == nullptr) {
    ibv_context* const past = real_verbs() == nullptr ? nullptr : real_verbs()->open_device(device);
    if (past != nullptr)
      Layer::current().mark_immovable(
          "device opened past the layer (not from ibv_get_device_list)");
    return past;
  }
  return no_throw<ibv_context*>(nullptr, [&] { return open_virtual(device); });
}

int ibv_close_device(ibv_context* pub) {
  if (!is_virtual(pub)) return real_verbs()->close_device(pub);
  VContext& context = *of(pub);
  Layer& layer = *context.layer;
  if (forked(layer)) return 0;
  {
    const ControlCall call(layer);
    const std::lock_guard held(layer.held_mutex);
    if (context.real != nullptr) take_from_event_fd(pub->async_fd, context.real->async_fd);
    close_real(context);
    const std::lock_guard lock(layer.objects_mutex);
    layer.contexts.remove(&context);
  }
  synchronize();
  close(context.wake);
  close(pub->async_fd);
  delete &context;
  return 0;
}

int ibv_query_device(ibv_context* pub, ibv_device_attr* attr) {
  if (!is_virtual(pub)) return real_verbs()->query_device(pub, attr);
  if (forked(*of(pub)->layer)) return EIO;
  const ControlCall call(*of(pub)->layer);
  const int error = real_verbs()->query_device(of(pub)->real, attr);
  // What the layer does not offer is not advertised.
  attr->device_cap_flags &= ~static_cast<unsigned>(
      IBV_DEVICE_MEM_WINDOW | IBV_DEVICE_MEM_WINDOW_TYPE_2A | IBV_DEVICE_MEM_WINDOW_TYPE_2B |
      IBV_DEVICE_XRC | IBV_DEVICE_MEM_MGT_EXTENSIONS | IBV_DEVICE_MANAGED_FLOW_STEERING);
  attr->max_mw = 0;
  return error;
}

int ibv_query_port(ibv_context* pub, std::uint8_t port, _compat_ibv_port_attr* compat) {
  auto* const attr = reinterpret_cast<ibv_port_attr*>(compat);
  if (!is_virtual(pub)) return real_verbs()->query_port(pub, port, attr);
  VContext& context = *of(pub);
  if (forked(*context.layer)) return EIO;
  const ControlCall call(*context.layer);
  const int error = real_verbs()->query_port(context.real, port, attr);
  if (error != 0) return error;
  if (const PortState* known = visible_port(context, port)) attr->lid = known->lid;
  return 0;
}

int ibv_query_gid(ibv_context* pub, std::uint8_t port, int index, union ibv_gid* gid) {
  if (!is_virtual(pub)) return real_verbs()->query_gid(pub, port, index, gid);
  VContext& context = *of(pub);
  if (forked(*context.layer)) return -1;
  const ControlCall call(*context.layer);
  if (const PortState* known = visible_port(context, port)) {
    for (const GidEntry& e : known->gids) {
      if (e.index != index) continue;
      *gid = e.gid;
      return 0;
    }
  }
  return real_verbs()->query_gid(context.real, port, index, gid);
}

int _ibv_query_gid_ex(ibv_context* pub, std::uint32_t port, std::uint32_t index,
                      ibv_gid_entry* entry, std::uint32_t flags, std::size_t size) {
  if (!is_virtual(pub)) return real_verbs()->query_gid_ex(pub, port, index, entry, flags, size);
  VContext& context = *of(pub);
  if (forked(*context.layer)) return EIO;
  const ControlCall call(*context.layer);
  const int there = real_gid_index(context, static_cast<int>(port), static_cast<int>(index));
  const int error = real_verbs()->query_gid_ex(
      context.real, port, static_cast<std::uint32_t>(there), entry, flags, size);
  if (error != 0) return error;
  entry->gid_index = index;
  if (const PortState* known = visible_port(context, static_cast<int>(port))) {
    for (const GidEntry& e : known->gids) {
      if (e.index == static_cast<int>(index)) entry->gid = e.gid;
    }
  }
  return 0;
}

ssize_t _ibv_query_gid_table(ibv_context* pub, ibv_gid_entry* entries, std::size_t max,
                             std::uint32_t flags, std::size_t size) {
  const RealVerbs& real = *real_verbs();
  if (!is_virtual(pub)) return real.query_gid_table(pub, entries, max, flags, size);
  VContext& context = *of(pub);
  if (forked(*context.layer)) return -EIO;
  const ControlCall call(*context.layer);
  if (context.known.empty() || size != sizeof(ibv_gid_entry))
    return real.query_gid_table(context.real, entries, max, flags, size);
  std::size_t count = 0;
  for (std::size_t p = 0; p < context.known.size(); ++p) {
    for (const GidEntry& e : context.known[p].gids) {
      if (count == max) return -EINVAL;
      entries[count++] = {e.gid, static_cast<std::uint32_t>(e.index),
                          static_cast<std::uint32_t>(p + 1), e.type, 0};
    }
  }
  return static_cast<ssize_t>(count);
}

int ibv_query_pkey(ibv_context* pub, std::uint8_t port, int index, __be16* pkey) {
  if (!is_virtual(pub)) return real_verbs()->query_pkey(pub, port, index, pkey);
  if (forked(*of(pub)->layer)) return -1;
  const ControlCall call(*of(pub)->layer);
  return real_verbs()->query_pkey(of(pub)->real, port, index, pkey);
}

int ibv_get_pkey_index(ibv_context* pub, std::uint8_t port, __be16 pkey) {
  if (!is_virtual(pub)) return real_verbs()->get_pkey_index(pub, port, pkey);
  if (forked(*of(pub)->layer)) return -1;
  const ControlCall call(*of(pub)->layer);
  return real_verbs()->get_pkey_index(of(pub)->real, port, pkey);
}

int ibv_get_async_event(ibv_context* pub, ibv_async_event* event) {
  if (!is_virtual(pub)) return real_verbs()->get_async_event(pub, event);
  if (forked(*of(pub)->layer)) return errno = EIO, -1;
  return no_throw<int>(-1, [&] { return next_async_event(*of(pub), *event); });
}

void ibv_ack_async_event(ibv_async_event* event) {
  switch (static_cast<int>(event->event_type)) {
    case IBV_EVENT_CQ_ERR:
      if (!is_virtual(event->element.cq->context)) break;
      return acknowledge(event->element.cq->mutex, event->element.cq->cond,
                         event->element.cq->async_events_completed);
    case IBV_EVENT_SRQ_ERR:
    case IBV_EVENT_SRQ_LIMIT_REACHED:
      if (!is_virtual(event->element.srq->context)) break;
      return acknowledge(event->element.srq->mutex, event->element.srq->cond,
                         event->element.srq->events_completed);
    default:
      if (!concerns_qp(*event)) return;  // a port or the device: nothing is counted
      if (!is_virtual(event->element.qp->context)) break;
      return acknowledge(event->element.qp->mutex, event->element.qp->cond,
                         event->element.qp->events_completed);
  }
  real_verbs()->ack_async_event(event);
}

}  // extern "C"
