// Saving what is configured on an interface, and giving it to another one: the kernel's messages
// with the interface index set to 0, sent back with the new index. Not saved, since they come by
// themselves: what the kernel derives (local table, connected routes, link-local addresses), what
// routers announce, and policy rules (they name the interface, stay when it goes, and apply again
// when one of that name comes).
#include <fmt/format.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

#include <cstring>

#include "node-helper/guest/link.h"

namespace symvirt::guest {
namespace {

constexpr std::size_t kLongestMessage = 4096;
constexpr std::size_t kMostMessages = 16384;

nlmsghdr* header(std::vector<char>& bytes) { return reinterpret_cast<nlmsghdr*>(bytes.data()); }

// Calls for each place of a route message where an interface index stands.
template <typename F>
void for_each_index(nlmsghdr* h, F f) {
  for_each_attribute(h, sizeof(rtmsg), [&](const nlattr* a) {
    const int type = mnl_attr_get_type(a);
    auto* payload = static_cast<char*>(mnl_attr_get_payload(a));
    std::size_t left = mnl_attr_get_payload_len(a);
    if (type == RTA_OIF && left == sizeof(int)) f(payload, nullptr);
    if (type != RTA_MULTIPATH) return;
    while (left >= sizeof(rtnexthop)) {
      auto* hop = reinterpret_cast<rtnexthop*>(payload);
      const std::size_t length = RTNH_ALIGN(hop->rtnh_len);
      if (hop->rtnh_len < sizeof(rtnexthop) || hop->rtnh_len > left) break;
      f(reinterpret_cast<char*>(&hop->rtnh_ifindex), hop);
      if (length >= left) break;
      payload += length;
      left -= length;
    }
  });
}

bool replace_index(nlmsghdr* h, int from, int to) {
  constexpr unsigned kState = RTNH_F_DEAD | RTNH_F_LINKDOWN | RTNH_F_OFFLOAD | RTNH_F_TRAP;
  bool found = false;
  for_each_index(h, [&](char* place, rtnexthop* hop) {
    int index = 0;
    std::memcpy(&index, place, sizeof index);
    if (index != from) return;
    std::memcpy(place, &to, sizeof to);
    // The kernel reports these flags and refuses to be given them.
    if (hop) hop->rtnh_flags &= static_cast<std::uint8_t>(~kState);
    found = true;
  });
  auto* rt = static_cast<rtmsg*>(mnl_nlmsg_get_payload(h));
  rt->rtm_flags &= ~kState;
  return found;
}

bool wanted_route(const rtmsg& rt) {
  if (rt.rtm_table == RT_TABLE_LOCAL || (rt.rtm_flags & RTM_F_CLONED)) return false;
  if (rt.rtm_protocol == RTPROT_KERNEL || rt.rtm_protocol == RTPROT_RA ||
      rt.rtm_protocol == RTPROT_REDIRECT) {
    return false;
  }
  return rt.rtm_type == RTN_UNICAST || rt.rtm_type == RTN_NAT;
}

// A route through a nexthop object is written out with what the object said; the object is gone
// with the interface.
std::vector<char> without_attribute(const std::vector<char>& bytes, std::uint16_t type) {
  std::vector<char> out = bytes;
  const auto* h = reinterpret_cast<const nlmsghdr*>(bytes.data());
  const nlattr* a = find_attribute(h, sizeof(rtmsg), type);
  if (!a) return out;
  const std::ptrdiff_t at = reinterpret_cast<const char*>(a) - bytes.data();
  const std::ptrdiff_t size = std::min<std::ptrdiff_t>(
      MNL_ALIGN(a->nla_len), static_cast<std::ptrdiff_t>(bytes.size()) - at);
  out.erase(out.begin() + at, out.begin() + at + size);
  header(out)->nlmsg_len = static_cast<std::uint32_t>(out.size());
  return out;
}

Status save_addresses(Netlink& route, int index, Messages& out) {
  NlMessage message(RTM_GETADDR);
  message.extra<ifaddrmsg>();
  auto dump = route.dump(message.header(), "list of addresses");
  if (!dump) return dump.error();
  for (std::vector<char>& bytes : *dump) {
    auto* ifa = static_cast<ifaddrmsg*>(mnl_nlmsg_get_payload(header(bytes)));
    if (static_cast<int>(ifa->ifa_index) != index) continue;
    if (ifa->ifa_family == AF_INET6 && ifa->ifa_scope == RT_SCOPE_LINK) continue;
    std::uint32_t flags = ifa->ifa_flags;
    nlattr* a = const_cast<nlattr*>(find_attribute(header(bytes), sizeof(ifaddrmsg), IFA_FLAGS));
    if (a) flags = mnl_attr_get_u32(a);
    if (ifa->ifa_family == AF_INET6 && (flags & IFA_F_TEMPORARY)) continue;
    ifa->ifa_index = 0;
    // It was checked for duplicates when it was first assigned; "tentative" for a second would
    // delay every socket.
    if (ifa->ifa_family == AF_INET6) flags |= IFA_F_NODAD;
    flags &= ~static_cast<std::uint32_t>(IFA_F_TENTATIVE | IFA_F_DADFAILED);
    ifa->ifa_flags = static_cast<std::uint8_t>(flags);
    if (a) std::memcpy(mnl_attr_get_payload(a), &flags, sizeof flags);
    out.push_back(std::move(bytes));
  }
  return {};
}

Status save_routes(Netlink& route, int index, Messages& out) {
  for (const int family : {AF_INET, AF_INET6}) {
    NlMessage message(RTM_GETROUTE);
    message.extra<rtmsg>()->rtm_family = static_cast<std::uint8_t>(family);
    auto dump = route.dump(message.header(), "list of routes");
    if (!dump) return dump.error();
    for (const std::vector<char>& bytes : *dump) {
      std::vector<char> copy = without_attribute(bytes, RTA_NH_ID);
      const auto* rt = static_cast<const rtmsg*>(mnl_nlmsg_get_payload(header(copy)));
      if (wanted_route(*rt) && replace_index(header(copy), index, 0))
        out.push_back(std::move(copy));
    }
  }
  return {};
}

Status save_neighbours(Netlink& route, int index, Messages& out) {
  NlMessage message(RTM_GETNEIGH);
  message.extra<ndmsg>();
  auto dump = route.dump(message.header(), "list of neighbours");
  if (!dump) return dump.error();
  for (std::vector<char>& bytes : *dump) {
    auto* nd = static_cast<ndmsg*>(mnl_nlmsg_get_payload(header(bytes)));
    if (nd->ndm_ifindex != index || !(nd->ndm_state & NUD_PERMANENT)) continue;
    nd->ndm_ifindex = 0;
    out.push_back(std::move(bytes));
  }
  return {};
}

int send_back(Netlink& route, std::vector<char> bytes) {
  nlmsghdr* h = header(bytes);
  h->nlmsg_flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_REPLACE;
  h->nlmsg_pid = 0;
  return route.ask(h);
}

Json hex(const Messages& messages) {
  Json array = Json::array();
  for (const auto& bytes : messages) {
    std::string text;
    for (const char c : bytes) text += fmt::format("{:02x}", static_cast<unsigned char>(c));
    array.push_back(std::move(text));
  }
  return array;
}

int digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

Messages read_messages(Fields& f, const char* name, std::uint16_t type, std::size_t family_header) {
  Messages out;
  for (const std::string& text : f.texts_or_none(name, kMostMessages, 2 * kLongestMessage)) {
    std::vector<char> bytes;
    for (std::size_t i = 0; i + 1 < text.size(); i += 2) {
      const int high = digit(text[i]), low = digit(text[i + 1]);
      if (high < 0 || low < 0) break;
      bytes.push_back(static_cast<char>(high * 16 + low));
    }
    const auto* h = reinterpret_cast<const nlmsghdr*>(bytes.data());
    if (bytes.size() * 2 != text.size() || bytes.size() < mnl_nlmsg_size(family_header) ||
        h->nlmsg_len != bytes.size() || h->nlmsg_type != type) {
      f.fail(name, "holds a mangled message");
      return {};
    }
    out.push_back(std::move(bytes));
  }
  return out;
}

}  // namespace

Result<SavedLink> save_link(Netlink& route, const Link& link) {
  SavedLink saved;
  saved.name = link.name;
  saved.mtu = link.mtu;
  saved.bus = driver_of(link.name).bus;
  if (const Status s = save_addresses(route, link.index, saved.addresses); !s) return s.error();
  if (const Status s = save_routes(route, link.index, saved.routes); !s) return s.error();
  if (const Status s = save_neighbours(route, link.index, saved.neighbours); !s) return s.error();
  return saved;
}

Status restore_link(Netlink& route, const SavedLink& saved, int index) {
  std::string errors;
  const auto note = [&](const char* what, int error) {
    if (error == 0) return;
    errors += fmt::format("{}{}: {}", errors.empty() ? "" : "; ", what, std::strerror(error));
  };
  for (std::vector<char> bytes : saved.addresses) {
    static_cast<ifaddrmsg*>(mnl_nlmsg_get_payload(header(bytes)))->ifa_index =
        static_cast<std::uint32_t>(index);
    note("address", send_back(route, std::move(bytes)));
  }
  for (std::vector<char> bytes : saved.neighbours) {
    static_cast<ndmsg*>(mnl_nlmsg_get_payload(header(bytes)))->ndm_ifindex = index;
    note("neighbour", send_back(route, std::move(bytes)));
  }
  // Gateways are looked up when their route is added: what leads to them has to be there.
  for (const bool through_gateway : {false, true}) {
    for (std::vector<char> bytes : saved.routes) {
      const nlmsghdr* h = header(bytes);
      const bool gateway = find_attribute(h, sizeof(rtmsg), RTA_GATEWAY) ||
                           find_attribute(h, sizeof(rtmsg), RTA_VIA) ||
                           find_attribute(h, sizeof(rtmsg), RTA_MULTIPATH);
      if (gateway != through_gateway) continue;
      replace_index(header(bytes), 0, index);
      note("route", send_back(route, std::move(bytes)));
    }
  }
  if (errors.empty()) return {};
  return Error{Code::kInternal, fmt::format("{}: not all came back: {}", saved.name, errors)};
}

Json to_json(const SavedLink& saved) {
  return {{"name", saved.name},
          {"mtu", saved.mtu},
          {"bus", saved.bus},
          {"addresses", hex(saved.addresses)},
          {"routes", hex(saved.routes)},
          {"neighbours", hex(saved.neighbours)}};
}

Result<SavedLink> parse_saved_link(const Json& json) {
  Fields f(json, "saved interface");
  SavedLink saved;
  saved.name = f.text("name", 15);
  saved.mtu = static_cast<std::uint32_t>(f.number("mtu", 0, 65536));
  if (json.is_object() && json.value("bus", Json("")) != "") saved.bus = f.text("bus", 63);
  saved.addresses = read_messages(f, "addresses", RTM_NEWADDR, sizeof(ifaddrmsg));
  saved.routes = read_messages(f, "routes", RTM_NEWROUTE, sizeof(rtmsg));
  saved.neighbours = read_messages(f, "neighbours", RTM_NEWNEIGH, sizeof(ndmsg));
  if (!f.ok()) return f.error();
  return saved;
}

}  // namespace symvirt::guest
