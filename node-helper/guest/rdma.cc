#include "node-helper/guest/rdma.h"

#include <fmt/format.h>
#include <linux/netlink.h>
#include <rdma/rdma_netlink.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>

#include "node-helper/guest/netlink.h"

namespace symvirt::guest {
namespace {

namespace fs = std::filesystem;

std::string first_line(const fs::path& path) {
  std::string line;
  std::getline(std::ifstream(path), line);
  return line;
}

int number_in(const fs::path& path) {
  const std::string text = first_line(path);
  int value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

// As sysfs writes a GID: "0000:0000:0000:0000:0000:ffff:0a4e:0065".
std::string gid_text(const Address& address) {
  std::array<std::uint8_t, 16> gid = address.bytes;
  if (address.size() == 4) {
    gid.fill(0);
    gid[10] = gid[11] = 0xff;
    std::memcpy(&gid[12], address.bytes.data(), 4);
  }
  std::string text;
  for (std::size_t i = 0; i < gid.size(); i += 2)
    text += fmt::format("{}{:02x}{:02x}", i == 0 ? "" : ":", gid[i], gid[i + 1]);
  return text;
}

// Unused entries are zeros, and those of a port that goes away cannot be read.
std::set<std::string> gids_of(const fs::path& port) {
  std::set<std::string> gids;
  std::error_code ignored;
  for (fs::directory_iterator it(port / "gids", ignored), end; !ignored && it != end;
       it.increment(ignored))
    gids.insert(first_line(it->path()));
  return gids;
}

template <typename F>
void for_each_nested(const nlattr* attribute, F each) {
  const auto* a = static_cast<const nlattr*>(mnl_attr_get_payload(attribute));
  int left = mnl_attr_get_payload_len(attribute);
  for (; mnl_attr_ok(a, left); left -= MNL_ALIGN(a->nla_len), a = mnl_attr_next(a)) each(a);
}

// The number of "ctx" in one device's summary of resources.
std::uint64_t contexts_in(const nlmsghdr* message) {
  std::uint64_t contexts = 0;
  const nlattr* summary = find_attribute(message, 0, RDMA_NLDEV_ATTR_RES_SUMMARY);
  if (summary == nullptr) return 0;
  for_each_nested(summary, [&](const nlattr* entry) {
    std::string name;
    std::uint64_t count = 0;
    for_each_nested(entry, [&](const nlattr* a) {
      if (mnl_attr_get_type(a) == RDMA_NLDEV_ATTR_RES_SUMMARY_ENTRY_NAME)
        name = mnl_attr_get_str(a);
      if (mnl_attr_get_type(a) == RDMA_NLDEV_ATTR_RES_SUMMARY_ENTRY_CURR)
        count = mnl_attr_get_u64(a);
    });
    if (name == "ctx") contexts = count;
  });
  return contexts;
}

}  // namespace

RdmaPort rdma_port_of(const std::string& netdev, const std::string& sys) {
  const fs::path net = fs::path(sys) / "class/net" / netdev;
  std::error_code none;
  const fs::path function = fs::canonical(net / "device", none);
  std::error_code ignored;
  for (fs::directory_iterator it(fs::path(sys) / "class/infiniband", ignored), end;
       !ignored && it != end; it.increment(ignored)) {
    const std::string name = it->path().filename();
    if (first_line(it->path() / "parent") == netdev) return {name, 1};
    std::error_code other;
    if (none || fs::canonical(it->path() / "device", other) != function || other) continue;
    // mlx4: two interfaces and two ports on one function; dev_port tells them apart, from 0.
    const int port = number_in(net / "dev_port") + 1;
    return {name, fs::exists(it->path() / "ports" / std::to_string(port), other) ? port : 1};
  }
  return {};
}

std::string rdma_not_ready(const RdmaPort& port, const std::vector<Address>& addresses,
                           const std::string& sys) {
  const fs::path path =
      fs::path(sys) / "class/infiniband" / port.device / "ports" / std::to_string(port.port);
  const std::string what = fmt::format("{} port {}", port.device, port.port);
  const std::string state = first_line(path / "state");  // "4: ACTIVE"
  if (!state.starts_with("4:"))
    return fmt::format("{} is {}", what, state.empty() ? "gone" : "in state " + state);
  if (first_line(path / "link_layer") == "InfiniBand")
    return first_line(path / "lid") == "0x0" ? what + " has no LID: does a subnet manager run?"
                                             : std::string();
  const std::set<std::string> gids = gids_of(path);
  for (const Address& address : addresses) {
    if (!gids.contains(gid_text(address)))
      return fmt::format("{} has no GID for {} yet", what, to_text(address));
  }
  return {};
}

Result<std::uint64_t> verbs_contexts(const std::string& device) {
  auto rdma = Netlink::open(NETLINK_RDMA);
  if (!rdma) return rdma.error();
  NlMessage message(RDMA_NL_GET_TYPE(RDMA_NL_NLDEV, RDMA_NLDEV_CMD_RES_GET));
  const auto dump = rdma->dump(message.header(), "list of RDMA resources");
  if (!dump) return dump.error();
  for (const auto& bytes : *dump) {
    const auto* one = reinterpret_cast<const nlmsghdr*>(bytes.data());
    const nlattr* name = find_attribute(one, 0, RDMA_NLDEV_ATTR_DEV_NAME);
    if (name != nullptr && mnl_attr_get_str(name) == device) return contexts_in(one);
  }
  return std::uint64_t{0};
}

std::string verbs_file_of(const std::string& device, const std::string& sys) {
  std::error_code ignored;
  for (fs::directory_iterator it(fs::path(sys) / "class/infiniband_verbs", ignored), end;
       !ignored && it != end; it.increment(ignored)) {
    if (first_line(it->path() / "ibdev") == device)
      return "/dev/infiniband/" + it->path().filename().string();
  }
  return {};
}

}  // namespace symvirt::guest
