#include "pmix-hooks/server/guest_link.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "common/log.h"

namespace symvirt::hooks {
namespace {

constexpr std::chrono::milliseconds kFirstBackoff{100};
constexpr std::chrono::milliseconds kLongestBackoff{
    1000};  // guestd that came back gives steps 2 s to be there

Error unavailable(const std::string& path, const std::string& why) {
  return Error{Code::kUnavailable, "symvirt-guestd not reached: " + path + ": " + why};
}

}  // namespace

Result<UniqueFd> connect_guestd(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path)
    return unavailable(path, "path too long for a socket");
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return unavailable(path, std::strerror(errno));
  // On a full backlog a non-blocking AF_UNIX connect says EAGAIN: an error like the others, tried
  // again later.
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return unavailable(path, std::strerror(errno));
  }
  return fd;
}

Result<GuestReply> ask_guestd(const std::string& path, const std::string& line, Deadline deadline) {
  GuestLink link(path);
  if (!link.connect_if_due()) return unavailable(path, "no connection");
  link.send(line);
  while (link.connected()) {
    pollfd poll_fd{link.fd(), static_cast<short>(POLLIN | (link.wants_write() ? POLLOUT : 0)), 0};
    const int ready = poll(
        &poll_fd, 1, static_cast<int>(std::min<std::int64_t>(deadline.left().count(), 60'000)));
    if (ready < 0 && errno != EINTR) break;
    if (deadline.expired())
      return Error{Code::kDeadline, "symvirt-guestd did not answer in time: " + path};
    if (ready <= 0) continue;
    link.flush();
    for (GuestMessage& message : link.receive()) {
      if (auto* reply = std::get_if<GuestReply>(&message)) return std::move(*reply);
    }
  }
  return unavailable(path, "connection closed before the answer");
}

bool GuestLink::connect_if_due() {
  if (connected() || !retry_at_.expired()) return false;
  Result<UniqueFd> fd = connect_guestd(path_);
  if (!fd) {
    retry_at_ = Deadline::after(backoff_);
    backoff_ = std::min(backoff_ * 2, kLongestBackoff);
    return false;
  }
  fd_ = std::move(*fd);
  in_.clear();
  out_.clear();
  backoff_ = kFirstBackoff;
  return true;
}

void GuestLink::disconnect() {
  fd_.reset();
  retry_at_ = Deadline::after(backoff_);
}

void GuestLink::send(const std::string& line) {
  if (!connected()) return;
  out_ += line;
  out_ += '\n';
  flush();
}

void GuestLink::flush() {
  while (connected() && !out_.empty()) {
    const ssize_t written = ::send(fd_.get(), out_.data(), out_.size(), MSG_NOSIGNAL);
    if (written < 0) {
      if (errno == EINTR) continue;
      if (errno != EAGAIN) disconnect();
      return;
    }
    out_.erase(0, static_cast<std::size_t>(written));
  }
}

std::vector<GuestMessage> GuestLink::receive() {
  std::vector<GuestMessage> messages;
  while (connected()) {
    char buffer[65536];
    const ssize_t size = recv(fd_.get(), buffer, sizeof buffer, 0);
    if (size < 0 && errno == EINTR) continue;
    if (size < 0 && errno == EAGAIN) break;
    if (size <= 0 || !in_.append(std::string_view(buffer, static_cast<std::size_t>(size)))) {
      disconnect();
      break;
    }
    while (std::optional<std::string> line = in_.next()) {
      if (line->empty()) continue;
      Result<GuestMessage> message = parse_guest_line(*line);
      if (message) {
        messages.push_back(std::move(*message));
      } else {
        log_warning("line from symvirt-guestd dropped: " + message.error().message);
      }
    }
  }
  return messages;
}

}  // namespace symvirt::hooks
