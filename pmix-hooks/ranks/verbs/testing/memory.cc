// Memory keys: what may be read and written, and the moving of bytes.
#include <cstring>
#include <functional>

#include "pmix-hooks/ranks/verbs/testing/objects.h"

namespace symvirt::hooks::verbs::testing {
namespace {

// With mr_lock. Null: no such key, another domain, out of bounds, no such access.
std::byte* resolve(const std::unordered_map<std::uint32_t, Mr*>& keys, std::uint32_t key,
                   const ibv_pd* pd, std::uint64_t address, std::uint64_t length, unsigned access) {
  const auto found = keys.find(key);
  if (found == keys.end()) return nullptr;
  const Mr& mr = *found->second;
  if (mr.pd != pd || (mr.access & access) != access) return nullptr;
  if (address < mr.iova || length > mr.length || address - mr.iova > mr.length - length)
    return nullptr;
  return mr.base + (address - mr.iova);
}

bool for_each(const Device& device, const ibv_pd* pd, const std::vector<ibv_sge>& list,
              unsigned access, const std::function<void(std::byte*, std::size_t)>& use) {
  for (const ibv_sge& sge : list) {
    if (sge.length == 0) continue;
    std::byte* at = resolve(device.lkeys, sge.lkey, pd, sge.addr, sge.length, access);
    if (at == nullptr) return false;
    use(at, sge.length);
  }
  return true;
}

}  // namespace

ibv_wc_status gather(const Device& device, const ibv_pd* pd, const std::vector<ibv_sge>& list,
                     Bytes& out) {
  const std::shared_lock lock(device.mr_lock);
  const bool ok = for_each(device, pd, list, 0, [&out](std::byte* at, std::size_t length) {
    out.insert(out.end(), at, at + length);
  });
  return ok ? IBV_WC_SUCCESS : IBV_WC_LOC_PROT_ERR;
}

ibv_wc_status writable(const Device& device, const ibv_pd* pd, const std::vector<ibv_sge>& list) {
  const std::shared_lock lock(device.mr_lock);
  const bool ok =
      for_each(device, pd, list, IBV_ACCESS_LOCAL_WRITE, [](std::byte*, std::size_t) {});
  return ok ? IBV_WC_SUCCESS : IBV_WC_LOC_PROT_ERR;
}

ibv_wc_status scatter(const Device& device, const ibv_pd* pd, const std::vector<ibv_sge>& list,
                      std::size_t skip, const Bytes& data) {
  const std::shared_lock lock(device.mr_lock);
  std::size_t room = 0;
  for (const ibv_sge& sge : list) room += sge.length;
  if (room < skip + data.size()) return IBV_WC_LOC_LEN_ERR;
  std::size_t done = 0;
  const auto put = [&](std::byte* at, std::size_t length) {
    const std::size_t skipped = std::min(skip, length);
    skip -= skipped;
    const std::size_t n = std::min(length - skipped, data.size() - done);
    if (n != 0) std::memcpy(at + skipped, data.data() + done, n);
    done += n;
  };
  if (!for_each(device, pd, list, IBV_ACCESS_LOCAL_WRITE, put)) return IBV_WC_LOC_PROT_ERR;
  return IBV_WC_SUCCESS;
}

ibv_wc_status remote_write(const Device& device, const ibv_pd* pd, const Message& message) {
  if (message.payload.empty()) return IBV_WC_SUCCESS;
  const std::shared_lock lock(device.mr_lock);
  std::byte* at = resolve(device.rkeys, message.rkey, pd, message.remote_addr,
                          message.payload.size(), IBV_ACCESS_REMOTE_WRITE);
  if (at == nullptr) return IBV_WC_REM_ACCESS_ERR;
  std::memcpy(at, message.payload.data(), message.payload.size());
  return IBV_WC_SUCCESS;
}

ibv_wc_status remote_read(const Device& device, const ibv_pd* pd, const Message& message,
                          Bytes& out) {
  if (message.bytes == 0) return IBV_WC_SUCCESS;
  const std::shared_lock lock(device.mr_lock);
  std::byte* at = resolve(device.rkeys, message.rkey, pd, message.remote_addr, message.bytes,
                          IBV_ACCESS_REMOTE_READ);
  if (at == nullptr) return IBV_WC_REM_ACCESS_ERR;
  out.assign(at, at + message.bytes);
  return IBV_WC_SUCCESS;
}

ibv_wc_status remote_atomic(const Device& device, const ibv_pd* pd, const Message& message,
                            Bytes& out) {
  if (message.remote_addr % 8 != 0) return IBV_WC_REM_INV_REQ_ERR;
  const std::shared_lock lock(device.mr_lock);
  std::byte* at =
      resolve(device.rkeys, message.rkey, pd, message.remote_addr, 8, IBV_ACCESS_REMOTE_ATOMIC);
  if (at == nullptr) return IBV_WC_REM_ACCESS_ERR;
  auto* word = reinterpret_cast<std::uint64_t*>(at);
  std::uint64_t old = message.compare_add;
  if (message.opcode == IBV_WR_ATOMIC_FETCH_AND_ADD) {
    old = __atomic_fetch_add(word, message.compare_add, __ATOMIC_SEQ_CST);
  } else {
    __atomic_compare_exchange_n(word, &old, message.swap, false, __ATOMIC_SEQ_CST,
                                __ATOMIC_SEQ_CST);
  }
  out.resize(8);
  std::memcpy(out.data(), &old, 8);
  return IBV_WC_SUCCESS;
}

}  // namespace symvirt::hooks::verbs::testing
