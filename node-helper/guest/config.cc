#define TOML_HEADER_ONLY 1
#define TOML_EXCEPTIONS 0
#include "node-helper/guest/config.h"

#include <fmt/format.h>
#include <toml++/toml.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

namespace symvirt::guest {
namespace {

class Reader {
 public:
  explicit Reader(std::string file) : file_(std::move(file)) {}

  void read(const toml::table& table, Config& config) {
    for (const auto& [key, node] : table) {
      const std::string name(key.str());
      if (name == "socket")
        text(name, node, config.socket, 107);
      else if (name == "state")
        text(name, node, config.state, 4096);
      else if (name == "port")
        text(name, node, config.port, 255);
      else if (name == "port_path")
        text(name, node, config.port_path, 4096);
      else if (name == "start_command")
        command(name, node, config.start_command);
      else if (name == "log_level")
        level(name, node, config.log_level);
      else
        fail(name, node, "unknown key");
    }
  }

  const std::string& error() const { return error_; }

 private:
  void fail(const std::string& key, const toml::node& node, const std::string& why) {
    const auto at = node.source().begin;
    if (error_.empty())
      error_ = fmt::format("{}:{}:{}: {}: {}", file_, at.line, at.column, key, why);
  }

  void text(const std::string& key, const toml::node& node, std::string& out, std::size_t longest) {
    const auto value = node.value_exact<std::string>();
    if (!value || value->empty() || value->size() > longest) {
      return fail(key, node, fmt::format("must be a string of 1 to {} bytes", longest));
    }
    out = *value;
  }

  void command(const std::string& key, const toml::node& node, std::vector<std::string>& out) {
    const toml::array* array = node.as_array();
    if (!array)
      return fail(key, node,
                  "must be an array of strings: [\"/usr/bin/systemctl\", \"start\", \"slurmd\"]");
    out.clear();
    for (const toml::node& element : *array) {
      const auto value = element.value_exact<std::string>();
      if (!value || value->empty()) return fail(key, element, "must hold non-empty strings only");
      out.push_back(*value);
    }
    if (!out.empty() && out[0][0] != '/') fail(key, node, "the program must be an absolute path");
  }

  void level(const std::string& key, const toml::node& node, LogLevel& out) {
    const std::string value = node.value_exact<std::string>().value_or("");
    if (value == "debug")
      out = LogLevel::kDebug;
    else if (value == "info")
      out = LogLevel::kInfo;
    else if (value == "warning")
      out = LogLevel::kWarning;
    else if (value == "error")
      out = LogLevel::kError;
    else
      fail(key, node, "must be debug, info, warning or error");
  }

  std::string file_, error_;
};

}  // namespace

Result<Config> parse_config(std::string_view text, const std::string& file) {
  const toml::parse_result parsed = toml::parse(text, file);
  if (!parsed) {
    const auto& at = parsed.error().source().begin;
    return Error{Code::kInvalidArgument, fmt::format("{}:{}:{}: {}", file, at.line, at.column,
                                                     parsed.error().description())};
  }
  Config config;
  Reader reader(file);
  reader.read(parsed.table(), config);
  if (!reader.error().empty()) return Error{Code::kInvalidArgument, reader.error()};
  return config;
}

Result<Config> load_config(const std::string& file) {
  std::ifstream in(file);
  if (!in)
    return Error{Code::kNotFound, fmt::format("configuration: {}: {}", file, std::strerror(errno))};
  std::stringstream text;
  text << in.rdbuf();
  return parse_config(text.str(), file);
}

}  // namespace symvirt::guest
