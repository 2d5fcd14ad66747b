// guest.start_node: runs start_command once per boot. slurmd is started this way and not by the
// boot itself, so that the node registers only once its device is there.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "node-helper/guest/event_loop.h"
#include "node-helper/guest/peer.h"

namespace symvirt::guest {

class NodeStart {
 public:
  // started: it ran already in this boot. changed: started() has changed.
  NodeStart(EventLoop& loop, std::vector<std::string> command, bool started,
            std::function<void()> changed);

  // {"started": true} when the command has ended with 0, or has been running for two seconds (a
  // daemon in the foreground);
  // {"started": false} when it had been started before. A failed one may be tried again.
  void start(Reply reply);
  bool started() const { return started_; }

 private:
  void ended(int wait_status);
  void answer(Result<Json> result);

  EventLoop& loop_;
  std::vector<std::string> command_;
  bool started_;
  std::function<void()> changed_;
  std::vector<Reply> waiting_;
  Handle child_, patience_;
};

}  // namespace symvirt::guest
