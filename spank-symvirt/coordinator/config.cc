#include "spank-symvirt/coordinator/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <set>
#include <sstream>

#include "common/toml_reader.h"

namespace symvirt {
namespace {

Status read_slot(const toml::table& table, const std::string& path, SlotConfig& slot) {
  TableReader r(table, path, "[[class.device]]");
  r.require("slot", slot.slot);
  r.require("gres", slot.gres);
  r.require("quiesce", slot.quiesce);
  r.get("mac", slot.mac);
  r.get("driver", slot.match_driver);
  r.get("pci", slot.match_pci);
  r.get("addresses", slot.addresses);
  r.get("mtu", slot.mtu);
  r.get("soft_roce", slot.soft_roce);
  static const std::set<std::string> kinds = {"tcp", "verbs", "idle", "immovable"};
  if (!slot.quiesce.empty() && kinds.count(slot.quiesce) == 0) {
    r.fail(table, fmt::format("quiesce = \"{}\": one of tcp, verbs, idle, immovable is wanted",
                              slot.quiesce));
  }
  std::vector<std::string> patterns = slot.addresses;
  patterns.push_back(slot.mac);
  for (const std::string& pattern : patterns) {
    if (auto filled = fill_pattern(pattern, "v1", 1); !filled)
      r.fail(table, filled.error().message);
  }
  return r.finish();
}

Status read_class(const toml::table& table, const std::string& path, ClassConfig& c) {
  TableReader r(table, path, "[[class]]");
  std::string nodes;
  r.require("name", c.name);
  r.require("nodes", nodes);
  r.require("domain_template", c.domain_template);
  r.get("memory_mib", c.memory_mib);
  r.get("cpus", c.cpus);
  r.get("base_image", c.base_image);
  r.get("base_format", c.base_format);
  r.get("overlay", c.overlay);
  for (const toml::table* device : r.sub_tables("device"))
    r.take(read_slot(*device, path, c.slots.emplace_back()));
  if (c.memory_mib == 0)
    r.fail(table, "[[class]]: memory_mib is missing: guest memory plus what QEMU needs");
  if (auto expanded = expand_nodes(nodes))
    c.nodes = *expanded;
  else
    r.fail(table, fmt::format("nodes: {}", expanded.error().message));
  if (Status status = r.finish(); !status) return status;
  auto xml = read_text_file(c.domain_template);
  if (!xml) return xml.error().with(fmt::format("{}: class {}: domain_template", path, c.name));
  c.domain_xml = *xml;
  return {};
}

Status read_policy(const toml::table& table, const std::string& path, Config& c) {
  TableReader r(table, path, "[policy]");
  r.get_seconds("quiesce_s", c.policy.quiesce_ms);
  r.get_seconds("acquire_s", c.policy.acquire_ms);
  r.get_seconds("boot_s", c.policy.boot_ms);
  r.get_seconds("step_s", c.policy.step_ms);
  r.get_seconds("park_s", c.policy.park_ms);
  r.get_seconds("fence_after_s", c.policy.fence_after_ms);
  r.get_seconds("fence_s", c.fence_ms);
  r.get_seconds("lease_s", c.policy.lease_ms);
  r.get("retry_s", c.retry_s);
  r.get("slowest_migration_bytes_s", c.migrate_floor_bytes_s);
  if (c.migrate_floor_bytes_s == 0)
    r.fail(table, "slowest_migration_bytes_s: more than 0 is wanted");
  return r.finish();
}

Status read_hosts(const toml::table& table, const std::string& path, Config& c) {
  TableReader r(table, path, "[hosts]");
  r.get("partition", c.hosts_partition);
  r.get("noded_port", c.noded_port);
  r.get("launcher", c.launcher_path);
  r.get("launcher_qos", c.launcher_qos);
  r.get("launcher_account", c.launcher_account);
  r.get("spare_reservation", c.spare_reservation);
  r.get("spares", c.spares);
  r.get("capacity", c.capacity);
  r.get("fence_command", c.fence_command);
  if (!c.fence_command.empty() && c.fence_command[0].rfind('/', 0) != 0)
    r.fail(table, "fence_command: an absolute path is wanted first");
  if (const toml::table* addresses = r.sub_table("addresses")) {
    for (const auto& [host, node] : *addresses) {
      auto text = node.value_exact<std::string>();
      if (!text)
        r.fail(node, "addresses: strings are wanted");
      else
        c.host_addresses[std::string(host.str())] = *text;
    }
  }
  return r.finish();
}

Status read_control(const toml::table& table, const std::string& path, Config& c) {
  TableReader r(table, path, "[control]");
  r.get("listen", c.listen);
  r.get("journal", c.journal);
  r.get("poll_ms", c.poll_ms);
  r.get("admin_uids", c.admin_uids);
  r.get("vm_partition", c.vm_partition);
  if (c.poll_ms < 50) r.fail(table, "poll_ms: 50 or more is wanted, slurmctld serves others too");
  return r.finish();
}

Status check_unique(const Config& c, const std::string& path) {
  std::set<std::string> names, vms;
  for (const ClassConfig& k : c.classes) {
    if (!names.insert(k.name).second)
      return Error{Code::kInvalidArgument, fmt::format("{}: class {} twice", path, k.name)};
    for (const std::string& vm : k.nodes) {
      if (!vms.insert(vm).second) {
        return Error{Code::kInvalidArgument,
                     fmt::format("{}: node {} belongs to two classes", path, vm)};
      }
    }
  }
  return {};
}

}  // namespace

Result<Config> parse_config(const std::string& text, const std::string& path) {
  toml::parse_result parsed = toml::parse(text, path);
  if (!parsed)
    return toml_error(path, parsed.error().source(), std::string(parsed.error().description()));
  Config c;
  TableReader top(parsed.table(), path, "the file");
  if (const toml::table* t = top.sub_table("control")) top.take(read_control(*t, path, c));
  if (const toml::table* t = top.sub_table("hosts")) top.take(read_hosts(*t, path, c));
  if (const toml::table* t = top.sub_table("policy")) top.take(read_policy(*t, path, c));
  for (const toml::table* t : top.sub_tables("class"))
    top.take(read_class(*t, path, c.classes.emplace_back()));
  if (Status status = top.finish(); !status) return status.error();
  if (Status status = check_unique(c, path); !status) return status.error();
  return c;
}

Result<Config> load_config(const std::string& path) {
  auto text = read_text_file(path);
  if (!text) return text.error();
  return parse_config(*text, path);
}

const ClassConfig* Config::find_class(const std::string& name) const {
  auto it = std::find_if(classes.begin(), classes.end(),
                         [&](const ClassConfig& c) { return c.name == name; });
  return it == classes.end() ? nullptr : &*it;
}

const ClassConfig* Config::class_of_vm(const std::string& vm, int* index) const {
  for (const ClassConfig& c : classes) {
    auto it = std::find(c.nodes.begin(), c.nodes.end(), vm);
    if (it == c.nodes.end()) continue;
    if (index != nullptr) *index = static_cast<int>(it - c.nodes.begin()) + 1;
    return &c;
  }
  return nullptr;
}

Result<std::string> fill_pattern(const std::string& pattern, const std::string& vm, int index) {
  std::string out;
  std::size_t pos = 0;
  while (pos < pattern.size()) {
    const std::size_t open = pattern.find('{', pos);
    if (open == std::string::npos) return out + pattern.substr(pos);
    const std::size_t close = pattern.find('}', open);
    if (close == std::string::npos) break;
    out += pattern.substr(pos, open - pos);
    std::string key = pattern.substr(open + 1, close - open - 1);
    const bool hex = key.size() > 4 && key.substr(key.size() - 4) == ":02x";
    if (hex) key.resize(key.size() - 4);
    int base = 0;
    if (const std::size_t plus = key.find('+'); plus != std::string::npos) {
      auto [end, ec] = std::from_chars(key.data(), key.data() + plus, base);
      if (ec != std::errc() || end != key.data() + plus) break;
      key.erase(0, plus + 1);
    }
    if (key == "vm" && base == 0 && !hex)
      out += vm;
    else if (key == "index")
      out += hex ? fmt::format("{:02x}", base + index) : std::to_string(base + index);
    else
      break;
    pos = close + 1;
  }
  if (pos == pattern.size()) return out;
  return Error{
      Code::kInvalidArgument,
      fmt::format("pattern \"{}\": known are {{vm}}, {{index}}, {{N+index}} and {{index:02x}}",
                  pattern)};
}

Result<std::vector<std::string>> expand_nodes(const std::string& list) {
  const Error bad{Code::kInvalidArgument,
                  fmt::format("node list \"{}\" cannot be read; write it like v[1-4,7]", list)};
  std::vector<std::string> nodes;
  std::size_t pos = 0;
  while (pos < list.size()) {
    std::size_t end = list.find_first_of(",[", pos);
    if (end == std::string::npos) end = list.size();
    const std::string prefix = list.substr(pos, end - pos);
    if (prefix.empty()) return bad;
    if (end == list.size() || list[end] == ',') {
      nodes.push_back(prefix);
      pos = end + 1;
      continue;
    }
    const std::size_t close = list.find(']', end);
    if (close == std::string::npos) return bad;
    std::stringstream ranges(list.substr(end + 1, close - end - 1));
    std::string range;
    while (std::getline(ranges, range, ',')) {
      const std::size_t dash = range.find('-');
      const std::string first = range.substr(0, dash);
      const std::string last = dash == std::string::npos ? first : range.substr(dash + 1);
      int lo = 0, hi = 0;
      auto read = [](const std::string& s, int& v) {
        auto [p, ec] = std::from_chars(s.data(), s.data() + s.size(), v);
        return ec == std::errc() && p == s.data() + s.size() && v >= 0;
      };
      if (!read(first, lo) || !read(last, hi) || hi < lo || hi - lo > 65535) return bad;
      for (int n = lo; n <= hi; ++n)
        nodes.push_back(fmt::format("{}{:0{}}", prefix, n, first.size()));
    }
    pos = close + 1;
    if (pos < list.size() && list[pos++] != ',') return bad;
  }
  if (nodes.empty()) return bad;
  return nodes;
}

}  // namespace symvirt
