#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>

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
  UniqueFd fd;
  std::string peer;
  FrameReader reader;
  std::mutex send_mutex;
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
  for (const auto& c : connections_) shutdown(c->fd.get(), SHUT_RDWR);
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
    if (!fd) continue;
    auto connection = std::make_shared<Connection>();
    connection->fd = std::move(fd);
    connection->peer = name_of_peer(address);
    std::lock_guard lock(mutex_);
    if (connections_.size() >= options_.max_connections) {
      log_warning(fmt::format("{}: refused: {} connections already", connection->peer,
                              connections_.size()));
      continue;
    }
    const int one = 1;
    setsockopt(connection->fd.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(connection->fd.get(), SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
    connections_.push_back(connection);
    std::thread([this, connection] {
      serve(connection);
    }).detach();  // stop() waits for it through connections_
  }
}

void RpcServer::serve(std::shared_ptr<Connection> c) {
  char buffer[65536];
  bool open = true;
  while (open) {
    pollfd fd{c->fd.get(), POLLIN, 0};
    // Somebody who has begun a frame must finish it soon; between frames the connection may rest.
    const auto wait = c->reader.empty() ? options_.idle_timeout : std::chrono::milliseconds(30'000);
    const int ready = poll(&fd, 1, static_cast<int>(wait.count()));
    if (ready == 0 || (ready < 0 && errno != EINTR)) break;
    if (ready < 0) continue;
    const ssize_t n = recv(c->fd.get(), buffer, sizeof buffer, 0);
    if (n <= 0) break;
    c->reader.append({buffer, static_cast<std::size_t>(n)});
    while (open) {
      Result<std::optional<Frame>> frame = c->reader.next();
      if (!frame) log_warning(fmt::format("{}: refused: {}", c->peer, frame.error().message));
      if (!frame || !*frame) {
        open = frame.has_value();
        break;
      }
      open = answer_one(*c, **frame);
    }
  }
  std::lock_guard lock(mutex_);
  std::erase(connections_, c);
  idle_.notify_all();
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
  for (std::size_t sent = 0; sent < bytes.size();) {
    const ssize_t n = ::send(c.fd.get(), bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    sent += static_cast<std::size_t>(n);
  }
  return true;
}

bool RpcServer::answer_one(Connection& c, const Frame& frame) {
  Result<Opened> opened = unseal(credentials_, frame, "req", options_.host);
  if (!opened) {
    log_warning(fmt::format("{}: refused: {}", c.peer, opened.error().message));
    const Envelope nobody{"rep", options_.host, std::string(32, '0'), 1};
    send(c, nobody, 1,
         {{"jsonrpc", "2.0"}, {"id", nullptr}, {"error", error_to_json(opened.error())}});
    return false;
  }
  const json& body = opened->body;
  const json id = body.value("id", json());
  auto fail = [&](Error error) {
    return send(c, opened->envelope, 1,
                {{"jsonrpc", "2.0"}, {"id", id}, {"error", error_to_json(error)}});
  };
  auto name = body.find("method");
  if (name == body.end() || !name->is_string())
    return fail({Code::kInvalidArgument, "field method is missing"});
  const std::string method = name->get<std::string>();
  auto found = methods_.find(method);
  if (found == methods_.end())
    return fail({Code::kInvalidArgument, fmt::format("unknown method {}", method)});
  if (!found->second.allowed(opened->uid)) {
    log_warning(fmt::format("{}: refused: uid {} may not call {}", c.peer, opened->uid, method));
    fail({Code::kPermission, fmt::format("uid {} may not call {}", opened->uid, method)});
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
  RpcRequest request{
      method,
      *params,
      opened->uid,
      c.peer,
      Deadline::after(std::min(std::chrono::milliseconds(std::min<std::int64_t>(
                                   left->get<std::int64_t>(), 1'000'000'000)),
                               options_.longest_call)),
      [&](const json& progress) {
        return send(c, opened->envelope, ++sequence,
                    {{"jsonrpc", "2.0"}, {"method", "progress"}, {"params", progress}});
      },
      [&] {
        pollfd fd{c.fd.get(), POLLRDHUP, 0};
        return poll(&fd, 1, 0) > 0 && (fd.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
      }};
  Result<json> result = found->second.handler(request);
  json reply = {{"jsonrpc", "2.0"}, {"id", id}};
  if (result)
    reply["result"] = std::move(*result);
  else
    reply["error"] = error_to_json(result.error());
  return send(c, opened->envelope, ++sequence, reply);
}

}  // namespace symvirt
