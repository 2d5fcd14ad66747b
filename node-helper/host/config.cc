#include "node-helper/host/config.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "common/toml_reader.h"
#include "node-helper/host/domain_xml.h"
#include "node-helper/host/pci_bus.h"

namespace symvirt::host {
namespace {

void read_pci_source(TableReader& r, const toml::table& table, DeviceSource& source) {
  auto normal = [&](const char* key, std::string& value, auto function, const char* wanted) {
    r.get(key, value);
    if (value.empty()) return;
    if (auto text = function(value))
      value = *text;
    else
      r.fail(*table.get(key), fmt::format("{}: {} is wanted", key, wanted));
  };
  normal("pci", source.pci, normal_pci_address, "a PCI address such as \"0000:5e:00.0\"");
  normal("model", source.model, normal_pci_model, "VENDOR:DEVICE such as \"15b3:1018\"");
  r.get("nth", source.nth);
  r.get("pf", source.pf);
  if (table.contains("vf")) r.get("vf", source.vf);
  r.get("as", source.as);
  r.get("vlan", source.vlan);
  if (table.contains("pf") != table.contains("vf"))
    r.fail(table, "[[device]]: pf and vf come together: a physical function and a number in it");
  if (table.contains("nth") && source.model.empty())
    r.fail(*table.get("nth"), "nth: counts devices of a model: key 'model' is missing");
  if (!source.as.empty() && source.as != "interface" && source.as != "hostdev")
    r.fail(*table.get("as"), "as: \"interface\" or \"hostdev\" is wanted");
  if (source.vlan > 4094) r.fail(*table.get("vlan"), "vlan: 1 to 4094 is wanted");
  if (source.vlan != 0 && (source.as == "hostdev" || (source.pf.empty() && source.as.empty())))
    r.fail(*table.get("vlan"), "vlan: only of a virtual function that is attached as interface");
}

Status read_device(const toml::table& table, const std::string& path, DeviceConfig& device) {
  TableReader r(table, path, "[[device]]");
  r.require("name", device.name);
  r.require("gres", device.gres);
  r.get("mac", device.mac);
  r.get("description", device.description);
  if (table.contains("numa_node")) r.get("numa_node", device.numa_node);
  r.get("snippets", device.snippets);
  read_pci_source(r, table, device.source);
  r.get("compatible", device.compatible);
  for (std::string& model : device.compatible) {
    if (auto text = normal_pci_model(model))
      model = *text;
    else
      r.fail(*table.get("compatible"), "compatible: VENDOR:DEVICE is wanted, such as 15b3:1018");
  }
  int ways = 0;
  for (const char* key : {"pci", "model", "pf", "snippets"}) ways += table.contains(key) ? 1 : 0;
  if (ways != 1 || (device.source.empty() && device.snippets.empty())) {
    r.fail(
        table,
        "[[device]]: must say which device it is, in one way: pci (an address), model (and nth), "
        "pf and vf, or snippets (a list of libvirt device XML)");
  }
  if (device.source.empty() && (!device.source.as.empty() || device.source.vlan != 0))
    r.fail(table, "[[device]]: as and vlan belong into the XML where snippets are given");
  for (const std::string& snippet : device.snippets) {
    const DeviceFill probe{"vm", "slot", device.name, "52:54:00:00:00:01", 0, ""};
    if (auto filled = make_device_xml(snippet, probe, alias_of("slot", 0)); !filled)
      r.fail(*table.get("snippets"), "snippets: " + filled.error().message);
  }
  return r.finish();
}

Status read_listen(const std::string& listen, NodedConfig& c) {
  const std::size_t colon = listen.rfind(':');
  const std::string port = colon == std::string::npos ? "" : listen.substr(colon + 1);
  char* end = nullptr;
  const long number = std::strtol(port.c_str(), &end, 10);
  if (port.empty() || *end != '\0' || number < 0 || number > 65535)
    return Error{Code::kInvalidArgument, "listen: ADDRESS:PORT is wanted, such as 0.0.0.0:6821"};
  c.address = listen.substr(0, colon);
  c.port = static_cast<int>(number);
  return {};
}

Status read_libvirt(const toml::table& table, const std::string& path, NodedConfig& c) {
  TableReader r(table, path, "[libvirt]");
  r.get("uri", c.libvirt_uri);
  r.get("pin", c.pin);
  r.get("memory_reserve_mib", c.memory_reserve_mib);
  r.get("shutdown_s", c.shutdown_s);
  r.get("qemu_img", c.qemu_img);
  return r.finish();
}

Status read_migration(const toml::table& table, const std::string& path, NodedConfig& c) {
  TableReader r(table, path, "[migration]");
  r.get("uri", c.migrate_uri);
  r.get("unsafe", c.migrate_unsafe);
  r.get("parallel", c.migrate_parallel);
  r.get("bandwidth_mib_s", c.migrate_mib_s);
  if (c.migrate_uri.find("{host}") == std::string::npos)
    r.fail(*table.get("uri"), "uri: must hold {host}, the name of the host a VM goes to");
  if (c.migrate_parallel > 255) r.fail(*table.get("parallel"), "parallel: at most 255");
  return r.finish();
}

Status read_top(const toml::table& table, const std::string& path, NodedConfig& c) {
  TableReader r(table, path, "the file");
  std::string listen;
  r.get("listen", listen);
  if (!listen.empty()) {
    if (Status s = read_listen(listen, c); !s) r.fail(*table.get("listen"), s.error().message);
  }
  r.get("host", c.host);
  r.get("state_dir", c.state_dir);
  r.get("munge_socket", c.munge_socket);
  r.get("allowed_uids", c.allowed_uids);
  if (const toml::table* t = r.sub_table("libvirt")) r.take(read_libvirt(*t, path, c));
  if (const toml::table* t = r.sub_table("migration")) r.take(read_migration(*t, path, c));
  for (const toml::table* t : r.sub_tables("device")) {
    DeviceConfig device;
    r.take(read_device(*t, path, device));
    if (c.find_device(device.name) != nullptr)
      r.fail(*t, fmt::format("[[device]]: the name {} is there twice", device.name));
    c.devices.push_back(std::move(device));
  }
  return r.finish();
}

}  // namespace

const DeviceConfig* NodedConfig::find_device(const std::string& name) const {
  auto it = std::find_if(devices.begin(), devices.end(),
                         [&](const DeviceConfig& d) { return d.name == name; });
  return it == devices.end() ? nullptr : &*it;
}

bool NodedConfig::allows(uid_t uid) const {
  return std::find(allowed_uids.begin(), allowed_uids.end(), uid) != allowed_uids.end();
}

Result<NodedConfig> parse_config(const std::string& text, const std::string& path) {
  toml::parse_result parsed = toml::parse(text, path);
  if (!parsed) {
    return toml_error(path, parsed.error().source(), std::string(parsed.error().description()));
  }
  NodedConfig c;
  if (Status s = read_top(parsed.table(), path, c); !s) return s.error();
  if (c.host.empty()) {
    char name[256] = "";
    if (gethostname(name, sizeof name - 1) != 0)
      return Error{Code::kInternal, fmt::format("gethostname: {}", std::strerror(errno))};
    c.host = name;
    c.host = c.host.substr(0, c.host.find('.'));
  }
  return c;
}

Result<NodedConfig> load_config(const std::string& path) {
  auto text = read_text_file(path);
  if (!text) return text.error();
  return parse_config(*text, path);
}

}  // namespace symvirt::host
