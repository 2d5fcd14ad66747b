// What noded must not forget: one JSON file, replaced atomically and flushed before anything that
// depends on it is done. Small (a few VMs), so it is written whole.
// Threads: any.
//
// | an observer sees             | it means                                                       |
// | state.json                   | the last state that was acknowledged to a caller | |
// state.json.new               | a write that did not end; ignored and replaced                  |
// | state.json.bad-<time>        | could not be read at a start; noded began without it |
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "common/result.h"

namespace symvirt::host {

struct Reservation {
  std::string slot, gres, device, mac, guest_address;
  bool operator==(const Reservation&) const = default;
};

struct Lease {
  std::int64_t job_id = 0;
  std::vector<int> cpus;
  std::int64_t memory_bytes = 0;
  int numa_node = -1;
  std::vector<int> gres;
  bool operator==(const Lease&) const = default;
};

struct VmRecord {
  std::vector<Reservation> slots;
  std::int64_t memory_bytes = 0;  // promised, not yet used
  std::vector<std::string> overlays;
  bool ended_here = false;  // it stopped on this host and did not move: its overlays can go
  Lease lease;              // job_id 0: none
  // Aliases the guest was asked to give up and has not; it may still do so.
  std::vector<std::string> unplugs;
  bool operator==(const VmRecord&) const = default;
  bool empty() const { return *this == VmRecord(); }
};

struct NodeState {
  std::int64_t generation = 0;
  std::map<std::string, VmRecord> vms;
  bool operator==(const NodeState&) const = default;
};

class Store {
 public:
  explicit Store(std::string directory) : directory_(std::move(directory)) {}

  Status load();
  NodeState get() const;
  std::int64_t generation() const { return generation_; }  // does not wait for a write
  VmRecord vm(const std::string& vm) const;
  // Changes and writes; on failure nothing has changed. An error that `change` returns is passed
  // on.
  Status update(const std::function<Status(NodeState&)>& change);

 private:
  Status write(const NodeState& state);
  const std::string directory_;
  mutable std::mutex mutex_;
  NodeState state_;
  std::atomic<std::int64_t> generation_{0};  // as in state_
};

std::string state_to_text(const NodeState& state);
Result<NodeState> state_from_text(const std::string& text);

}  // namespace symvirt::host
