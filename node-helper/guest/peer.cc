#include "node-helper/guest/peer.h"

#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "common/log_limit.h"

namespace symvirt::guest {

Reply once(Reply reply) {
  auto shared = std::make_shared<Reply>(std::move(reply));
  return [shared](Result<Json> result) {
    if (!*shared) return;
    const Reply first = std::exchange(*shared, nullptr);
    first(std::move(result));
  };
}

Peer::Peer(EventLoop& loop, UniqueFd fd, Options options, Handlers handlers)
    : loop_(loop),
      fd_(std::move(fd)),
      options_(options),
      handlers_(std::move(handlers)),
      lines_(options.max_line) {}

Peer::~Peer() = default;

Result<std::shared_ptr<Peer>> Peer::create(EventLoop& loop, UniqueFd fd, Options options,
                                           Handlers handlers) {
  std::shared_ptr<Peer> peer(new Peer(loop, std::move(fd), options, std::move(handlers)));
  auto watch = loop.watch(peer->fd_.get(), EPOLLIN, [p = peer.get()](std::uint32_t events) {
    const auto keep = p->shared_from_this();
    p->on_ready(events);
  });
  if (!watch) return watch.error();
  peer->watch_ = *watch;
  return peer;
}

void Peer::call(const std::string& method, const Json& params, Milliseconds timeout,
                Outcome outcome) {
  if (!fd_) {
    outcome(Error{Code::kUnavailable, fmt::format("{}: connection closed", method)});
    return;
  }
  const std::string id = fmt::format("g{}", next_id_++);
  Pending& pending = pending_[id];
  pending.outcome = std::move(outcome);
  pending.timer = loop_.after(timeout, [this, id, method, timeout] {
    auto node = pending_.extract(id);
    if (node.empty()) return;
    node.mapped().outcome(
        Error{Code::kDeadline, fmt::format("{}: no answer within {} ms", method, timeout.count())});
  });
  send(format_request(id, method, params));
}

void Peer::on_ready(std::uint32_t events) {
  if (events & EPOLLOUT) flush();
  if (fd_ && (events & (EPOLLIN | EPOLLHUP | EPOLLERR))) read_some();
}

bool Peer::read_some() {
  std::array<char, 65536> buffer;
  const ssize_t n = ::read(fd_.get(), buffer.data(), buffer.size());
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return true;
  if (n <= 0) {
    end(n == 0 ? "closed by the peer" : std::strerror(errno));
    return false;
  }
  if (const Status s = lines_.append({buffer.data(), static_cast<std::size_t>(n)}); !s) {
    end(s.error().message);
    return false;
  }
  while (fd_) {
    const auto line = lines_.next();
    if (!line) break;
    if (!line->empty()) on_line(*line);
  }
  return static_cast<bool>(fd_);
}

void Peer::on_line(const std::string& line) {
  Result<Message> message = parse_message(line);
  if (!message) {
    end(message.error().message);
    return;
  }
  if (Request* request = std::get_if<Request>(&*message)) {
    std::string id = request->id;
    Reply reply = [weak = weak_from_this(), id](Result<Json> result) {
      if (const auto self = weak.lock()) self->send(format_answer(id, result));
    };
    if (handlers_.request) handlers_.request(*this, std::move(*request), once(std::move(reply)));
  } else if (Answer* answer = std::get_if<Answer>(&*message)) {
    auto node = pending_.extract(answer->id);
    if (!node.empty())
      node.mapped().outcome(std::move(answer->result));  // else: after its deadline
  }
}

void Peer::send(std::string line) {
  if (!fd_) return;
  if (out_.size() + line.size() > options_.max_queued) {
    // Not from here: the caller may be iterating over peers.
    static LogLimit limit("peers that do not read");
    limit.warning(
        fmt::format("peer does not read its answers ({} bytes waiting): closing", out_.size()));
    ::shutdown(fd_.get(), SHUT_RDWR);
    return;
  }
  const bool idle = out_.empty();
  out_ += line;
  if (idle) flush();
}

void Peer::flush() {
  while (fd_ && !out_.empty()) {
    const ssize_t n = ::send(fd_.get(), out_.data(), out_.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0)
      break;  // EAGAIN: later. An error shows again as the end of the connection when reading
    out_.erase(0, static_cast<std::size_t>(n));
  }
  set_events(watch_, out_.empty() ? EPOLLIN : EPOLLIN | EPOLLOUT);
}

void Peer::close(const std::string& why) {
  handlers_.closed = nullptr;
  end(why);
}

void Peer::end(const std::string& why) {
  if (!fd_) return;
  watch_.reset();
  fd_.reset();
  const auto keep = shared_from_this();
  auto pending = std::exchange(pending_, {});
  for (auto& [id, call] : pending) {
    call.outcome(Error{Code::kUnavailable, "connection lost: " + why});
  }
  if (const auto closed = std::exchange(handlers_.closed, nullptr)) closed(*this, why);
}

}  // namespace symvirt::guest
