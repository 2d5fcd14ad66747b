#include "node-helper/guest/netlink.h"

#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <cerrno>
#include <cstring>

namespace symvirt::guest {
namespace {

constexpr std::size_t kBuffer = 64 << 10;  // route dumps come in pieces of up to 32 KiB
constexpr std::size_t kMessage = 4096;

}  // namespace

NlMessage::NlMessage(std::uint16_t type, std::uint16_t flags) : bytes_(kMessage) {
  nlmsghdr* h = mnl_nlmsg_put_header(bytes_.data());
  h->nlmsg_type = type;
  h->nlmsg_flags = NLM_F_REQUEST | flags;
}

Result<Netlink> Netlink::open(int bus, unsigned groups) {
  Netlink link(mnl_socket_open2(bus, SOCK_CLOEXEC | (groups ? SOCK_NONBLOCK : 0)));
  if (!link.socket_ || mnl_socket_bind(link.socket_.get(), groups, MNL_SOCKET_AUTOPID) < 0) {
    return Error{Code::kInternal, fmt::format("netlink: bus {}: {}", bus, std::strerror(errno))};
  }
  // The kernel always answers; should it not, an error is better than a daemon that hangs.
  const timeval limit{5, 0};
  setsockopt(link.fd(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  const int bytes = 1 << 20;
  setsockopt(link.fd(), SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
  return link;
}

int Netlink::ask(nlmsghdr* message) {
  message->nlmsg_flags |= NLM_F_ACK;
  message->nlmsg_seq = ++sequence_;
  if (mnl_socket_sendto(socket_.get(), message, message->nlmsg_len) < 0) return errno;
  std::vector<char> buffer(kBuffer);
  for (;;) {
    const ssize_t n = mnl_socket_recvfrom(socket_.get(), buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno;
    errno = 0;
    const int r = mnl_cb_run(buffer.data(), static_cast<std::size_t>(n), sequence_,
                             mnl_socket_get_portid(socket_.get()), nullptr, nullptr);
    if (r < 0 && errno == ESRCH)
      continue;  // an answer to an earlier request that ended in a time-out
    if (r < 0) return errno;
    if (r == MNL_CB_STOP) return 0;
  }
}

Status Netlink::ask(nlmsghdr* message, const std::string& what) {
  const int error = ask(message);
  if (error == 0) return {};
  return Error{Code::kInternal, fmt::format("{}: {}", what, std::strerror(error))};
}

Result<std::vector<std::vector<char>>> Netlink::dump(nlmsghdr* message, const std::string& what) {
  std::vector<char> buffer(kBuffer);
  int error = 0;
  for (int attempt = 0; attempt < 10; ++attempt) {
    std::vector<std::vector<char>> out;
    message->nlmsg_flags |= NLM_F_DUMP;
    message->nlmsg_seq = ++sequence_;
    if (mnl_socket_sendto(socket_.get(), message, message->nlmsg_len) < 0) {
      error = errno;
      break;
    }
    const auto collect = [](const nlmsghdr* h, void* data) {
      const auto* begin = reinterpret_cast<const char*>(h);
      static_cast<decltype(out)*>(data)->emplace_back(begin, begin + h->nlmsg_len);
      return MNL_CB_OK;
    };
    int r = MNL_CB_OK;
    while (r == MNL_CB_OK) {
      const ssize_t n = mnl_socket_recvfrom(socket_.get(), buffer.data(), buffer.size());
      if (n < 0 && errno == EINTR) continue;
      error = n < 0 ? errno : 0;
      if (n < 0) break;
      r = mnl_cb_run(buffer.data(), static_cast<std::size_t>(n), sequence_,
                     mnl_socket_get_portid(socket_.get()), collect, &out);
      if (r < 0) error = errno;
      if (r < 0 && error == ESRCH) r = MNL_CB_OK;  // left over from an earlier request
    }
    if (r == MNL_CB_STOP) return out;
    if (error != EINTR) break;  // EINTR of libmnl: NLM_F_DUMP_INTR, changed while dumped
  }
  return Error{Code::kInternal, fmt::format("{}: {}", what, std::strerror(error))};
}

bool Netlink::receive(const std::function<void(const nlmsghdr*)>& each) {
  std::vector<char> buffer(kBuffer);
  for (;;) {
    const ssize_t n = mnl_socket_recvfrom(socket_.get(), buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno != ENOBUFS;
    int left = static_cast<int>(n);
    const auto* h = reinterpret_cast<const nlmsghdr*>(buffer.data());
    for (; mnl_nlmsg_ok(h, left); h = mnl_nlmsg_next(h, &left)) each(h);
  }
}

const nlattr* find_attribute(const nlmsghdr* message, std::size_t offset, std::uint16_t type) {
  const nlattr* found = nullptr;
  for_each_attribute(message, offset, [&](const nlattr* a) {
    if (!found && mnl_attr_get_type(a) == type) found = a;
  });
  return found;
}

}  // namespace symvirt::guest
