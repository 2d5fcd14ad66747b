#include "slurm-conf/health/config.h"

#include <algorithm>

#include "common/toml_reader.h"

namespace symvirt::health {
namespace {

// slurmd kills a HealthCheckProgram after 60 s.
constexpr std::int64_t kLongestCheckS = 40;
constexpr std::int64_t kLongestWindowS = 7 * 86400;

// A name becomes part of a path below /sys.
bool plain_name(const std::string& name) {
  return !name.empty() && name[0] != '.' && name.find('/') == std::string::npos;
}

void seconds_within(TableReader& reader, const toml::table& table, const char* key,
                    std::int64_t& ms, std::int64_t least, std::int64_t most) {
  std::int64_t seconds = ms / 1000;
  reader.get(key, seconds);
  if (seconds < least || seconds > most) {
    const toml::node* node = table.get(key);
    reader.fail(node != nullptr ? *node : table,
                fmt::format("{}: {} to {} seconds", key, least, most));
    return;
  }
  ms = seconds * 1000;
}

Status read_memory(const toml::table& table, const std::string& path, MemoryLimits& memory) {
  TableReader reader(table, path, "[memory]");
  reader.get("enabled", memory.enabled);
  reader.get("corrected", memory.corrected);
  reader.get("uncorrected", memory.uncorrected);
  return reader.finish();
}

Status read_checks(const toml::table& table, const std::string& path, SiteChecks& checks) {
  TableReader reader(table, path, "[checks]");
  reader.get("folder", checks.folder);
  seconds_within(reader, table, "timeout", checks.timeout_ms, 1, kLongestCheckS);
  return reader.finish();
}

Result<Port> read_port(const toml::table& table, const std::string& path) {
  TableReader reader(table, path, "[[port]]");
  Port port;
  std::string kind = "net";
  reader.get("kind", kind);
  if (kind == "infiniband") {
    port.kind = PortKind::kInfiniband;
  } else if (kind != "net") {
    reader.fail(*table.get("kind"), "kind: \"net\" or \"infiniband\" is wanted");
  }
  reader.require("device", port.device);
  if (!plain_name(port.device))
    reader.fail(table, "device: the name of an interface or adapter is wanted");
  if (port.kind == PortKind::kInfiniband) reader.get("port", port.port);
  reader.get("link_up", port.link_up);
  seconds_within(reader, table, "down_seconds", port.down_ms, 0, 86400);
  reader.get("may_be_absent", port.may_be_absent);
  reader.get("errors", port.errors);
  reader.get("link_changes", port.link_changes);
  reader.get("counters", port.counters);
  if (!std::all_of(port.counters.begin(), port.counters.end(), plain_name))
    reader.fail(*table.get("counters"), "counters: names of files are wanted");
  if (table.get("counters") == nullptr) port.counters = default_counters(port.kind);
  if (Status status = reader.finish(); !status) return status.error();
  return port;
}

}  // namespace

std::vector<std::string> default_counters(PortKind kind) {
  switch (kind) {
    case PortKind::kNet:
      return {"rx_errors", "tx_errors"};
    case PortKind::kInfiniband:
      return {"symbol_error", "port_rcv_errors", "local_link_integrity_errors",
              "excessive_buffer_overrun_errors"};
  }
  return {};
}

Result<Config> parse_config(const std::string& text, const std::string& path) {
  const toml::parse_result parsed = toml::parse(text, path);
  if (!parsed)
    return toml_error(path, parsed.error().source(), std::string(parsed.error().description()));
  const toml::table& table = parsed.table();
  Config config;
  TableReader reader(table, path, "the file");
  reader.get("state_file", config.state_file);
  seconds_within(reader, table, "window_seconds", config.window_ms, 60, kLongestWindowS);
  if (const toml::table* memory = reader.sub_table("memory"))
    reader.take(read_memory(*memory, path, config.memory));
  if (const toml::table* checks = reader.sub_table("checks"))
    reader.take(read_checks(*checks, path, config.checks));
  for (const toml::table* entry : reader.sub_tables("port")) {
    Result<Port> port = read_port(*entry, path);
    if (!port) return port.error();
    config.ports.push_back(std::move(*port));
  }
  if (Status status = reader.finish(); !status) return status.error();
  return config;
}

Result<Config> load_config(const std::string& path) {
  Result<std::string> text = read_text_file(path);
  if (!text) return text.error();
  return parse_config(*text, path);
}

}  // namespace symvirt::health
