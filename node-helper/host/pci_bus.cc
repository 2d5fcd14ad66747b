#include "node-helper/host/pci_bus.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace symvirt::host {
namespace {

namespace fs = std::filesystem;

std::string lower(std::string text) {
  for (char& c : text) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return text;
}

// First line of a file; "" when it cannot be read, which sysfs also does for what does not apply
// now (the carrier of an interface that is down).
std::string line_of(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

int number_of(const std::string& path, int otherwise) {
  const std::string line = line_of(path);
  char* end = nullptr;
  const long value = std::strtol(line.c_str(), &end, 10);
  return end == line.c_str() ? otherwise : static_cast<int>(value);
}

unsigned hex_of(const std::string& path) {
  return static_cast<unsigned>(std::strtoul(line_of(path).c_str(), nullptr, 16));
}

// What a link points at, last component; "" when there is none.
std::string link_name(const std::string& path) {
  std::error_code ec;
  const fs::path target = fs::read_symlink(path, ec);
  return ec ? "" : target.filename().string();
}

std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code ec;
  for (fs::directory_iterator it(folder, ec), end; !ec && it != end; it.increment(ec))
    names.push_back(it->path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

std::string id_of(const std::string& path) { return fmt::format("{:04x}", hex_of(path) & 0xffff); }

}  // namespace

std::optional<std::string> normal_pci_address(const std::string& text) {
  unsigned domain = 0, bus = 0, slot = 0, function = 0;
  int used = -1;
  if (std::sscanf(text.c_str(), "%4x:%2x:%2x.%1x%n", &domain, &bus, &slot, &function, &used) != 4 ||
      used != static_cast<int>(text.size())) {
    domain = 0;
    used = -1;
    if (std::sscanf(text.c_str(), "%2x:%2x.%1x%n", &bus, &slot, &function, &used) != 3 ||
        used != static_cast<int>(text.size()))
      return std::nullopt;
  }
  if (slot > 0x1f || function > 7) return std::nullopt;
  return fmt::format("{:04x}:{:02x}:{:02x}.{:x}", domain, bus, slot, function);
}

std::optional<std::string> normal_pci_model(const std::string& text) {
  unsigned vendor = 0, device = 0;
  int used = -1;
  if (text.size() != 9 || std::sscanf(text.c_str(), "%4x:%4x%n", &vendor, &device, &used) != 2 ||
      used != 9)
    return std::nullopt;
  return fmt::format("{:04x}:{:04x}", vendor, device);
}

std::string PciBus::device(const std::string& address) const {
  return root_ + "/sys/bus/pci/devices/" + address;
}

Result<PciLook> PciBus::look(const std::string& address) const {
  const std::string at = device(address);
  std::error_code ec;
  if (!fs::exists(at, ec)) {
    return Error{
        Code::kNotFound,
        fmt::format("the host has no PCI device {}; lspci -D shows what it has, and a card "
                    "may have got another address since a change of cards or firmware",
                    address)};
  }
  PciLook look;
  look.address = address;
  look.model = id_of(at + "/vendor") + ":" + id_of(at + "/device");
  look.pci_class = hex_of(at + "/class");
  look.driver = link_name(at + "/driver");
  look.numa_node = number_of(at + "/numa_node", -1);
  look.vfs = number_of(at + "/sriov_numvfs", 0);
  look.pf = link_name(at + "/physfn");
  look.ports = ports(address);
  if (!look.pf.empty()) {
    for (int i = 0; look.vf < 0 && i < 512; ++i) {
      const std::string name = link_name(fmt::format("{}/virtfn{}", device(look.pf), i));
      if (name.empty()) break;
      if (name == address) look.vf = i;
    }
    look.pf_has_net = !names_in(device(look.pf) + "/net").empty();
    // Only the physical function's driver knows the cable.
    if (look.ports.empty()) look.ports = ports(look.pf);
    for (PciPort& port : look.ports) port.taken.clear();
  }
  read_group(look);
  return look;
}

void PciBus::read_group(PciLook& look) const {
  const std::string group = link_name(device(look.address) + "/iommu_group");
  if (group.empty()) return;
  look.iommu_group = std::atoi(group.c_str());
  for (const std::string& other : names_in(device(look.address) + "/iommu_group/devices")) {
    // VFIO does not mind bridges: what is behind them is what counts.
    if (other == look.address || hex_of(device(other) + "/class") >> 16 == 0x06) continue;
    look.siblings.push_back({other, link_name(device(other) + "/driver")});
  }
}

PciPort PciBus::net_port(const std::string& name) const {
  const std::string at = root_ + "/sys/class/net/" + name;
  PciPort port{name, lower(line_of(at + "/operstate")), ""};
  if (const std::string master = link_name(at + "/master"); !master.empty())
    port.taken = "part of " + master;
  std::ifstream routes(root_ + "/proc/net/route");
  std::string line;
  while (std::getline(routes, line)) {
    std::istringstream fields(line);
    std::string interface, destination;
    fields >> interface >> destination;
    if (interface == name && destination == "00000000") port.taken = "the host's way out";
  }
  return port;
}

std::vector<PciPort> PciBus::ports(const std::string& address) const {
  std::vector<PciPort> ports;
  const std::string at = device(address);
  for (const std::string& name : names_in(at + "/net")) ports.push_back(net_port(name));
  for (const std::string& name : names_in(at + "/infiniband")) {
    const std::string folder = fmt::format("{}/infiniband/{}/ports", at, name);
    for (const std::string& number : names_in(folder)) {
      // "4: ACTIVE"
      std::string state = line_of(fmt::format("{}/{}/state", folder, number));
      if (const std::size_t colon = state.find(": "); colon != std::string::npos)
        state = state.substr(colon + 2);
      ports.push_back({fmt::format("{}/{}", name, number), lower(state), ""});
    }
  }
  return ports;
}

std::vector<std::string> PciBus::of_model(const std::string& model) const {
  std::vector<std::string> found;
  for (const std::string& address : names_in(root_ + "/sys/bus/pci/devices")) {
    const std::string at = device(address);
    if (id_of(at + "/vendor") + ":" + id_of(at + "/device") == model) found.push_back(address);
  }
  return found;
}

Result<std::string> PciBus::virtual_function(const std::string& pf, int vf) const {
  std::string address = normal_pci_address(pf).value_or("");
  if (address.empty() && pf.find('/') == std::string::npos) {
    for (const char* kind : {"net", "infiniband"}) {
      if (address.empty())
        address = link_name(fmt::format("{}/sys/class/{}/{}/device", root_, kind, pf));
    }
  }
  std::error_code ec;
  if (address.empty() || !fs::exists(device(address), ec)) {
    return Error{Code::kNotFound,
                 fmt::format("physical function {}: the host has neither a PCI device nor a "
                             "network interface or RDMA device of this name; is its driver loaded?",
                             pf)};
  }
  if (const std::string name = link_name(fmt::format("{}/virtfn{}", device(address), vf));
      !name.empty())
    return name;
  const int have = number_of(device(address) + "/sriov_numvfs", -1);
  if (have < 0) {
    return Error{Code::kPrecondition,
                 fmt::format("physical function {}: has no SR-IOV; switch it on in the card's and "
                             "the host's firmware, and load the card's driver",
                             pf)};
  }
  return Error{
      Code::kPrecondition,
      fmt::format("physical function {}: has {} virtual functions, of {} that it can have: "
                  "there is no number {}; at boot: echo N > "
                  "/sys/bus/pci/devices/{}/sriov_numvfs",
                  pf, have, number_of(device(address) + "/sriov_totalvfs", 0), vf, address)};
}

}  // namespace symvirt::host
