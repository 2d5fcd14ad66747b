#include "node-helper/protocol/operation_log.h"

#include <fmt/format.h>

namespace symvirt {

using nlohmann::json;

void OperationLog::Entry::tell_all(const json& news) {
  std::unique_lock lock(mutex);
  const auto now = listeners;
  for (const std::shared_ptr<Listener>& l : now) {
    if (!l->tell || l->left) continue;
    l->being_told = true;
    lock.unlock();
    l->tell(news);
    lock.lock();
    l->being_told = false;
    changed.notify_all();
  }
}

// What the listener refers to is its caller's, and may be gone when he has left.
void OperationLog::Entry::leave(const std::shared_ptr<Listener>& listener,
                                std::unique_lock<std::mutex>& lock) {
  listener->left = true;
  listeners.remove(listener);
  changed.wait(lock, [&] { return !listener->being_told; });
}

Result<json> OperationLog::run(const std::string& op, Deadline deadline, Progress progress,
                               const Work& work) {
  if (op.empty()) return work(progress ? progress : [](const json&) {});
  std::shared_ptr<Entry> entry;
  bool mine = false;
  auto listener = std::make_shared<Listener>();
  listener->tell = std::move(progress);
  {
    std::lock_guard lock(mutex_);
    std::shared_ptr<Entry>& found = entries_[op];
    mine = found == nullptr;
    if (mine) found = std::make_shared<Entry>();
    entry = found;
    std::lock_guard entry_lock(entry->mutex);
    entry->listeners.push_back(listener);
  }
  if (!mine) {
    std::unique_lock lock(entry->mutex);
    const bool over =
        entry->changed.wait_until(lock, deadline.time(), [&] { return entry->result.has_value(); });
    entry->leave(listener, lock);
    if (!over) return Error{Code::kDeadline, fmt::format("{}: still running", op)};
    return *entry->result;
  }
  Result<json> result = work([&](const json& news) { entry->tell_all(news); });
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
  std::unique_lock entry_lock(entry->mutex);
  entry->leave(listener, entry_lock);
  entry->result = result;
  entry->changed.notify_all();
  return result;
}

}  // namespace symvirt
