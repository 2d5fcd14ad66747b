#include "node-helper/protocol/connection_room.h"

#include <algorithm>

namespace symvirt {
namespace {
constexpr std::size_t kMostAddresses = 16'384;  // remembered: more than a cluster has
}  // namespace

std::size_t ConnectionRoom::count(Standing standing, const std::uint32_t* address) const {
  return static_cast<std::size_t>(
      std::count_if(entries_.begin(), entries_.end(), [&](const auto& e) {
        return e.second.standing == standing &&
               (address == nullptr || e.second.address == *address);
      }));
}

std::optional<ConnectionRoom::Id> ConnectionRoom::longest_silent(
    const std::uint32_t* address) const {
  std::optional<Id> spared;
  for (const auto& [id, entry] : entries_) {
    if (entry.standing != Standing::kUnknown || entry.heard) continue;
    if (address != nullptr && entry.address != *address) continue;
    if (address != nullptr || !trusted_addresses_.contains(entry.address)) return id;
    if (!spared) spared = id;
  }
  return spared;
}

ConnectionRoom::Admission ConnectionRoom::admit(Id id, std::uint32_t address) {
  std::optional<Id> victim;
  const bool full = count(Standing::kUnknown, nullptr) >= limits_.unknown;
  const bool full_of_it = count(Standing::kUnknown, &address) >= limits_.unknown_per_address;
  if (full || full_of_it) {
    victim = longest_silent(full_of_it ? &address : nullptr);
    if (!victim) return {};
    entries_.erase(*victim);
  }
  entries_[id] = {address, Standing::kUnknown, false};
  return {true, victim};
}

std::optional<ConnectionRoom::Id> ConnectionRoom::evict() {
  const auto victim = longest_silent(nullptr);
  if (victim) entries_.erase(*victim);
  return victim;
}

void ConnectionRoom::heard(Id id) {
  if (auto it = entries_.find(id); it != entries_.end()) it->second.heard = true;
}

bool ConnectionRoom::promote(Id id, Standing standing) {
  auto it = entries_.find(id);
  if (it == entries_.end()) return false;  // evicted
  Entry& entry = it->second;
  if (standing <= entry.standing) return true;
  if (standing == Standing::kOrdinary &&
      (count(standing, nullptr) >= limits_.ordinary ||
       count(standing, &entry.address) >= limits_.ordinary_per_address))
    return false;
  if (standing == Standing::kTrusted) {
    if (count(standing, nullptr) >= limits_.trusted) return false;
    if (trusted_addresses_.size() < kMostAddresses) trusted_addresses_.insert(entry.address);
  }
  entry.standing = standing;
  return true;
}

void ConnectionRoom::leave(Id id) { entries_.erase(id); }

}  // namespace symvirt
