// A point in time by which a call has to be over. Every blocking call of the project takes one.
// Monotonic (CLOCK_MONOTONIC); on the wire a deadline travels as milliseconds left ("deadline_ms").
#pragma once

#include <algorithm>
#include <chrono>

namespace symvirt {

class Deadline {
 public:
  using Clock = std::chrono::steady_clock;

  static Deadline after(std::chrono::milliseconds d) { return Deadline(Clock::now() + d); }
  static Deadline at(Clock::time_point t) { return Deadline(t); }

  Clock::time_point time() const { return at_; }
  bool expired() const { return Clock::now() >= at_; }
  // Never negative; rounded up, so that a poll(2) with it does not spin before the deadline.
  std::chrono::milliseconds left() const {
    return std::max(std::chrono::milliseconds(0),
                    std::chrono::ceil<std::chrono::milliseconds>(at_ - Clock::now()));
  }
  Deadline earlier(Deadline other) const { return Deadline(std::min(at_, other.at_)); }

 private:
  explicit Deadline(Clock::time_point t) : at_(t) {}
  Clock::time_point at_;
};

}  // namespace symvirt
