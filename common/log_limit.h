// Warnings that somebody else causes, such as a refused message: at most so many in a while, then
// how many more there were. Without it, who may not do anything could still fill the log. Threads:
// any.
#pragma once

#include <chrono>
#include <mutex>
#include <string>
#include <string_view>

#include "common/log.h"

namespace symvirt {

class LogLimit {
 public:
  using Clock = std::chrono::steady_clock;

  // `what`: names them in the line that counts what was left out: "refused requests".
  explicit LogLimit(std::string what, int lines = 20,
                    std::chrono::milliseconds period = std::chrono::seconds(60))
      : what_(std::move(what)), lines_(lines), period_(period) {}

  void warning(std::string_view message) {
    std::string count;
    {
      std::lock_guard lock(mutex_);
      const Clock::time_point now = Clock::now();
      if (now >= begun_ + period_) {
        if (left_out_ > 0) count = what_ + ": " + std::to_string(left_out_) + " more not logged";
        begun_ = now;
        said_ = 0;
        left_out_ = 0;
      }
      if (said_ >= lines_) {
        // The count comes with the next one after the period; that they are left out, now.
        if (left_out_++ == 0) count = what_ + ": too many; more are not logged for a while";
        message = {};
      } else {
        ++said_;
      }
    }
    if (!count.empty()) log_warning(count);
    if (!message.empty()) log_warning(message);
  }

 private:
  const std::string what_;
  const int lines_;
  const std::chrono::milliseconds period_;
  std::mutex mutex_;
  Clock::time_point begun_{};
  int said_ = 0;
  std::int64_t left_out_ = 0;
};

}  // namespace symvirt
