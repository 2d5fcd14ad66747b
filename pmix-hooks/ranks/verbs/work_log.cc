#include "pmix-hooks/ranks/verbs/work_log.h"

#include <algorithm>
#include <bit>

namespace symvirt::hooks::verbs {

void Ring::configure(std::uint32_t capacity, std::uint32_t record_bytes) {
  const std::uint64_t records = std::bit_ceil<std::uint64_t>(std::max(capacity, 4u));
  stride_ = (record_bytes + 15) / 16 * 16;
  mask_ = records - 1;
  bytes_ = std::make_unique_for_overwrite<std::byte[]>(records * stride_);
  clear();
}

void Ring::grow() {
  const std::uint64_t records = (mask_ + 1) * 2;
  auto larger = std::make_unique_for_overwrite<std::byte[]>(records * stride_);
  for (std::uint64_t i = tail; i != head; ++i)
    std::memcpy(larger.get() + (i & (records - 1)) * stride_, at(i), stride_);
  bytes_ = std::move(larger);
  mask_ = records - 1;
}

void SendLog::configure(std::uint32_t max_wr, std::uint32_t max_sge, std::uint32_t max_inline,
                        bool all) {
  always_ = all ? IBV_SEND_SIGNALED : 0;
  room_ = std::max<std::uint32_t>(max_sge * sizeof(ibv_sge), max_inline);
  Ring::configure(max_wr, sizeof(SendRecord) + room_);
  forget();
}

std::uint32_t SendLog::copy_inline(const ibv_send_wr& wr, std::byte* to) const {
  std::uint32_t bytes = 0;
  for (int i = 0; i < wr.num_sge; ++i) {
    const ibv_sge& sge = wr.sg_list[i];
    const std::uint32_t length = std::min(sge.length, room_ - bytes);
    std::memcpy(to + bytes, reinterpret_cast<const void*>(sge.addr), length);
    bytes += length;
  }
  return bytes;
}

void RecvLog::configure(std::uint32_t max_wr, std::uint32_t max_sge) {
  Ring::configure(max_wr, sizeof(RecvRecord) + max_sge * sizeof(ibv_sge));
  forget();
}

}  // namespace symvirt::hooks::verbs
