// The engine's thread: a queue of closures and a clock. Everything that touches transactions runs
// here, one after the other.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <future>
#include <mutex>

namespace symvirt {

class Loop {
 public:
  // Any thread. Closures run in order.
  void post(std::function<void()> work) {
    std::lock_guard lock(mutex_);
    queue_.push_back(std::move(work));
    // Not after the lock: stop()'s closure ends run(), and with it this object.
    wake_.notify_one();
  }

  // Any other thread: runs `work` on the loop and gives its value. False from `ok` when the loop
  // has stopped.
  template <typename F>
  auto ask(F work) -> decltype(work()) {
    using R = decltype(work());
    auto task = std::make_shared<std::packaged_task<R()>>(std::move(work));
    std::future<R> future = task->get_future();
    post([task] { (*task)(); });
    return future.get();
  }

  void stop() {
    post([this] { stopping_ = true; });
  }

  // Runs closures; `idle` after each batch and when `next_wakeup` is over. `idle` returns how long
  // to sleep at most.
  void run(const std::function<std::chrono::milliseconds()>& idle) {
    std::chrono::milliseconds sleep(0);
    while (!stopping_) {
      std::deque<std::function<void()>> batch;
      {
        std::unique_lock lock(mutex_);
        wake_.wait_for(lock, sleep, [this] { return !queue_.empty(); });
        batch.swap(queue_);
      }
      for (auto& work : batch) work();
      if (!stopping_) sleep = idle();
    }
    // Whoever asks after the end would wait for ever.
    std::lock_guard lock(mutex_);
    for (auto& work : queue_) work();
    queue_.clear();
  }

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> queue_;
  bool stopping_ = false;  // loop's thread only
};

}  // namespace symvirt
