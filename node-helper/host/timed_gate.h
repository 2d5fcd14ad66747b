// std::timed_mutex over a condition variable: the sanitizer of g++ 12 does not know the call that
// std::timed_mutex waits with, and would report every unlock. For std::unique_lock.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

namespace symvirt::host {

class TimedGate {
 public:
  bool try_lock_until(std::chrono::steady_clock::time_point until) {
    std::unique_lock lock(mutex_);
    if (!opened_.wait_until(lock, until, [this] { return !taken_; })) return false;
    taken_ = true;
    return true;
  }
  void lock() {
    std::unique_lock lock(mutex_);
    opened_.wait(lock, [this] { return !taken_; });
    taken_ = true;
  }
  void unlock() {
    std::lock_guard lock(mutex_);
    taken_ = false;
    opened_.notify_one();
  }

 private:
  std::mutex mutex_;
  std::condition_variable opened_;
  bool taken_ = false;
};

}  // namespace symvirt::host
