// Netlink over libmnl: ask and wait for the kernel's acknowledgement, dump, listen.
//
// Why libmnl and not libnl-route: what has to come back after a re-plug is exactly what was there,
// including attributes no library of ours knows. libnl parses a route into its own object and
// writes that object back, which keeps only what it models; with libmnl the kernel's own message is
// kept and sent back with nothing but the interface index changed. It is also 20 KB without caches,
// and guestd has to start in milliseconds in an emulated guest, and speaks sock_diag and RDMA
// netlink alike.
//
// Blocking: rtnetlink works inside sendmsg(2), so an answer is there when the call returns; waiting
// happens only behind the kernel's own lock.
#pragma once

#include <libmnl/libmnl.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/result.h"

namespace symvirt::guest {

// A netlink message in memory of its own.
class NlMessage {
 public:
  explicit NlMessage(std::uint16_t type, std::uint16_t flags = 0);
  nlmsghdr* header() { return reinterpret_cast<nlmsghdr*>(bytes_.data()); }
  template <typename T>
  T* extra() {
    return static_cast<T*>(mnl_nlmsg_put_extra_header(header(), sizeof(T)));
  }
  void put(std::uint16_t type, const void* data, std::size_t size) {
    mnl_attr_put(header(), type, size, data);
  }
  void put_u32(std::uint16_t type, std::uint32_t v) { mnl_attr_put_u32(header(), type, v); }
  void put_text(std::uint16_t type, const std::string& s) {
    mnl_attr_put_strz(header(), type, s.c_str());
  }

 private:
  std::vector<char> bytes_;
};

class Netlink {
 public:
  // bus: NETLINK_ROUTE, NETLINK_SOCK_DIAG, NETLINK_RDMA. groups: multicast groups to hear (a mask),
  // makes it non-blocking.
  static Result<Netlink> open(int bus, unsigned groups = 0);

  // errno of the kernel's answer, 0 on success.
  int ask(nlmsghdr* message);
  Status ask(nlmsghdr* message, const std::string& what);  // the same as a Status: "what: strerror"
  // Every message of the dump, whole. Started again when the kernel says it changed meanwhile.
  Result<std::vector<std::vector<char>>> dump(nlmsghdr* message, const std::string& what);
  // Calls for each message waiting (listening sockets). false: messages were lost, look at
  // everything again.
  bool receive(const std::function<void(const nlmsghdr*)>& each);

  int fd() const { return mnl_socket_get_fd(socket_.get()); }

 private:
  struct Close {
    void operator()(mnl_socket* s) const { mnl_socket_close(s); }
  };
  explicit Netlink(mnl_socket* socket) : socket_(socket) {}
  std::unique_ptr<mnl_socket, Close> socket_;
  std::uint32_t sequence_ = 0;
};

// libmnl's mnl_attr_for_each is C only (it converts from void*). offset: size of the family's
// header.
template <typename F>
void for_each_attribute(const nlmsghdr* message, std::size_t offset, F each) {
  const auto* end = static_cast<const char*>(mnl_nlmsg_get_payload_tail(message));
  const auto* a = static_cast<const nlattr*>(mnl_nlmsg_get_payload_offset(message, offset));
  for (; mnl_attr_ok(a, static_cast<int>(end - reinterpret_cast<const char*>(a)));
       a = mnl_attr_next(a))
    each(a);
}

// The attribute of that type, or nullptr. offset: size of the family's header.
const nlattr* find_attribute(const nlmsghdr* message, std::size_t offset, std::uint16_t type);

}  // namespace symvirt::guest
