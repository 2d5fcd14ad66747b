// guestd.sock: who may connect, and the steps whose plugins are connected (docs/protocols.md
// section 3).
#pragma once

#include <sys/types.h>

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "common/log_limit.h"
#include "node-helper/guest/event_loop.h"
#include "node-helper/guest/peer.h"
#include "node-helper/guest/transactions.h"

namespace symvirt::guest {

class Server : public StepCaller {
 public:
  struct Caller {  // of SO_PEERCRED: who it was when it connected
    pid_t pid = 0;
    uid_t uid = 0;
  };
  using Handler = std::function<void(Peer&, const Caller&, const Request&, Reply)>;

  // Binds and listens. A socket that a killed guestd left behind is replaced; one that is being
  // served is kAlreadyExists.
  static Result<std::unique_ptr<Server>> create(EventLoop& loop, const std::string& path,
                                                Handler handler);
  ~Server() override;

  // The connection becomes the step's: its end is the end of the registration. A second one takes
  // the first one's place.
  void add_step(Peer& peer, const StepInfo& info);

  std::vector<StepInfo> steps_of(JobId job) const override;  // 0: all
  void call(const StepKey& step, const std::string& method, const Json& params,
            Milliseconds timeout, Outcome outcome) override;
  bool alive(const StepInfo& step) const override;

 private:
  struct Connection {
    std::shared_ptr<Peer> peer;
    Caller caller;
  };
  struct Step {
    StepInfo info;
    std::weak_ptr<Peer> peer;
  };
  Server(EventLoop& loop, std::string path, Handler handler);
  void accept_all();
  void closed(Peer& peer);

  EventLoop& loop_;
  std::string path_;
  Handler handler_;
  LogLimit refusals_{"refused connections to the socket"};
  UniqueFd listener_;
  Handle watch_;
  std::map<Peer*, Connection> connections_;
  std::map<StepKey, Step> steps_;
};

}  // namespace symvirt::guest
