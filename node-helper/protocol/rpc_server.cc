#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <system_error>

#include "common/log.h"
#include "node-helper/protocol/rpc.h"

namespace symvirt {

using nlohmann::json;

namespace {

constexpr int kMethodNotFound = -32601, kApplicationError = -32000;

std::string name_of_peer(const sockaddr_in& address) {
  char text[INET_ADDRSTRLEN] = "";
  inet_ntop(AF_INET, &address.sin_addr, text, sizeof text);
  return fmt::format("{}:{}", text, ntohs(address.sin_port));
}

}  // namespace

json error_to_json(const Error& error) {
  return {{"code", kApplicationError},
          {"message", error.message},
          {"data", {{"code", std::string(code_name(error.code))}}}};
}

Error error_from_json(const json& j) {
  Error error{Code::kInternal, "error without text"};
  if (!j.is_object()) return error;
  if (auto it = j.find("message"); it != j.end() && it->is_string())
    error.message = it->get<std::string>();
  auto data = j.find("data");
  if (data == j.end() || !data->is_object()) return error;
  if (auto it = data->find("code"); it != data->end() && it->is_string()) {
    if (auto code = code_from_name(it->get<std::string>())) error.code = *code;
  }
  return error;
}

struct RpcServer::Connection {
  using Time = Deadline::Clock::time_point;

  ConnectionRoom::Id id = 0;
  UniqueFd fd;
  std::string peer;
  FrameReader reader;
  const Time accepted = Deadline::Clock::now();
  Time frame_begun = accepted;
  Time rests_since = accepted;
  ConnectionRoom::Standing standing = ConnectionRoom::Standing::kUnknown;
  std::optional<Vouched> vouched;  // of the frame that is being read
  std::mutex send_mutex;
  bool broken = false;  // half a frame is out: nothing can follow it
};

RpcServer::~RpcServer() { stop(); }

Status RpcServer::start() {
  listener_.reset(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  stop_event_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  const int one = 1;
  setsockopt(listener_.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(options_.port));
  if (inet_pton(AF_INET, options_.address.c_str(), &address.sin_addr) != 1) {
    return Error{Code::kInvalidArgument,
                 fmt::format("listen address {}: not an IPv4 address", options_.address)};
  }
  if (bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(listener_.get(), 256) != 0) {
    return Error{Code::kUnavailable,
                 fmt::format("cannot listen on {}:{}: {}; is another one running?",
                             options_.address, options_.port, std::strerror(errno))};
  }
  socklen_t size = sizeof address;
  getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address), &size);
  port_ = ntohs(address.sin_port);
  acceptor_ = std::thread([this] { accept_loop(); });
  return {};
}

void RpcServer::stop() {
  if (!acceptor_.joinable()) return;
  const std::uint64_t one = 1;
  (void)!write(stop_event_.get(), &one, sizeof one);
  acceptor_.join();
  listener_.reset();
  std::unique_lock lock(mutex_);
  for (const auto& [id, c] : connections_) shutdown(c->fd.get(), SHUT_RDWR);
  idle_.wait(lock, [this] { return connections_.empty(); });
}

void RpcServer::accept_loop() {
  for (;;) {
    pollfd fds[] = {{listener_.get(), POLLIN, 0}, {stop_event_.get(), POLLIN, 0}};
    if (poll(fds, 2, -1) < 0 && errno != EINTR) return;
    if (fds[1].revents != 0) return;
    sockaddr_in address{};
    socklen_t size = sizeof address;
    UniqueFd fd(
        accept4(listener_.get(), reinterpret_cast<sockaddr*>(&address), &size, SOCK_CLOEXEC));
    if (!fd && (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)) {
      make_room(std::strerror(errno));
      continue;
    }
    if (!fd) continue;
    admit(std::move(fd), name_of_peer(address), address.sin_addr.s_addr);
  }
}

// The connection that could not be accepted stays in the queue, and poll says so at once: the
// longest silent stranger goes, and then we rest.
void RpcServer::make_room(const char* why) {
  {
    std::lock_guard lock(mutex_);
    refusals_.warning(
        fmt::format("cannot accept connections: {}; {} are open", why, connections_.size()));
    if (const auto id = room_.evict()) {
      if (auto it = connections_.find(*id); it != connections_.end())
        shutdown(it->second->fd.get(), SHUT_RDWR);
    }
  }
  pollfd stop{stop_event_.get(), POLLIN, 0};
  poll(&stop, 1, 100);
}

