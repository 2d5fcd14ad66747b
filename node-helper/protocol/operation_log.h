// Every request that changes something has the name of its operation (`op`). The same name again
// joins what runs, or gets the recorded result: a caller that lost an answer repeats the request.
//
// Only successes are recorded. A failed operation runs again when it is asked for again: our
// operations look first at what is true, so that is safe, and a caller that asks again after a
// failure wants it done.
// Threads: any. A joining caller waits on its own thread.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>

#include "common/deadline.h"
#include "common/result.h"

namespace symvirt {

class OperationLog {
 public:
  using Progress = std::function<void(const nlohmann::json&)>;
  using Work = std::function<Result<nlohmann::json>(const Progress&)>;

  explicit OperationLog(std::size_t kept = 1024) : kept_(kept) {}

  // `progress` gets what `work` reports from now on, on the thread that does the work, without any
  // lock of ours, and not after run() returned. It should not block: `work` and the other callers
  // of this operation wait for it. kDeadline: it still runs.
  Result<nlohmann::json> run(const std::string& op, Deadline deadline, Progress progress,
                             const Work& work);

 private:
  struct Listener {
    Progress tell;
    bool being_told = false;
    bool left = false;
  };
  struct Entry {
    std::mutex mutex;
    std::condition_variable changed;
    std::optional<Result<nlohmann::json>> result;
    std::list<std::shared_ptr<Listener>> listeners;

    void tell_all(const nlohmann::json& news);
    void leave(const std::shared_ptr<Listener>& listener, std::unique_lock<std::mutex>& lock);
  };
  const std::size_t kept_;
  std::mutex mutex_;
  std::map<std::string, std::shared_ptr<Entry>> entries_;
  std::deque<std::string> ended_;  // oldest first
};

}  // namespace symvirt
