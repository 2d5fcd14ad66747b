// The application's objects: each begins with the public struct of libibverbs (so that inline code
// of verbs.h works on it) and points to the real one, which comes and goes (docs/verbs.md: life
// cycle).
//
// Ownership: created and destroyed by the application's calls (exports_*.cc), listed in their
// context. Who writes what when: control calls run under Layer::control; a quiesce closes that
// first, and the data path's gate second, so that it is alone with all of this.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "pmix-hooks/ranks/verbs/gate.h"
#include "pmix-hooks/ranks/verbs/key_table.h"
#include "pmix-hooks/ranks/verbs/verbs_api.h"
#include "pmix-hooks/ranks/verbs/work_log.h"

namespace symvirt::hooks::verbs {

class Layer;
struct VContext;

// Members of a context, any order; an object knows its place, so that leaving costs nothing.
template <typename T>
class ObjectList {
 public:
  void add(T* object) {
    object->place = items_.size();
    items_.push_back(object);
  }
  void remove(T* object) {
    items_[object->place] = items_.back();
    items_[object->place]->place = object->place;
    items_.pop_back();
  }
  auto begin() const { return items_.begin(); }
  auto end() const { return items_.end(); }
  std::size_t size() const { return items_.size(); }

 private:
  std::vector<T*> items_;
};

// One a device name, never freed: applications keep the pointers (context->device) for ever. Behind
// the public struct lie zeros: what a provider library (mlx5dv and others) takes for its own
// verbs_device there is none of its devices, so that direct verbs are refused instead of going
// round the layer.
struct VDevice {
  ibv_device pub{};
  std::byte provider_part[1024]{};
};

struct VPd {
  ibv_pd pub{};
  ibv_pd* real = nullptr;
  std::size_t place = 0;
};

enum class MrKind { kPlain, kIova, kIova2, kDmabuf };

struct VMr {
  ibv_mr pub{};  // lkey and rkey: the application's, for ever
  ibv_mr* real = nullptr;
  MrKind kind = MrKind::kPlain;
  std::uint64_t iova = 0;
  std::uint64_t offset = 0;  // dmabuf
  int fd = -1;               // dmabuf: of our own
  unsigned int access = 0;
  std::size_t place = 0;
};

struct VAh {
  ibv_ah pub{};
  ibv_ah* real = nullptr;
  ibv_ah_attr attr{};                 // as the application gave it
  const KeyTable* numbers = nullptr;  // of the queue pairs there, carried ones; Directory's
  std::size_t place = 0;
};

struct VCq;

struct VChannel {
  ibv_comp_channel pub{};  // fd: an epoll descriptor of the layer's own, from creation to the end
  ibv_comp_channel* real = nullptr;
  int wake = -1;                 // eventfd in it: readable while soft_events is not empty
  std::deque<VCq*> soft_events;  // under Layer::held_mutex
  std::size_t place = 0;
};

struct VCq {
  ibv_cq pub{};
  ibv_cq* real = nullptr;
  // What the application asked for and is told it has, and what there is above it for the layer's
  // own work: `own` entries are needed, two for each queue pair (marker, last receive).
  int spare = 0;
  int own = 0;
  int comp_vector = 0;
  Layer* layer = nullptr;
  BiasedLock lock;
  // What was completed while the application could not poll the device. Under the held mutex while
  // polls are held, under lock when not.
  std::deque<ibv_wc> soft;
  std::atomic<std::uint32_t> soft_count{0};
  enum Armed : std::uint8_t { kNo, kSolicited, kAny };
  std::atomic<std::uint8_t> armed{kNo};
  std::uint32_t comp_events_given = 0;  // under pub.mutex
  std::uint32_t async_events_given = 0;
  std::size_t place = 0;
};

// A receive of a shared queue: completed in any order, so its wr_id on the device is its place
// here.
struct SrqSlot {
  std::uint64_t wr_id = 0;
  std::uint64_t sequence = 0;
  std::atomic<bool> busy{false};
  bool posted = false;  // to the device
  std::uint32_t num_sge = 0;
};

inline constexpr std::uint64_t kSrqTag = 0x5356'5351'0000'0000;  // upper half of such a wr_id

struct VSrq {
  ibv_srq pub{};
  ibv_srq* real = nullptr;
  Layer* layer = nullptr;
  ibv_srq_attr attr{};  // as granted
  ibv_srq_attr wanted{};
  std::uint32_t limit = 0;  // armed, and the event has not come
  BiasedLock lock;
  std::unique_ptr<SrqSlot[]> slots;
  std::unique_ptr<ibv_sge[]> sges;  // wanted.max_sge a slot
  std::uint32_t slot_count = 0;
  std::uint32_t stride = 0;
  std::vector<std::uint32_t> free_slots;
  std::uint64_t sequence = 0;
  std::uint32_t async_events_given = 0;
  std::size_t place = 0;
};

struct VQp {
  ibv_qp pub{};
  ibv_qp* real = nullptr;
  Layer* layer = nullptr;
  VContext* context = nullptr;
  bool translate = false;  // UD: address handles are always the layer's

