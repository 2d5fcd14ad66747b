// Requests that were taken already. munged refuses a credential that it has decoded before, but
// forgets with each restart; we do not, unless we are restarted, too.
// Threads: any.
#pragma once

#include <chrono>
#include <deque>
#include <mutex>
#include <string>
#include <unordered_set>
#include <utility>

namespace symvirt {

class SeenNonces {
 public:
  using Clock = std::chrono::steady_clock;

  // kept: longer than a credential is good (munged: an hour at most, --max-ttl).
  explicit SeenNonces(std::chrono::seconds kept = std::chrono::seconds(3'700),
                      std::size_t most = 200'000)
      : kept_(kept), most_(most) {}

  // False: it has been here.
  bool is_new(const std::string& nonce, Clock::time_point now = Clock::now()) {
    std::lock_guard lock(mutex_);
    while (!order_.empty() && (order_.size() >= most_ || order_.front().first + kept_ < now)) {
      seen_.erase(order_.front().second);
      order_.pop_front();
    }
    if (!seen_.insert(nonce).second) return false;
    order_.emplace_back(now, nonce);
    return true;
  }

 private:
  const std::chrono::seconds kept_;
  const std::size_t most_;
  std::mutex mutex_;
  std::unordered_set<std::string> seen_;
  std::deque<std::pair<Clock::time_point, std::string>> order_;  // oldest first
};

}  // namespace symvirt
