// symvirt-noded: the host's daemon. docs/man/symvirt-noded.8 is its manual.
#include <fmt/format.h>
#include <signal.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <CLI/CLI.hpp>

#include "common/file_limit.h"
#include "common/log.h"
#include "node-helper/host/config.h"
#include "node-helper/host/libvirt.h"
#include "node-helper/host/node.h"

namespace symvirt::host {
namespace {

int run(const NodedConfig& config, const sigset_t& signals) {
  Store store(config.state_dir);
  if (Status s = store.load(); !s) {
    log_error(fmt::format("state: {}", s.error().message));
    return 1;
  }
  // Threads of abandoned libvirt calls may still use it when main returns: it is not destroyed.
  auto* libvirt = new Libvirt(config);
  auto* node = new Node(config, *libvirt, store);
  node->reconcile();
  MungeCredentials credentials(config.munge_socket);
  RpcServer::Options options;
  options.host = config.host;
  options.address = config.address;
  options.port = config.port;
  options.trusted = [&config](uid_t uid) { return config.allows(uid); };
  options.longest_call = std::chrono::hours(24 * 365);  // a lease lasts as long as its VM
  RpcServer server(options, credentials);
  node->add_methods(server);
  if (Status s = server.start(); !s) {
    log_error(s.error().message);
    return 1;
  }
  log_info(fmt::format("symvirt-noded {} on {}: {} devices, listening on {}:{}", SYMVIRT_VERSION,
                       config.host, config.devices.size(), config.address, server.port()));
  sd_notify(0, "READY=1");
  int signal = 0;
  sigwait(&signals, &signal);
  sd_notify(0, "STOPPING=1");
  log_info(fmt::format("ending on signal {}; VMs go on", signal));
  node->stop();
  server.stop();
  return 0;
}

}  // namespace
}  // namespace symvirt::host

int main(int argc, char** argv) {
  using namespace symvirt;
  CLI::App app(
      "SymVirt's daemon on a host: starts, stops and moves VMs and their passthrough devices for "
      "symvirtd.");
  app.set_version_flag("--version", SYMVIRT_VERSION);
  std::string path = "/etc/symvirt/noded.toml";
  bool check = false, verbose = false;
  app.add_option("--config", path, "Configuration file")->capture_default_str();
  app.add_flag("--check-config", check, "Only read the configuration; exit 0 when it is good");
  app.add_flag("-v,--verbose", verbose, "Log more");
  CLI11_PARSE(app, argc, argv);

  set_log_sink(stderr_log_sink);
  if (verbose) set_log_threshold(LogLevel::kDebug);
  host::init_xml();
  auto config = host::load_config(path);
  if (!config) {
    fmt::print(stderr, "symvirt-noded: {}\n", config.error().message);
    return 2;
  }
  if (check) {
    fmt::print("{}: good: {} devices\n", path, config->devices.size());
    return 0;
  }
  // Before threads, so that all of them inherit it and sigwait is the only one that sees these.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  raise_file_limit();
  const int rc = host::run(*config, signals);
  // Static objects may be in use by threads that hang in libvirt.
  fflush(nullptr);
  _exit(rc);
}
