// Makes repeating a request safe: an id that is being worked on is joined, one that was answered is
// answered again.
#pragma once

#include <cstddef>
#include <deque>
#include <string>
#include <unordered_map>

namespace symvirt::guest {

class RequestCache {
 public:
  enum class Seen { kNew, kRunning, kAnswered };

  explicit RequestCache(std::size_t most = 256, std::size_t most_bytes = 32u << 20)
      : most_(most), most_bytes_(most_bytes) {}

  // kNew: the caller executes it, and hands the line of its answer to answered().
  Seen begin(const std::string& id);
  void answered(const std::string& id, const std::string& line);
  // The stored line of an answered id; empty otherwise.
  const std::string& answer(const std::string& id) const;

 private:
  void evict();

  std::size_t most_, most_bytes_, bytes_ = 0;
  std::unordered_map<std::string, std::string> entries_;  // empty line: running
  std::deque<std::string> order_;                         // answered ids, oldest first
};

}  // namespace symvirt::guest
