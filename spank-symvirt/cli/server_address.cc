#include "spank-symvirt/cli/server_address.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netdb.h>
#include <pwd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <sstream>
#include <vector>

#include "common/toml_reader.h"

namespace symvirt {
namespace {

constexpr const char* kLoopback = "127.0.0.1";

bool is_ipv4(const std::string& text) {
  in_addr unused{};
  return inet_pton(AF_INET, text.c_str(), &unused) == 1;
}

std::string short_name(const std::string& full) { return full.substr(0, full.find('.')); }

std::string ask_resolver(const std::string& address) {
  sockaddr_in in{};
  in.sin_family = AF_INET;
  char name[NI_MAXHOST] = "";
  if (inet_pton(AF_INET, address.c_str(), &in.sin_addr) != 1) return "";
  if (getnameinfo(reinterpret_cast<const sockaddr*>(&in), sizeof in, name, sizeof name, nullptr, 0,
                  NI_NAMEREQD) != 0)
    return "";
  return short_name(name);
}

bool equal_ignoring_case(const std::string& a, const std::string& b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), [](char x, char y) {
           return std::tolower(static_cast<unsigned char>(x)) ==
                  std::tolower(static_cast<unsigned char>(y));
         });
}

}  // namespace

std::string short_host_name() {
  char name[256] = "";
  gethostname(name, sizeof name - 1);
  return short_name(name);
}

Result<ServerAddress> parse_server(const std::string& text, const std::string& own_name,
                                   const NameOfAddress& name_of_address) {
  auto bad = [&](const std::string& why) {
    return Error{Code::kInvalidArgument,
                 fmt::format("server \"{}\": {}; write it HOST or HOST:PORT", text, why)};
  };
  ServerAddress server;
  const std::size_t colon = text.find(':');
  server.address = text.substr(0, colon);
  if (server.address.empty()) return bad("no host name");
  if (colon != std::string::npos) {
    const char* end = text.data() + text.size();
    auto [stop, ec] = std::from_chars(text.data() + colon + 1, end, server.port);
    if (ec != std::errc() || stop != end || server.port < 1 || server.port > 65535)
      return bad("the port is a number from 1 to 65535");
  }
  if (server.address == "localhost" ||
      (is_ipv4(server.address) && server.address.rfind("127.", 0) == 0)) {
    server.host = own_name;
  } else if (is_ipv4(server.address)) {
    server.host = name_of_address(server.address);
    if (server.host.empty())
      return bad("no host name belongs to this address, and requests carry the name");
  } else {
    server.host = short_name(server.address);
  }
  return server;
}

Result<ServerAddress> server_from_config(const std::string& text, const std::string& path,
                                         const std::string& own_name) {
  toml::parse_result parsed = toml::parse(text, path);
  if (!parsed)
    return toml_error(path, parsed.error().source(), std::string(parsed.error().description()));
  const auto listen = parsed.table()["control"]["listen"].value<std::string>();
  ServerAddress server{own_name, kLoopback, kSymvirtdPort};
  if (!listen) return server;
  auto given = parse_server(*listen, own_name, [&](const std::string&) { return own_name; });
  if (!given) return given.error().with(path + ": [control] listen");
  server.port = given->port;
  if (given->address != "0.0.0.0") server.address = given->address;
  return server;
}

Result<ServerAddress> find_server(const std::string& flag, const std::string& config_path) {
  if (!flag.empty()) return parse_server(flag, short_host_name(), ask_resolver);
  if (const char* env = std::getenv("SYMVIRTD_SERVER"); env != nullptr && *env != '\0') {
    auto server = parse_server(env, short_host_name(), ask_resolver);
    if (!server) return server.error().with("SYMVIRTD_SERVER");
    return server;
  }
  if (auto text = read_text_file(config_path))
    return server_from_config(*text, config_path, short_host_name());
  return Error{Code::kInvalidArgument,
               fmt::format("where symvirtd is: not known: {} cannot be read here; use --server "
                           "HOST[:PORT] or set SYMVIRTD_SERVER",
                           config_path)};
}

std::string slurm_user_of(const std::string& slurm_conf) {
  std::string user = "root", line;
  std::stringstream lines(slurm_conf);
  while (std::getline(lines, line)) {
    line = line.substr(0, line.find('#'));
    const std::size_t equals = line.find('=');
    if (equals == std::string::npos) continue;
    auto trimmed = [](const std::string& s) {
      const std::size_t first = s.find_first_not_of(" \t\r");
      const std::size_t last = s.find_last_not_of(" \t\r");
      return first == std::string::npos ? std::string() : s.substr(first, last - first + 1);
    };
    if (!equal_ignoring_case(trimmed(line.substr(0, equals)), "SlurmUser")) continue;
    std::string value = trimmed(line.substr(equals + 1));
    value = value.substr(0, value.find('('));  // "slurm(64030)", as scontrol writes it
    if (!value.empty()) user = value;
  }
  return user;
}

std::function<bool(uid_t)> trusted_repliers() {
  std::vector<std::string> files = {"/etc/slurm/slurm.conf", "/run/slurm/conf/slurm.conf"};
  if (const char* env = std::getenv("SLURM_CONF"); env != nullptr) files.insert(files.begin(), env);
  uid_t slurm_uid = 0;
  for (const std::string& file : files) {
    auto text = read_text_file(file);
    if (!text) continue;
    const std::string user = slurm_user_of(*text);
    unsigned number = 0;
    const char* end = user.data() + user.size();
    if (auto [stop, ec] = std::from_chars(user.data(), end, number);
        ec == std::errc() && stop == end) {
      slurm_uid = number;
    } else if (const passwd* entry = getpwnam(user.c_str()); entry != nullptr) {
      slurm_uid = entry->pw_uid;
    }
    break;
  }
  return [slurm_uid](uid_t uid) { return uid == 0 || uid == slurm_uid; };
}

}  // namespace symvirt
