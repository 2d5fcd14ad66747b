#include "node-helper/protocol/operation_log.h"

#include <fmt/format.h>

namespace symvirt {

using nlohmann::json;

Result<json> OperationLog::run(const std::string& op, Deadline deadline, Progress progress,
                               const Work& work) {
  if (op.empty()) return work(progress ? progress : [](const json&) {});
  std::shared_ptr<Entry> entry;
  bool mine = false;
  std::list<Progress>::iterator listener;
  {
    std::lock_guard lock(mutex_);
    std::shared_ptr<Entry>& found = entries_[op];
    mine = found == nullptr;
    if (mine) found = std::make_shared<Entry>();
    entry = found;
    std::lock_guard entry_lock(entry->mutex);
    listener = entry->listeners.insert(entry->listeners.end(), std::move(progress));
  }
  if (!mine) {
    std::unique_lock lock(entry->mutex);
    const bool over =
        entry->ended.wait_until(lock, deadline.time(), [&] { return entry->result.has_value(); });
    entry->listeners.erase(listener);
    if (!over) return Error{Code::kDeadline, fmt::format("{}: still running", op)};
    return *entry->result;
  }
  Result<json> result = work([&](const json& news) {
    std::lock_guard lock(entry->mutex);
    for (const Progress& tell : entry->listeners) {
      if (tell) tell(news);
    }
  });
  std::lock_guard lock(mutex_);
  if (result) {
    ended_.push_back(op);
    if (ended_.size() > kept_) {
      entries_.erase(ended_.front());
      ended_.pop_front();
    }
  } else {
    entries_.erase(op);
  }
  std::lock_guard entry_lock(entry->mutex);
  entry->listeners.erase(listener);
  entry->result = result;
  entry->ended.notify_all();
  return result;
}

}  // namespace symvirt
