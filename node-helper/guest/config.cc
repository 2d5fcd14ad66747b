#include "node-helper/guest/config.h"

#include "common/toml_reader.h"

namespace symvirt::guest {
namespace {

void check_text(TableReader& r, const toml::table& table, const char* key, const std::string& value,
                std::size_t longest) {
  if (!table.contains(key) || (!value.empty() && value.size() <= longest)) return;
  r.fail(*table.get(key), fmt::format("{}: 1 to {} bytes are wanted", key, longest));
}

void check_command(TableReader& r, const toml::table& table,
                   const std::vector<std::string>& command) {
  if (command.empty()) return;
  for (const std::string& word : command) {
    if (word.empty()) r.fail(*table.get("start_command"), "start_command: holds an empty string");
  }
  // No shell and no $PATH: what runs as root is written out.
  if (command[0].empty() || command[0][0] != '/') {
    r.fail(*table.get("start_command"), "start_command: the program must be an absolute path");
  }
}

void read_level(TableReader& r, const toml::table& table, LogLevel& level) {
  std::string name = "info";
  r.get("log_level", name);
  if (name == "debug") {
    level = LogLevel::kDebug;
  } else if (name == "info") {
    level = LogLevel::kInfo;
  } else if (name == "warning") {
    level = LogLevel::kWarning;
  } else if (name == "error") {
    level = LogLevel::kError;
  } else {
    r.fail(*table.get("log_level"), "log_level: debug, info, warning or error is wanted");
  }
}

}  // namespace

Result<Config> parse_config(std::string_view text, const std::string& file) {
  const toml::parse_result parsed = toml::parse(text, file);
  if (!parsed)
    return toml_error(file, parsed.error().source(), std::string(parsed.error().description()));
  const toml::table& table = parsed.table();
  Config config;
  TableReader r(table, file, "the file");
  r.get("socket", config.socket);
  r.get("state", config.state);
  r.get("port", config.port);
  r.get("port_path", config.port_path);
  r.get("start_command", config.start_command);
  r.get("tolerated_holders", config.tolerated_holders);
  read_level(r, table, config.log_level);
  if (const Status s = r.finish(); !s) return s.error();
  check_text(r, table, "socket", config.socket, 107);  // sockaddr_un
  check_text(r, table, "state", config.state, 4096);
  check_text(r, table, "port", config.port, 255);
  check_text(r, table, "port_path", config.port_path, 4096);
  check_command(r, table, config.start_command);
  if (const Status s = r.finish(); !s) return s.error();
  return config;
}

Result<Config> load_config(const std::string& file) {
  const auto text = read_text_file(file);
  if (!text) return text.error();
  return parse_config(*text, file);
}

}  // namespace symvirt::guest
