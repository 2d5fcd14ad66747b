#include "pmix-hooks/ranks/verbs/layer.h"

#include <pthread.h>

#include <cstring>
#include <new>

#include "pmix-hooks/ranks/verbs/real_verbs.h"

namespace symvirt::hooks::verbs {
namespace {

std::atomic<Layer*> process_layer{nullptr};
constinit thread_local Layer* layer_of_test __attribute__((tls_model("initial-exec"))) = nullptr;

// A child of fork has the parent's descriptors and mappings, and a destroy in it would destroy the
// parent's objects: whatever it inherited is dead to it. If it uses verbs itself, it begins anew.
void in_child() {
  Layer* const parents = process_layer.load(std::memory_order_relaxed);
  if (parents == nullptr) return;
  forget_other_threads();
  parents->state.store(kForked, std::memory_order_relaxed);
  parents->control.reset_in_child();
  new (&parents->held_mutex) std::mutex;
  new (&parents->objects_mutex) std::mutex;
  process_layer.store(nullptr, std::memory_order_relaxed);
}

Layer* make_process_layer() {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, [] { pthread_atfork(nullptr, nullptr, in_child); });
  auto* const fresh = new Layer;
  Layer* expected = nullptr;
  if (process_layer.compare_exchange_strong(expected, fresh, std::memory_order_acq_rel))
    return fresh;
  delete fresh;
  return expected;
}

// Sender's GID in the first 40 bytes of a UD receive: a GRH, or (RoCE v2 over IPv4) 20 bytes of
// nothing and an IPv4 header.
bool looks_like_ipv4(const std::uint8_t* header) { return header[20] == 0x45; }

Gid ipv4_source(const std::uint8_t* header) {
  Gid gid{};
  gid[10] = gid[11] = 0xff;
  std::memcpy(gid.data() + 12, header + 32, 4);
  return gid;
}

Gid grh_source(const std::uint8_t* header) {
  Gid gid;
  std::memcpy(gid.data(), header + 8, gid.size());
  return gid;
}

// Where the device put the header: the buffer of the oldest receive, since they complete in order;
// of a shared queue the one that is named. Null: not in one piece.
const std::uint8_t* header_of(VQp& qp, const ibv_wc& wc) {
  const ibv_sge* list = nullptr;
  std::uint32_t count = 0;
  if (qp.srq != nullptr) {
    const auto index = static_cast<std::uint32_t>(wc.wr_id);
    if ((wc.wr_id & ~std::uint64_t{0xffff'ffff}) != kSrqTag || index >= qp.srq->slot_count)
      return nullptr;
    list = &qp.srq->sges[std::size_t{index} * qp.srq->stride];
    count = qp.srq->slots[index].num_sge;
  } else {
    const std::uint64_t index =
        qp.recvs.tail + (qp.recvs_completed.load(std::memory_order_relaxed) - qp.recvs.retired);
    if (index >= qp.recvs.head) return nullptr;
    RecvRecord& r = qp.recvs.record(index);
    list = RecvLog::list_of(r);
    count = r.num_sge;
  }
  if (count == 0 || list->length < sizeof(ibv_grh)) return nullptr;
  return reinterpret_cast<const std::uint8_t*>(list->addr);
}

}  // namespace

Layer& Layer::current() {
  if (layer_of_test != nullptr) return *layer_of_test;
  Layer* const layer = process_layer.load(std::memory_order_acquire);
  return layer != nullptr ? *layer : *make_process_layer();
}

void Layer::set_current_for_test(Layer* layer) { layer_of_test = layer; }

void Layer::change_state(std::uint32_t set, std::uint32_t clear) {
  {
    const std::lock_guard lock(held_mutex);
    state.store((state.load(std::memory_order_relaxed) & ~clear) | set, std::memory_order_release);
  }
  synchronize();
}

void Layer::mark_immovable(const std::string& reason) {
  const std::lock_guard lock(immovable_mutex_);
  if (!immovable_.empty()) return;
  immovable_ = reason;
  if (on_immovable_) on_immovable_(reason);
}

std::string Layer::immovable() {
  const std::lock_guard lock(immovable_mutex_);
  return immovable_;
}

void Layer::on_immovable(std::function<void(const std::string&)> callback) {
  const std::lock_guard lock(immovable_mutex_);
  on_immovable_ = std::move(callback);
}

void Layer::name_source(VQp& qp, ibv_wc& wc) const {
  if (directory == nullptr) return;
  // Senders on several devices may have this number, also ones that are newer than the directory:
  // it says something only together with where the sender is.
  std::optional<std::uint32_t> source;
  if ((wc.wc_flags & IBV_WC_GRH) == 0) {
    source = directory->source(wc.slid, wc.src_qp);
  } else {
    const std::lock_guard lock(qp.source_lock);
    const std::uint8_t* const header = header_of(qp, wc);
    if (header == nullptr) {
      source = directory->only_source(wc.src_qp);
    } else {
      if (looks_like_ipv4(header)) source = directory->source(ipv4_source(header), wc.src_qp);
      if (!source) source = directory->source(grh_source(header), wc.src_qp);
    }
  }
  if (source) wc.src_qp = *source;
}

void QpTable::set(std::uint32_t number, VQp* qp) {
  std::atomic<Page*>& entry = pages_[number >> 12 & 4095];
  Page* page = entry.load(std::memory_order_acquire);
  if (page == nullptr) {
    auto* const fresh = reinterpret_cast<Page*>(new std::atomic<VQp*>[4096]());
    if (entry.compare_exchange_strong(page, fresh, std::memory_order_acq_rel)) {
      page = fresh;
    } else {
      delete[] reinterpret_cast<std::atomic<VQp*>*>(fresh);
    }
  }
  (*page)[number & 4095].store(qp, std::memory_order_release);
}

void QpTable::clear() {
  for (auto& entry : pages_) {
    Page* const page = entry.load(std::memory_order_relaxed);
    if (page == nullptr) continue;
    for (auto& qp : *page) qp.store(nullptr, std::memory_order_relaxed);
  }
}

QpTable::~QpTable() {
  for (auto& entry : pages_)
    delete[] reinterpret_cast<std::atomic<VQp*>*>(entry.load(std::memory_order_relaxed));
}

}  // namespace symvirt::hooks::verbs
