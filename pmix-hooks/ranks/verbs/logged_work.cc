// Work from the logs to the device: what waited for it, or has to be translated.
#include <cerrno>

#include "pmix-hooks/ranks/verbs/layer.h"
#include "pmix-hooks/ranks/verbs/translate.h"

namespace symvirt::hooks::verbs {
namespace {

constexpr int kBatch = 16;
constexpr int kBatchSges = 64;

struct SendBatch {
  ibv_send_wr list[kBatch];
  ibv_sge sges[kBatchSges];
  int count = 0;
};

void fill_sges(const VQp& qp, SendRecord& r, ibv_sge* sges) {
  if (r.inline_bytes != 0) {
    sges[0] = {reinterpret_cast<std::uintptr_t>(&r + 1), r.inline_bytes, 0};
    return;
  }
  translate_keys(qp.context->lkeys.get(), SendLog::list_of(r), r.num_sge, sges);
}

// As many records as fit, as a list for the device. Returns the first that is not in it.
std::uint64_t fill_batch(VQp& qp, std::uint64_t from, std::uint64_t to, SendBatch& batch) {
  batch.count = 0;
  std::uint32_t used = 0;
  std::uint64_t next = from;
  for (; next != to && batch.count < kBatch; ++next) {
    SendRecord& r = qp.sends.record(next);
    const std::uint32_t needed =
        static_cast<std::uint32_t>(r.num_sge) + (r.inline_bytes != 0 ? 1u : 0u);
    if (used + needed > kBatchSges) break;
    ibv_send_wr& w = batch.list[batch.count];
    w.wr_id = r.wr_id;
    w.next = nullptr;
    w.sg_list = batch.sges + used;
    copy_send_body(w, r);
    w.send_flags = r.flags;
    w.num_sge = static_cast<int>(needed);
    translate_target(qp, w);
    fill_sges(qp, r, w.sg_list);
    if (batch.count > 0) batch.list[batch.count - 1].next = &w;
    ++batch.count;
    used += needed;
  }
  return next;
}

}  // namespace

int post_records(VQp& qp, std::uint64_t from, std::uint64_t to) {
  SendBatch batch;
  std::uint64_t index = from;
  while (index != to) {
    const std::uint64_t next = fill_batch(qp, index, to, batch);
    if (next == index) return EINVAL;  // one with more elements than any device takes
    ibv_send_wr* bad = nullptr;
    const int error = qp.real->context->ops.post_send(qp.real, batch.list, &bad);
    if (error != 0) {
      qp.sends.real = index + static_cast<std::uint64_t>(bad == nullptr ? 0 : bad - batch.list);
      return error;
    }
    qp.sends.real = index = next;
  }
  return 0;
}

int post_receives(VQp& qp, std::uint64_t from, std::uint64_t to) {
  ibv_sge sges[kBatchSges];
  const KeyTable* const lkeys = qp.context->lkeys.get();
  for (std::uint64_t index = from; index != to; ++index) {
    RecvRecord& r = qp.recvs.record(index);
    if (r.num_sge > kBatchSges) return EINVAL;
    translate_keys(lkeys, RecvLog::list_of(r), static_cast<int>(r.num_sge), sges);
    ibv_recv_wr wr{r.wr_id, nullptr, sges, static_cast<int>(r.num_sge)};
    ibv_recv_wr* bad = nullptr;
    const int error = qp.real->context->ops.post_recv(qp.real, &wr, &bad);
    if (error != 0) return error;
    qp.recvs.real = index + 1;
  }
  return 0;
}

}  // namespace symvirt::hooks::verbs
