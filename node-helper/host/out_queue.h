// Bytes that wait for a guest to read them. Lines are repeated until they are answered, so a guest
// that does not read (suspended, hung, or none there) would be queued for without end; what does
// not fit is dropped whole, and comes again with the next repetition. Threads: the owner's lock.
#pragma once

#include <string>
#include <string_view>

namespace symvirt::host {

class OutQueue {
 public:
  explicit OutQueue(std::size_t most) : most_(most) {}

  // False: dropped. One message always fits: half of it would never be whole.
  bool push(std::string_view bytes) {
    if (!empty() && size() + bytes.size() > most_) return false;
    bytes_.append(bytes);
    return true;
  }
  bool empty() const { return size() == 0; }
  std::size_t size() const { return bytes_.size() - sent_; }
  std::string_view front(std::size_t longest) const {
    return std::string_view(bytes_).substr(sent_, longest);
  }
  void pop(std::size_t count) {
    sent_ += count;
    if (sent_ < bytes_.size() && sent_ < kMoveAt) return;
    bytes_.erase(0, sent_);
    sent_ = 0;
    if (bytes_.empty()) bytes_.shrink_to_fit();
  }

 private:
  static constexpr std::size_t kMoveAt = 4u << 20;  // not a memmove for each chunk
  const std::size_t most_;
  std::string bytes_;
  std::size_t sent_ = 0;
};

}  // namespace symvirt::host
