// Ranks that are threads of one process.
#pragma once

#include <condition_variable>
#include <mutex>

#include "tests/verbs/stress.h"

namespace symvirt::verbs_stress {

class ThreadMeeting {
 public:
  explicit ThreadMeeting(int size) : texts_(static_cast<std::size_t>(size)) {}

  std::vector<std::string> all_gather(int rank, const std::string& mine) {
    std::unique_lock lock(lock_);
    const std::uint64_t turn = turn_;
    texts_[static_cast<std::size_t>(rank)] = mine;
    if (++come_ == texts_.size()) {
      come_ = 0;
      given_ = texts_;
      ++turn_;
      changed_.notify_all();
    }
    changed_.wait(lock, [&] { return turn_ != turn || gone_; });
    if (turn_ == turn) return {};
    return given_;
  }
  // A rank that ended with an error does not come any more.
  void leave() {
    const std::lock_guard lock(lock_);
    gone_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex lock_;
  std::condition_variable changed_;
  std::vector<std::string> texts_;
  std::vector<std::string> given_;
  std::size_t come_ = 0;
  std::uint64_t turn_ = 0;
  bool gone_ = false;
};

class ThreadWire final : public Wire {
 public:
  ThreadWire(ThreadMeeting& meeting, int rank, int size)
      : meeting_(meeting), rank_(rank), size_(size) {}
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::vector<std::string> all_gather(const std::string& mine) override {
    return meeting_.all_gather(rank_, mine);
  }

 private:
  ThreadMeeting& meeting_;
  int rank_;
  int size_;
};

}  // namespace symvirt::verbs_stress
