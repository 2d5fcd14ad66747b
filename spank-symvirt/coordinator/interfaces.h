// The narrow interfaces through which the coordinator reaches the world: hypervisor, clock, journal
// and fence (the fifth, Slurm, is in slurm_api.h). Everything else in this folder is a function of
// what comes through them, so that the tests can put every interleaving and every fault there
// (tests/unit, tests/fakes).
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "common/result.h"

namespace symvirt {

// The hosts' symvirt-noded's, by the methods of docs/protocols.md section 1.
class Hypervisor {
 public:
  using Progress = std::function<void(const nlohmann::json&)>;
  using Done = std::function<void(Result<nlohmann::json>)>;
  virtual ~Hypervisor() = default;
  // Starts a call and returns. `done` is called exactly once, `progress` any number of times before
  // it, both from any thread: they must only enqueue. No answer within `timeout`: kDeadline.
  virtual void call(const std::string& host, const std::string& method, nlohmann::json params,
                    std::chrono::milliseconds timeout, Progress progress, Done done) = 0;
};

class Clock {
 public:
  virtual ~Clock() = default;
  virtual std::int64_t now_ns() = 0;  // Unix time
};

// Append-only, durable: when append returns success, a crash gives the event back. A failed append
// stops the daemon, because what has been decided but not written must not be acted on.
class Journal {
 public:
  virtual ~Journal() = default;
  virtual Status append(const nlohmann::json& event) = 0;
  // All events in order. A record that cannot be read is set aside and reported, not fatal.
  virtual Status replay(const std::function<void(const nlohmann::json&)>& each) = 0;
  // Grows by one with every call, durably: the coordinator's generation.
  virtual Result<std::int64_t> next_generation() = 0;
};

// Makes sure that a host runs nothing any more (IPMI, Redfish, a site's script). May take long;
// runs on a thread of its own.
class Fence {
 public:
  using Done = std::function<void(Status)>;
  virtual ~Fence() = default;
  virtual bool available() const = 0;
  virtual void fence(const std::string& host, Done done) = 0;
};

}  // namespace symvirt