  BiasedLock send_lock;
  SendLog sends;
  BiasedLock recv_lock;
  RecvLog recvs;
  SpinLock source_lock;  // UD, after a move: the poller reads in recvs
  // Written by whoever polls the queue's completion queue, under that queue's lock.
  alignas(64) std::atomic<std::uint64_t> sends_completed{0};  // signalled ones
  std::atomic<std::uint64_t> recvs_completed{0};
  std::atomic<bool> errored{false};
  VSrq* srq = nullptr;

  std::atomic<std::uint64_t> srq_received{0};

  ibv_qp_init_attr init{};  // wanted
  ibv_qp_cap cap{};         // granted, less what is the layer's own
  ibv_qp_attr attr{};       // everything the application set since RESET
  int attr_mask = 0;
  const KeyTable* rkeys = nullptr;  // of the process at the other end; Directory's
  std::uint32_t psn_shift = 0;      // real packet numbers less the application's
  std::uint32_t async_events_given = 0;

  // During a quiesce and a resume only.
  OwnWork marker;                       // in the send queue: comes back when all of it is done
  OwnWork last_receive;                 // behind all receives, when they are taken back
  bool stuck = false;                   // its sends wait for a receiver
  std::atomic<bool> taken_back{false};  // in state ERR by our own hand
  bool all_back = false;                // all that was posted has come back
  bool rebuild = false;                 // new real object, or reset
  bool fresh = false;                   // new, and nothing was done with it
  std::uint64_t flushed = 0;            // completions that came because it was taken back

  std::size_t place = 0;
};

// Queue pair of a number that the device put into a completion: two levels of 4,096.
class QpTable {
 public:
  VQp* find(std::uint32_t number) const {
    const Page* page = pages_[number >> 12 & 4095].load(std::memory_order_acquire);
    return page == nullptr ? nullptr : (*page)[number & 4095].load(std::memory_order_acquire);
  }
  void set(std::uint32_t number, VQp* qp);
  void clear();
  QpTable() = default;
  QpTable(const QpTable&) = delete;
  QpTable& operator=(const QpTable&) = delete;
  ~QpTable();

 private:
  using Page = std::atomic<VQp*>[4096];
  std::atomic<Page*> pages_[4096]{};
};

struct GidEntry {
  int index = 0;
  union ibv_gid gid {};
  std::uint32_t type = 0;
};

struct PortState {
  std::uint16_t lid = 0;
  ibv_mtu mtu = IBV_MTU_4096;
  std::uint8_t link_layer = 0;
  std::vector<GidEntry> gids;
};

struct VContext {
  ibv_context pub{};  // async_fd: an epoll descriptor of the layer's own
  Layer* layer = nullptr;
  ibv_context* real = nullptr;
  std::string device_name;  // of the device that is open, or was last
  std::uint8_t port_count = 1;
  std::vector<PortState> known;  // as the application may have seen the ports (index: port - 1);
                                 // from the first quiesce
  std::vector<PortState> now;    // as they are
  ObjectList<VPd> pds;
  ObjectList<VMr> mrs;
  ObjectList<VChannel> channels;
  ObjectList<VCq> cqs;
  ObjectList<VSrq> srqs;
  ObjectList<VQp> qps;
  ObjectList<VAh> ahs;
  QpTable numbers;
  std::unique_ptr<KeyTable> lkeys;  // carried ones; null before the first move
  int wake = -1;
  std::string trouble;  // what the device refused in the last attempt of a resume; for people
  std::deque<ibv_async_event> soft_async;  // under Layer::held_mutex
  std::size_t place = 0;
};

// Whose context is it? Providers and libibverbs itself call exported functions with real objects,
// and find ours: those must fall through.
bool is_virtual(const ibv_context* context);
VDevice* virtual_device(const ibv_device* device);  // null: a real one

inline VContext* of(ibv_context* p) { return reinterpret_cast<VContext*>(p); }
inline VPd* of(ibv_pd* p) { return reinterpret_cast<VPd*>(p); }
inline VMr* of(ibv_mr* p) { return reinterpret_cast<VMr*>(p); }
inline VAh* of(ibv_ah* p) { return reinterpret_cast<VAh*>(p); }
inline VChannel* of(ibv_comp_channel* p) { return reinterpret_cast<VChannel*>(p); }
inline VCq* of(ibv_cq* p) { return reinterpret_cast<VCq*>(p); }
inline VSrq* of(ibv_srq* p) { return reinterpret_cast<VSrq*>(p); }
inline VQp* of(ibv_qp* p) { return reinterpret_cast<VQp*>(p); }

}  // namespace symvirt::hooks::verbs