void RpcServer::admit(UniqueFd fd, const std::string& peer, std::uint32_t address) {
  const int one = 1;
  setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  setsockopt(fd.get(), SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
  // A machine that lost its power says no good-bye: silence for about a minute and a half is one.
  const int idle_s = 60, every_s = 10, times = 3;
  setsockopt(fd.get(), IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
  setsockopt(fd.get(), IPPROTO_TCP, TCP_KEEPINTVL, &every_s, sizeof every_s);
  setsockopt(fd.get(), IPPROTO_TCP, TCP_KEEPCNT, &times, sizeof times);
  const unsigned unacknowledged_ms = 30'000;
  setsockopt(fd.get(), IPPROTO_TCP, TCP_USER_TIMEOUT, &unacknowledged_ms, sizeof unacknowledged_ms);
  auto connection = std::make_shared<Connection>();
  connection->fd = std::move(fd);
  connection->peer = peer;
  std::lock_guard lock(mutex_);
  // What was evicted is still there until its thread has ended.
  const bool crowded = connections_.size() >= 2 * options_.room.all();
  connection->id = next_id_++;
  const auto admission =
      crowded ? ConnectionRoom::Admission() : room_.admit(connection->id, address);
  if (!admission.admitted)
    return refusals_.warning(fmt::format("{}: refused: too many connections", peer));
  if (admission.evicted) {
    if (auto it = connections_.find(*admission.evicted); it != connections_.end()) {
      refusals_.warning(
          fmt::format("{}: closed: says nothing, and another wants its place", it->second->peer));
      shutdown(it->second->fd.get(), SHUT_RDWR);
    }
  }
  connections_[connection->id] = connection;
  try {
    std::thread([this, connection] {
      serve(connection);
    }).detach();  // stop() waits for it through connections_
  } catch (const std::system_error& e) {
    connections_.erase(connection->id);
    room_.leave(connection->id);
    refusals_.warning(fmt::format("{}: refused: no thread: {}", peer, e.what()));
  }
}

// Until when the next bytes must be there: who has begun a frame must finish it soon, and who is
// nobody yet must say who he is.
Deadline RpcServer::patience(const Connection& c) {
  using Standing = ConnectionRoom::Standing;
  const bool unknown = c.standing == Standing::kUnknown;
  const Deadline first = Deadline::at(c.accepted + options_.first_frame);
  if (!c.reader.empty()) {
    const Deadline whole = Deadline::at(c.frame_begun + options_.frame);
    return unknown ? whole.earlier(first) : whole;
  }
  if (unknown) return first;
  return Deadline::at(c.rests_since +
                      (c.standing == Standing::kTrusted ? options_.idle : options_.idle_ordinary));
}

void RpcServer::serve(std::shared_ptr<Connection> c) {
  char buffer[65536];
  bool open = true;
  while (open) {
    const Deadline until = patience(*c);
    pollfd fd{c->fd.get(), POLLIN, 0};
    const int ready = poll(&fd, 1, static_cast<int>(until.left().count()));
    if (ready < 0 && errno == EINTR) continue;
    // Also when there are always some more bytes: they must be the last ones by then.
    if (ready < 0 || until.expired()) break;
    if (ready == 0) continue;
    const ssize_t n = recv(c->fd.get(), buffer, sizeof buffer, 0);
    if (n <= 0) break;
    if (c->reader.empty()) c->frame_begun = Deadline::Clock::now();
    c->reader.append({buffer, static_cast<std::size_t>(n)});
    open = take_frames(*c);
  }
  std::lock_guard lock(mutex_);
  room_.leave(c->id);
  connections_.erase(c->id);
  idle_.notify_all();
}

bool RpcServer::take_frames(Connection& c) {
  for (;;) {
    const auto early =
        c.vouched ? std::nullopt : c.reader.credential_of_longer(options_.small_body);
    if (early) {
      Status status = vouch(c, *early);
      if (status && !options_.trusted(c.vouched->uid))
        status = Error{Code::kPermission, fmt::format("uid {} may not send more than {} bytes",
                                                      c.vouched->uid, options_.small_body)};
      if (!status) return refuse(c, status.error());
    }
    Result<std::optional<Frame>> frame = c.reader.next();
    if (!frame) refusals_.warning(fmt::format("{}: refused: {}", c.peer, frame.error().message));
    if (!frame || !*frame) return frame.has_value();
    const bool open = answer_one(c, **frame);
    c.vouched.reset();
    c.rests_since = c.frame_begun = Deadline::Clock::now();
    if (!open) return false;
  }
}

Status RpcServer::vouch(Connection& c, const std::string& credential) {
  {
    std::lock_guard lock(mutex_);
    room_.heard(c.id);
  }
  Result<Vouched> vouched = open_credential(credentials_, credential, "req", options_.host);
  if (!vouched) return vouched.error();
  // Of users who may only read, a repetition does no harm, and a flood would push out the others.
  if (options_.trusted(vouched->uid) && !nonces_.is_new(vouched->envelope.nonce))
    return Error{Code::kPermission,
                 "request has been here before (munged may have been restarted)"};
  const auto standing = options_.trusted(vouched->uid) ? ConnectionRoom::Standing::kTrusted
                                                       : ConnectionRoom::Standing::kOrdinary;
  {
    std::lock_guard lock(mutex_);
    if (!room_.promote(c.id, standing))
      return Error{Code::kExhausted, "too many connections; close some, or try again later"};
  }
  c.standing = std::max(c.standing, standing);
  c.vouched = std::move(*vouched);
  return {};
}

// False, for its callers to return: the connection is over.
bool RpcServer::refuse(Connection& c, const Error& error) {
  refusals_.warning(fmt::format("{}: refused: {}", c.peer, error.message));
  const Envelope nobody{"rep", options_.host, std::string(32, '0'), 1};
  send(c, nobody, 1, {{"jsonrpc", "2.0"}, {"id", nullptr}, {"error", error_to_json(error)}});
  return false;
}

bool RpcServer::send(Connection& c, const Envelope& request, std::int64_t sequence,
                     const json& body) {
  const std::string text = body.dump(-1, ' ', false, json::error_handler_t::replace);
  Result<Frame> frame =
      seal(credentials_, Envelope{"rep", request.destination, request.nonce, sequence}, text);
  if (!frame) {
    log_error(fmt::format("{}: no answer: {}", c.peer, frame.error().message));
    return false;
  }
  const std::string bytes = encode_frame(*frame);
  std::lock_guard lock(c.send_mutex);
  const Deadline until = Deadline::after(options_.send);
  for (std::size_t sent = 0; !c.broken && sent < bytes.size();) {
    const ssize_t n =
        ::send(c.fd.get(), bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n > 0) sent += static_cast<std::size_t>(n);
    if (n > 0 || (n < 0 && errno == EINTR)) continue;
    if (n < 0 && errno == EAGAIN && !until.expired()) {
      pollfd fd{c.fd.get(), POLLOUT, 0};
      poll(&fd, 1, static_cast<int>(until.left().count()));
      continue;
    }
    if (n < 0 && errno == EAGAIN)
      refusals_.warning(fmt::format("{}: closed: does not read what it is answered", c.peer));
    c.broken = true;
    shutdown(c.fd.get(), SHUT_RDWR);
  }
  return !c.broken;
}

bool RpcServer::answer_one(Connection& c, const Frame& frame) {
  if (!c.vouched) {
    if (Status status = vouch(c, frame.credential); !status) return refuse(c, status.error());
  }
  const Result<json> opened = open_body(*c.vouched, frame.body);
  if (!opened) return refuse(c, opened.error());
  const Vouched caller = *c.vouched;
  const json& body = *opened;
  const json id = body.value("id", json());
  auto fail = [&](Error error) {
    return send(c, caller.envelope, 1,
                {{"jsonrpc", "2.0"}, {"id", id}, {"error", error_to_json(error)}});
  };
  auto name = body.find("method");
  if (name == body.end() || !name->is_string())
    return fail({Code::kInvalidArgument, "field method is missing"});
  const std::string method = name->get<std::string>();
  auto found = methods_.find(method);
  if (found == methods_.end())
    return fail({Code::kInvalidArgument, fmt::format("unknown method {}", method)});
  if (!found->second.allowed(caller.uid)) {
    refusals_.warning(
        fmt::format("{}: refused: uid {} may not call {}", c.peer, caller.uid, method));
    fail({Code::kPermission, fmt::format("uid {} may not call {}", caller.uid, method)});
    return false;
  }
  auto params = body.find("params");
  if (params == body.end() || !params->is_object())
    return fail({Code::kInvalidArgument, "field params is missing"});
  auto left = params->find("deadline_ms");
  if (left == params->end() || !left->is_number_integer() || left->get<std::int64_t>() <= 0) {
    return fail({Code::kInvalidArgument, "field deadline_ms is missing or not positive"});
  }
  std::int64_t sequence = 0;
  auto progress = [&](const json& news) {
    return send(c, caller.envelope, ++sequence,
                {{"jsonrpc", "2.0"}, {"method", "progress"}, {"params", news}});
  };
  RpcRequest request{method,
                     *params,
                     caller.uid,
                     c.peer,
                     Deadline::after(std::min(std::chrono::milliseconds(std::min<std::int64_t>(
                                                  left->get<std::int64_t>(), 1'000'000'000)),
                                              options_.longest_call)),
                     progress,
                     [&] {
                       pollfd fd{c.fd.get(), POLLRDHUP, 0};
                       return poll(&fd, 1, 0) > 0 &&
                              (fd.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
                     },
                     [&](const json& news) {
                       // Writable means that at least a third of the buffer is free: more than such
                       // a frame.
                       pollfd fd{c.fd.get(), POLLOUT, 0};
                       return poll(&fd, 1, 0) > 0 && (fd.revents & POLLOUT) != 0 && progress(news);
                     }};
  Result<json> result = found->second.handler(request);
  json reply = {{"jsonrpc", "2.0"}, {"id", id}};
  if (result)
    reply["result"] = std::move(*result);
  else
    reply["error"] = error_to_json(result.error());
  return send(c, caller.envelope, ++sequence, reply);
}

}  // namespace symvirt
