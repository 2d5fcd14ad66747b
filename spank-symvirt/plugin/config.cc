#include "spank-symvirt/plugin/config.h"

#include <charconv>
#include <string_view>

namespace symvirt::plugin {
namespace {

Error wrong(const std::string& word, const std::string& why) {
  return Error{Code::kInvalidArgument, "plugstack.conf: '" + word + "': " + why};
}

Status read_path(const std::string& word, std::string_view value, std::string& path) {
  if (value.empty() || value[0] != '/') return wrong(word, "not an absolute path");
  path = value;
  return {};
}

Status read_seconds(const std::string& word, std::string_view value, std::uint32_t& seconds) {
  constexpr std::uint32_t kLongest = 24 * 3600;
  std::uint32_t number = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
  if (error != std::errc() || end != value.data() + value.size() || number < 1 ||
      number > kLongest) {
    return wrong(word, "not a number of seconds between 1 and " + std::to_string(kLongest));
  }
  seconds = number;
  return {};
}

Status read_switch(const std::string& word, std::string_view value, bool& on) {
  if (value != "on" && value != "off") return wrong(word, "neither on nor off");
  on = value == "on";
  return {};
}

Status read_word(const std::string& word, Config& config) {
  const std::size_t equals = word.find('=');
  if (equals == std::string::npos) return wrong(word, "not of the form key=value");
  const std::string key = word.substr(0, equals);
  const std::string_view value = std::string_view(word).substr(equals + 1);
  if (key == "guestd_socket") return read_path(word, value, config.guestd_socket);
  if (key == "hooks") return read_path(word, value, config.hooks);
  if (key == "enter_timeout") return read_seconds(word, value, config.enter_timeout_s);
  if (key == "check_timeout") return read_seconds(word, value, config.check_timeout_s);
  if (key == "environment") return read_switch(word, value, config.environment);
  if (key == "network") {
    if (value.find('/') == std::string_view::npos)
      return wrong(word, "not of the form ADDRESS/BITS");
    config.network = value;
    return {};
  }
  return wrong(word,
               "unknown key; known are guestd_socket, hooks, network, enter_timeout, check_timeout "
               "and environment");
}

}  // namespace

Result<Config> parse_config(const std::vector<std::string>& words) {
  Config config;
  for (const std::string& word : words) {
    if (const Status status = read_word(word, config); !status) return status.error();
  }
  return config;
}

}  // namespace symvirt::plugin
