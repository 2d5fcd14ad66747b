// Protection domains, memory regions, address handles.
#include <fcntl.h>
#include <unistd.h>

#include <vector>

#include "pmix-hooks/ranks/verbs/addresses.h"
#include "pmix-hooks/ranks/verbs/exports.h"
#include "pmix-hooks/ranks/verbs/process_memory.h"

namespace symvirt::hooks::verbs {
namespace {

constexpr int kMaxTries = 4096;  // to get a key that is not carried

ibv_pd* alloc_virtual_pd(VContext& context) {
  const ControlCall call(*context.layer);
  auto pd = std::make_unique<VPd>();
  pd->real = real_verbs()->alloc_pd(context.real);
  if (pd->real == nullptr) return nullptr;
  pd->pub = {&context.pub, pd->real->handle};
  const std::lock_guard lock(context.layer->objects_mutex);
  context.pds.add(pd.get());
  return &pd.release()->pub;
}

ibv_mr* register_once(const VMr& mr, ibv_pd* pd) {
  const RealVerbs& v = *real_verbs();
  switch (mr.kind) {
    case MrKind::kPlain:
      return v.reg_mr(pd, mr.pub.addr, mr.pub.length, static_cast<int>(mr.access));
    case MrKind::kIova:
      return v.reg_mr_iova(pd, mr.pub.addr, mr.pub.length, mr.iova, static_cast<int>(mr.access));
    case MrKind::kIova2:
      return v.reg_mr_iova2(pd, mr.pub.addr, mr.pub.length, mr.iova, mr.access);
    case MrKind::kDmabuf:
      if (v.reg_dmabuf_mr == nullptr) return errno = EOPNOTSUPP, nullptr;
      return v.reg_dmabuf_mr(pd, mr.offset, mr.pub.length, mr.iova, mr.fd,
                             static_cast<int>(mr.access));
  }
  return nullptr;
}

// A new region's keys are what they seem; so none that is carried will do. Those are held until
// another is found, or the device would give them again.
ibv_mr* register_new(VContext& context, const VMr& mr, ibv_pd* pd) {
  std::vector<ibv_mr*> unfit;
  ibv_mr* real = nullptr;
  for (int i = 0; i < kMaxTries; ++i) {
    real = register_once(mr, pd);
    if (real == nullptr || !key_is_carried(context, real->lkey, real->rkey)) break;
    unfit.push_back(real);
    real = nullptr;
  }
  for (ibv_mr* other : unfit) real_verbs()->dereg_mr(other);
  return real;
}

ibv_mr* register_virtual(ibv_pd* pd, std::unique_ptr<VMr> mr) {
  VContext& context = *of(pd->context);
  if (forked(*context.layer)) return errno = EIO, nullptr;
  const ControlCall call(*context.layer);
  mr->real = register_new(context, *mr, of(pd)->real);
  if (mr->real == nullptr) {
    const int error = errno;
    if (mr->fd >= 0) close(mr->fd);
    errno = error;
    return nullptr;
  }
  if ((mr->access & IBV_ACCESS_ON_DEMAND) != 0)
    context.layer->mark_immovable("memory registered on demand (ODP)");
  // Memory of a device that may be another one after the move: nothing the layer can carry.
  if (mr->kind == MrKind::kDmabuf)
    context.layer->mark_immovable("memory of another device (dma-buf)");
  mr->pub.context = &context.pub;
  mr->pub.pd = pd;
  mr->pub.handle = mr->real->handle;
  mr->pub.lkey = mr->real->lkey;
  mr->pub.rkey = mr->real->rkey;
  const std::lock_guard lock(context.layer->objects_mutex);
  context.mrs.add(mr.get());
  return &mr.release()->pub;
}

std::unique_ptr<VMr> new_mr(MrKind kind, void* addr, std::size_t length, std::uint64_t iova,
                            unsigned int access) {
  auto mr = std::make_unique<VMr>();
  mr->kind = kind;
  mr->pub.addr = addr;
  mr->pub.length = length;
  mr->iova = iova;
  mr->access = access;
  return mr;
}

int rereg_virtual(VMr& mr, int flags, ibv_pd* pd, void* addr, std::size_t length, int access) {
  VContext& context = *of(mr.pub.context);
  if (forked(*context.layer)) return IBV_REREG_MR_ERR_INPUT;
  const ControlCall call(*context.layer);
  // Keys may change: then they are the new region's, and carried ones are forgotten.
  const int error = real_verbs()->rereg_mr(mr.real, flags, pd == nullptr ? nullptr : of(pd)->real,
                                           addr, length, access);
  if (error != 0) return error;
  if (mr.pub.lkey != mr.real->lkey && key_is_carried(context, mr.real->lkey, mr.real->rkey))
    context.layer->mark_immovable("memory re-registered with keys that are in use");
  mr.pub.lkey = mr.real->lkey;
  mr.pub.rkey = mr.real->rkey;
  if ((flags & IBV_REREG_MR_CHANGE_TRANSLATION) != 0) {
    mr.pub.addr = addr;
    mr.pub.length = length;
    mr.iova = reinterpret_cast<std::uintptr_t>(addr);
  }
  if ((flags & IBV_REREG_MR_CHANGE_PD) != 0) mr.pub.pd = pd;
  if ((flags & IBV_REREG_MR_CHANGE_ACCESS) != 0) mr.access = static_cast<unsigned int>(access);
  return 0;
}

int dereg_virtual(VMr& mr) {
  Layer& layer = *of(mr.pub.context)->layer;
  if (forked(layer)) return 0;
  const ControlCall call(layer);
  if (const int error = mr.real == nullptr ? 0 : real_verbs()->dereg_mr(mr.real)) return error;
  if (mr.fd >= 0) close(mr.fd);
  const std::lock_guard lock(layer.objects_mutex);
  of(mr.pub.context)->mrs.remove(&mr);
  delete &mr;
  return 0;
}

ibv_ah* create_virtual_ah(ibv_pd* pd, const ibv_ah_attr& attr) {
  VContext& context = *of(pd->context);
  if (forked(*context.layer)) return errno = EIO, nullptr;
  const ControlCall call(*context.layer);
  auto ah = std::make_unique<VAh>();
  ah->attr = attr;
  ah->pub.context = &context.pub;
  ah->pub.pd = pd;
  if (!make_real_ah(*ah)) return nullptr;
  ah->pub.handle = ah->real->handle;
  const std::lock_guard lock(context.layer->objects_mutex);
  context.ahs.add(ah.get());
  return &ah.release()->pub;
}

}  // namespace

bool make_real_mr(VMr& mr, ibv_pd* pd) {
  mr.real = register_once(mr, pd);
  if (mr.real != nullptr || mr.kind == MrKind::kDmabuf) return mr.real != nullptr;
  const int error = errno;
  const FilledHoles filled(mr.pub.addr, mr.pub.length);
  if (filled.any()) {
    mr.real = register_once(mr, pd);
  } else {
    errno = error;
  }
  return mr.real != nullptr;
}

bool make_real_ah(VAh& ah) {
  const VContext& context = *of(ah.pub.context);
  ibv_ah_attr attr = real_address(context, ah.attr);
  ah.numbers = nullptr;
  if (const Directory* directory = context.layer->directory.get()) {
    if (const auto* place = directory->place(Address::of(ah.attr))) ah.numbers = &place->numbers;
  }
  ah.real = real_verbs()->create_ah(of(ah.pub.pd)->real, &attr);
  return ah.real != nullptr;
}

}  // namespace symvirt::hooks::verbs

