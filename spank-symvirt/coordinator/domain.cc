#include "spank-symvirt/coordinator/domain.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <map>

namespace symvirt {

using nlohmann::json;

namespace {

// A UUID that depends on the name only (FNV-1a, twice, in the form of RFC 4122 version 8), so that
// the domain is the same one to libvirt on every host it comes to.
std::string uuid_of(const std::string& vm) {
  auto hash = [&](std::uint64_t h) {
    for (unsigned char ch : vm) h = (h ^ ch) * 0x100000001b3ull;
    return h;
  };
  const std::uint64_t a = hash(0xcbf29ce484222325ull), b = hash(0x84222325cbf29ce4ull);
  return fmt::format("{:08x}-{:04x}-8{:03x}-9{:03x}-{:012x}", static_cast<std::uint32_t>(a >> 32),
                     static_cast<std::uint16_t>(a >> 16), a & 0xfff, (b >> 48) & 0xfff,
                     b & 0xffffffffffffull);
}

std::string escape(const std::string& text) {
  std::string out;
  for (char ch : text) {
    switch (ch) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '\'':
        out += "&apos;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += ch;
    }
  }
  return out;
}

Result<std::string> placeholder(const std::string& key, const ClassConfig& c, const std::string& vm,
                                int index) {
  if (key == "VM") return vm;
  if (key == "INDEX") return std::to_string(index);
  if (key == "INDEX_02X") return fmt::format("{:02x}", index);
  if (key == "UUID") return uuid_of(vm);
  if (key == "OVERLAY") return fill_pattern(c.overlay, vm, index);
  if (key.rfind("INDEX+", 0) == 0) {
    int add = 0;
    auto [end, ec] = std::from_chars(key.data() + 6, key.data() + key.size(), add);
    if (ec == std::errc() && end == key.data() + key.size()) return std::to_string(index + add);
  }
  return Error{
      Code::kInvalidArgument,
      fmt::format("{}: unknown placeholder @{}@; known are @VM@, @UUID@, @INDEX@, @INDEX+N@, "
                  "@INDEX_02X@, @OVERLAY@",
                  c.domain_template, key)};
}

bool placeholder_char(char ch) {
  return std::isupper(static_cast<unsigned char>(ch)) ||
         std::isdigit(static_cast<unsigned char>(ch)) || ch == '_' || ch == '+';
}

}  // namespace

Result<std::string> fill_domain(const ClassConfig& c, const std::string& vm, int index) {
  const std::string& xml = c.domain_xml;
  std::string out;
  for (std::size_t pos = 0; pos < xml.size();) {
    const std::size_t open = xml.find('@', pos);
    if (open == std::string::npos) return out + xml.substr(pos);
    std::size_t end = open + 1;
    while (end < xml.size() && placeholder_char(xml[end])) ++end;
    if (end == open + 1 || end == xml.size() || xml[end] != '@') {  // an ordinary @
      out += xml.substr(pos, open + 1 - pos);
      pos = open + 1;
      continue;
    }
    auto value = placeholder(xml.substr(open + 1, end - open - 1), c, vm, index);
    if (!value) return value.error();
    out += xml.substr(pos, open - pos) + escape(*value);
    pos = end + 1;
  }
  return out;
}

Result<json> overlays_of(const ClassConfig& c, const std::string& vm, int index) {
  json list = json::array();
  if (c.base_image.empty()) return list;
  auto path = fill_pattern(c.overlay, vm, index);
  if (!path) return path.error();
  list.push_back({{"path", *path}, {"base", c.base_image}, {"base_format", c.base_format}});
  return list;
}

Result<json> slots_to_reserve(const ClassConfig& c, const std::string& vm, int index) {
  json list = json::array();
  for (const SlotConfig& slot : c.slots) {
    auto mac = fill_pattern(slot.mac, vm, index);
    if (!mac) return mac.error();
    json j = {{"slot", slot.slot}, {"gres", slot.gres}, {"index", index}};
    if (!mac->empty()) j["mac"] = *mac;
    list.push_back(std::move(j));
  }
  return list;
}

Result<json> guest_slots_of(const ClassConfig& c, const std::string& vm, int index) {
  json list = json::array();
  for (const SlotConfig& slot : c.slots) {
    auto mac = fill_pattern(slot.mac, vm, index);
    if (!mac) return mac.error();
    json match = json::object();
    if (!mac->empty()) match["mac"] = *mac;
    if (!slot.match_driver.empty()) match["driver"] = slot.match_driver;
    if (!slot.match_pci.empty()) match["pci"] = slot.match_pci;
    json addresses = json::array();
    for (const std::string& pattern : slot.addresses) {
      auto address = fill_pattern(pattern, vm, index);
      if (!address) return address.error();
      addresses.push_back(*address);
    }
    json j = {{"slot", slot.slot},
              {"match", match},
              {"addresses", addresses},
              {"quiesce", slot.quiesce},
              {"soft_roce", slot.soft_roce}};
    if (slot.mtu > 0) j["mtu"] = slot.mtu;
    list.push_back(std::move(j));
  }
  return list;
}

std::string launcher_gres(const ClassConfig& c) {
  std::map<std::string, int> count;
  for (const SlotConfig& slot : c.slots) ++count[slot.gres];
  std::string text;
  for (const auto& [gres, n] : count)
    text += fmt::format("{}{}:{}", text.empty() ? "" : ",", gres, n);
  return text;
}

}  // namespace symvirt
