#include "node-helper/host/config.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "common/toml_reader.h"
#include "node-helper/host/domain_xml.h"

namespace symvirt::host {
namespace {

Status read_device(const toml::table& table, const std::string& path, DeviceConfig& device) {
  TableReader r(table, path, "[[device]]");
  r.require("name", device.name);
  r.require("gres", device.gres);
  r.get("mac", device.mac);
  r.get("description", device.description);
  if (table.contains("numa_node")) r.get("numa_node", device.numa_node);
  r.get("snippets", device.snippets);
  if (device.snippets.empty())
    r.fail(table, "[[device]]: key 'snippets' is missing: a list of libvirt device XML");
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
