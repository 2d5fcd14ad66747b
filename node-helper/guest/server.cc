#include "node-helper/guest/server.h"

#include <fmt/format.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "common/log.h"

namespace symvirt::guest {
namespace {

constexpr std::size_t kMostConnections = 8192;  // a task of each core waits in task.enter
constexpr std::size_t kMostOfOneUser = 32;      // users but root: they only ask node.check
constexpr std::size_t kUserLine = 64u << 10;

}  // namespace

Server::Server(EventLoop& loop, std::string path, Handler handler)
    : loop_(loop), path_(std::move(path)), handler_(std::move(handler)) {}

Server::~Server() {
  for (auto& [raw, connection] : connections_) connection.peer->close("guestd ends");
  if (listener_) ::unlink(path_.c_str());
}

Result<std::unique_ptr<Server>> Server::create(EventLoop& loop, const std::string& path,
                                               Handler handler) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) {
    return Error{Code::kInvalidArgument, fmt::format("socket: {}: path too long", path)};
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  const auto* sa = reinterpret_cast<const sockaddr*>(&address);
  const UniqueFd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (::connect(probe.get(), sa, sizeof address) == 0 || errno == EAGAIN) {
    return Error{Code::kAlreadyExists, fmt::format("socket: {}: another guestd serves it", path)};
  }
  ::unlink(path.c_str());
  std::unique_ptr<Server> server(new Server(loop, path, std::move(handler)));
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  // Everybody may connect: a user's prolog asks node.check. What only root may, is checked by
  // credential for each request.
  if (::bind(fd.get(), sa, sizeof address) != 0 || ::chmod(path.c_str(), 0666) != 0 ||
      ::listen(fd.get(), 512) != 0) {
    return Error{Code::kInternal, fmt::format("socket: {}: {}", path, std::strerror(errno))};
  }
  server->listener_ = std::move(fd);
  auto watch = loop.watch(server->listener_.get(), EPOLLIN,
                          [s = server.get()](std::uint32_t) { s->accept_all(); });
  if (!watch) return watch.error();
  server->watch_ = *watch;
  return server;
}

void Server::accept_all() {
  for (;;) {
    UniqueFd fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!fd) return;
    ucred credential{};
    socklen_t size = sizeof credential;
    if (::getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &credential, &size) != 0) continue;
    const Caller caller{credential.pid, credential.uid};
    const auto of_user =
        std::count_if(connections_.begin(), connections_.end(),
                      [&](const auto& c) { return c.second.caller.uid == caller.uid; });
    if (connections_.size() >= kMostConnections ||
        (caller.uid != 0 && static_cast<std::size_t>(of_user) >= kMostOfOneUser)) {
      refusals_.warning(fmt::format("socket: too many connections of uid {}: refused", caller.uid));
      continue;
    }
    Peer::Options options;
    if (caller.uid != 0) options = {kUserLine, kUserLine};
    Peer::Handlers handlers{[this, caller](Peer& peer, Request request, Reply reply) {
                              handler_(peer, caller, request, std::move(reply));
                            },
                            [this](Peer& peer, const std::string&) { closed(peer); }};
    auto peer = Peer::create(loop_, std::move(fd), options, std::move(handlers));
    if (peer) connections_[peer->get()] = {*peer, caller};
  }
}

void Server::closed(Peer& peer) {
  std::erase_if(steps_, [&](const auto& entry) {
    const auto owner = entry.second.peer.lock();
    const bool ended = !owner || owner.get() == &peer;
    if (ended)
      log_info(fmt::format("job {} step {}: plugin gone", entry.first.job, entry.first.step));
    return ended;
  });
  connections_.erase(&peer);
}

void Server::add_step(Peer& peer, const StepInfo& info) {
  log_info(fmt::format("job {} step {}: plugin registered, {} task(s), uid {}", info.key.job,
                       info.key.step, info.tasks, info.uid));
  steps_[info.key] = {info, peer.weak_from_this()};
}

std::vector<StepInfo> Server::steps_of(JobId job) const {
  std::vector<StepInfo> out;
  for (const auto& [key, step] : steps_) {
    if (job == 0 || key.job == job) out.push_back(step.info);
  }
  return out;
}

void Server::call(const StepKey& key, const std::string& method, const Json& params,
                  Milliseconds timeout, Outcome outcome) {
  const auto it = steps_.find(key);
  const auto peer = it == steps_.end() ? nullptr : it->second.peer.lock();
  if (!peer)
    return outcome(
        Error{Code::kNotFound, fmt::format("job {} step {}: not registered", key.job, key.step)});
  peer->call(method, params, timeout, std::move(outcome));
}

bool Server::alive(const StepInfo& step) const {
  return ::kill(step.pid, 0) == 0 || errno == EPERM;
}

}  // namespace symvirt::guest
