#include "slurm-conf/programs/local_call.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>

#include "common/json_nesting.h"
#include "common/line_buffer.h"
#include "common/unique_fd.h"

namespace symvirt {

using nlohmann::json;

namespace {

Error unavailable(const std::string& path, const char* why) {
  return Error{
      Code::kUnavailable,
      fmt::format("symvirt-guestd at {}: {}; is it running? systemctl status symvirt-guestd", path,
                  why)};
}

Result<UniqueFd> connect_to(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path)
    return Error{Code::kInvalidArgument, path + ": too long for a socket"};
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return unavailable(path, std::strerror(errno));
  if (connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0)
    return unavailable(path, std::strerror(errno));
  return fd;
}

Status wait_for(int fd, short events, const std::string& path, Deadline deadline) {
  pollfd p{fd, events, 0};
  for (;;) {
    const int ready = poll(&p, 1, static_cast<int>(deadline.left().count()));
    if (ready > 0) return {};
    if (ready == 0 || deadline.expired())
      return Error{Code::kDeadline, "symvirt-guestd at " + path + ": no answer in time"};
  }
}

Status send_line(int fd, const std::string& line, const std::string& path, Deadline deadline) {
  for (std::size_t sent = 0; sent < line.size();) {
    const ssize_t n = send(fd, line.data() + sent, line.size() - sent, MSG_NOSIGNAL);
    if (n > 0) {
      sent += static_cast<std::size_t>(n);
    } else if (errno == EAGAIN || errno == EINTR) {
      if (Status status = wait_for(fd, POLLOUT, path, deadline); !status) return status;
    } else {
      return unavailable(path, std::strerror(errno));
    }
  }
  return {};
}

// Nothing when the line is not the answer (guestd may ask, too).
std::optional<Result<json>> answer_in(const std::string& line) {
  if (nested_too_deeply(line)) return std::nullopt;
  const json j = json::parse(line, nullptr, false);
  if (!j.is_object() || j.value("id", json()) != json("1") || j.contains("method"))
    return std::nullopt;
  if (auto result = j.find("result"); result != j.end()) return Result<json>(*result);
  const json error = j.value("error", json::object());
  auto text = [&](const char* field) {
    auto it = error.is_object() ? error.find(field) : error.end();
    return it != error.end() && it->is_string() ? it->get<std::string>() : std::string();
  };
  return Result<json>(
      Error{code_from_name(text("code")).value_or(Code::kInternal), text("message")});
}

}  // namespace

Result<json> local_call(const std::string& path, const std::string& method, const json& params,
                        Deadline deadline) {
  auto fd = connect_to(path);
  if (!fd) return fd.error();
  const json request = {{"id", "1"}, {"method", method}, {"params", params}};
  if (Status status = send_line(fd->get(), request.dump() + "\n", path, deadline); !status)
    return status.error();
  LineBuffer lines;
  char buffer[16384];
  for (;;) {
    while (auto line = lines.next()) {
      if (auto answer = answer_in(*line)) return std::move(*answer);
    }
    if (Status status = wait_for(fd->get(), POLLIN, path, deadline); !status) return status.error();
    const ssize_t n = recv(fd->get(), buffer, sizeof buffer, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) continue;
    if (n <= 0) return unavailable(path, "the connection was closed before the answer");
    if (Status status = lines.append({buffer, static_cast<std::size_t>(n)}); !status)
      return status.error();
  }
}

}  // namespace symvirt
