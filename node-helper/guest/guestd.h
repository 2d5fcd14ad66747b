// The daemon: which method is answered by which room.
#pragma once

#include <memory>
#include <set>
#include <string>

#include "common/log_limit.h"
#include "node-helper/guest/channel.h"
#include "node-helper/guest/clock.h"
#include "node-helper/guest/config.h"
#include "node-helper/guest/devices.h"
#include "node-helper/guest/node_start.h"
#include "node-helper/guest/server.h"
#include "node-helper/guest/state.h"
#include "node-helper/guest/transactions.h"

namespace symvirt::guest {

class Guestd {
 public:
  static Result<std::unique_ptr<Guestd>> create(EventLoop& loop, const Config& config);
  ~Guestd();

 private:
  Guestd(EventLoop& loop, const Config& config);
  Status start();
  void from_host(const Request& request, Reply reply);
  void from_guest(Peer& peer, const Server::Caller& caller, const Request& request, Reply reply);
  Json facts() const;
  Result<Json> configure(const Json& params);
  Result<Json> let_go(const Json& params);
  Json check() const;
  void plan(JobId job, Reply reply);
  void store();
  std::string hello() const;

  EventLoop& loop_;
  LogLimit refusals_{"refused requests on the socket"};
  Config config_;
  State state_;
  WallClock clock_ = WallClock::real();
  std::unique_ptr<Devices> devices_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<Transactions> transactions_;
  std::unique_ptr<NodeStart> node_start_;
  std::unique_ptr<Channel> channel_;
};

}  // namespace symvirt::guest
