// Who may read events at the same time: each reader costs a thread, and each event a credential, so
// users who may only read do not get as many as they ask for. Threads: the owner's lock.
#pragma once

#include <sys/types.h>

#include <map>
#include <string>

#include "common/result.h"

namespace symvirt {

class EventReaders {
 public:
  struct Limits {
    int of_one_user = 4, of_all_users = 64;
  };
  EventReaders() = default;
  explicit EventReaders(Limits limits) : limits_(limits) {}

  // Admins are not counted: their connections are (RpcServer).
  Status enter(uid_t uid, bool admin) {
    if (admin) return {};
    auto it = readers_.find(uid);
    const int mine = it == readers_.end() ? 0 : it->second;
    if (mine >= limits_.of_one_user || all_ >= limits_.of_all_users) {
      return Error{Code::kExhausted, "events: " + std::to_string(mine) + " readers of uid " +
                                         std::to_string(uid) + " and " + std::to_string(all_) +
                                         " in all; end some, or try again later"};
    }
    ++readers_[uid];
    ++all_;
    return {};
  }
  void leave(uid_t uid, bool admin) {
    auto it = readers_.find(uid);
    if (admin || it == readers_.end()) return;
    --all_;
    if (--it->second == 0) readers_.erase(it);
  }

 private:
  Limits limits_;
  std::map<uid_t, int> readers_;
  int all_ = 0;
};

}  // namespace symvirt