using namespace symvirt::hooks::verbs;

extern "C" {

ibv_pd* ibv_alloc_pd(ibv_context* pub) {
  if (!is_virtual(pub)) return real_verbs()->alloc_pd(pub);
  if (forked(*of(pub)->layer)) return errno = EIO, nullptr;
  return no_throw<ibv_pd*>(nullptr, [&] { return alloc_virtual_pd(*of(pub)); });
}

int ibv_dealloc_pd(ibv_pd* pub) {
  if (!is_virtual(pub->context)) return real_verbs()->dealloc_pd(pub);
  Layer& layer = *of(pub->context)->layer;
  if (forked(layer)) return 0;
  const ControlCall call(layer);
  VPd& pd = *of(pub);
  if (const int error = pd.real == nullptr ? 0 : real_verbs()->dealloc_pd(pd.real)) return error;
  const std::lock_guard lock(layer.objects_mutex);
  of(pub->context)->pds.remove(&pd);
  delete &pd;
  return 0;
}

ibv_mr* ibv_reg_mr(ibv_pd* pd, void* addr, std::size_t length, int access) {
  if (!is_virtual(pd->context)) return real_verbs()->reg_mr(pd, addr, length, access);
  return no_throw<ibv_mr*>(nullptr, [&] {
    return register_virtual(pd,
                            new_mr(MrKind::kPlain, addr, length, 0, static_cast<unsigned>(access)));
  });
}

ibv_mr* ibv_reg_mr_iova(ibv_pd* pd, void* addr, std::size_t length, std::uint64_t iova,
                        int access) {
  if (!is_virtual(pd->context)) return real_verbs()->reg_mr_iova(pd, addr, length, iova, access);
  return no_throw<ibv_mr*>(nullptr, [&] {
    return register_virtual(
        pd, new_mr(MrKind::kIova, addr, length, iova, static_cast<unsigned>(access)));
  });
}

ibv_mr* ibv_reg_mr_iova2(ibv_pd* pd, void* addr, std::size_t length, std::uint64_t iova,
                         unsigned int access) {
  if (!is_virtual(pd->context)) return real_verbs()->reg_mr_iova2(pd, addr, length, iova, access);
  return no_throw<ibv_mr*>(nullptr, [&] {
    return register_virtual(pd, new_mr(MrKind::kIova2, addr, length, iova, access));
  });
}

ibv_mr* ibv_reg_dmabuf_mr(ibv_pd* pd, std::uint64_t offset, std::size_t length, std::uint64_t iova,
                          int fd, int access) {
  if (!is_virtual(pd->context))
    return real_verbs()->reg_dmabuf_mr(pd, offset, length, iova, fd, access);
  return no_throw<ibv_mr*>(nullptr, [&]() -> ibv_mr* {
    auto mr = new_mr(MrKind::kDmabuf, nullptr, length, iova, static_cast<unsigned>(access));
    mr->offset = offset;
    mr->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (mr->fd < 0) return nullptr;
    return register_virtual(pd, std::move(mr));
  });
}

int ibv_rereg_mr(ibv_mr* mr, int flags, ibv_pd* pd, void* addr, std::size_t length, int access) {
  if (!is_virtual(mr->context)) return real_verbs()->rereg_mr(mr, flags, pd, addr, length, access);
  return no_throw<int>(IBV_REREG_MR_ERR_CMD,
                       [&] { return rereg_virtual(*of(mr), flags, pd, addr, length, access); });
}

int ibv_dereg_mr(ibv_mr* mr) {
  if (!is_virtual(mr->context)) return real_verbs()->dereg_mr(mr);
  return dereg_virtual(*of(mr));
}

ibv_ah* ibv_create_ah(ibv_pd* pd, ibv_ah_attr* attr) {
  if (!is_virtual(pd->context)) return real_verbs()->create_ah(pd, attr);
  return no_throw<ibv_ah*>(nullptr, [&] { return create_virtual_ah(pd, *attr); });
}

int ibv_init_ah_from_wc(ibv_context* pub, std::uint8_t port, ibv_wc* wc, ibv_grh* grh,
                        ibv_ah_attr* attr) {
  if (!is_virtual(pub)) return real_verbs()->init_ah_from_wc(pub, port, wc, grh, attr);
  VContext& context = *of(pub);
  if (forked(*context.layer)) return -1;
  const ControlCall call(*context.layer);
  const int error = real_verbs()->init_ah_from_wc(context.real, port, wc, grh, attr);
  if (error == 0) *attr = visible_address(context, *attr);
  return error;
}

ibv_ah* ibv_create_ah_from_wc(ibv_pd* pd, ibv_wc* wc, ibv_grh* grh, std::uint8_t port) {
  ibv_ah_attr attr{};
  if (ibv_init_ah_from_wc(pd->context, port, wc, grh, &attr) != 0) return nullptr;
  return ibv_create_ah(pd, &attr);
}

int ibv_destroy_ah(ibv_ah* pub) {
  if (!is_virtual(pub->context)) return real_verbs()->destroy_ah(pub);
  Layer& layer = *of(pub->context)->layer;
  if (forked(layer)) return 0;
  const ControlCall call(layer);
  VAh& ah = *of(pub);
  if (const int error = ah.real == nullptr ? 0 : real_verbs()->destroy_ah(ah.real)) return error;
  const std::lock_guard lock(layer.objects_mutex);
  of(pub->context)->ahs.remove(&ah);
  delete &ah;
  return 0;
}

int ibv_resolve_eth_l2_from_gid(ibv_context* pub, ibv_ah_attr* attr, std::uint8_t mac[6],
                                std::uint16_t* vid) {
  if (!is_virtual(pub)) return real_verbs()->resolve_eth_l2_from_gid(pub, attr, mac, vid);
  if (forked(*of(pub)->layer)) return -EIO;
  const ControlCall call(*of(pub)->layer);
  ibv_ah_attr there = real_address(*of(pub), *attr);
  return real_verbs()->resolve_eth_l2_from_gid(of(pub)->real, &there, mac, vid);
}

}  // extern "C"
