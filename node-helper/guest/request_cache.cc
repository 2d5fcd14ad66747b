#include "node-helper/guest/request_cache.h"

namespace symvirt::guest {

RequestCache::Seen RequestCache::begin(const std::string& id) {
  const auto [it, inserted] = entries_.try_emplace(id);
  if (inserted) return Seen::kNew;
  return it->second.empty() ? Seen::kRunning : Seen::kAnswered;
}

void RequestCache::answered(const std::string& id, const std::string& line) {
  const auto it = entries_.find(id);
  if (it == entries_.end() || !it->second.empty()) return;
  it->second = line;
  bytes_ += line.size();
  order_.push_back(id);
  evict();
}

const std::string& RequestCache::answer(const std::string& id) const {
  static const std::string none;
  const auto it = entries_.find(id);
  return it == entries_.end() ? none : it->second;
}

void RequestCache::evict() {
  // The newest stays whatever its size: it is the one that is asked for again.
  while (order_.size() > 1 && (order_.size() > most_ || bytes_ > most_bytes_)) {
    const auto it = entries_.find(order_.front());
    bytes_ -= it->second.size();
    entries_.erase(it);
    order_.pop_front();
  }
}

}  // namespace symvirt::guest
