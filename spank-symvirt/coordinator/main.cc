// symvirtd: the coordinator's daemon.
#include <fmt/format.h>
#include <signal.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <iostream>
#include <thread>

#include "common/file_limit.h"
#include "common/log.h"
#include "spank-symvirt/coordinator/daemon.h"
#include "spank-symvirt/coordinator/journal_sqlite.h"

using namespace symvirt;

namespace {

std::string short_host_name() {
  char name[256] = "";
  gethostname(name, sizeof name - 1);
  const std::string full = name;
  return full.substr(0, full.find('.'));
}

int complain(const Error& error) {
  std::cerr << "symvirtd: " << error.message << "\n";
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{
      "Coordinates VMs that run Slurm jobs: boots them, evacuates them from drained hosts.\n"
      "Manual: symvirtd(8), symvirtd.toml(5)"};
  std::string config_path = "/etc/symvirt/symvirtd.toml";
  bool check_only = false, verbose = false;
  app.add_option("-c,--config", config_path, "Configuration file")->capture_default_str();
  app.add_flag("--check-config", check_only,
               "Read the configuration, say what is wrong with it, and exit");
  app.add_flag("-v,--verbose", verbose, "Log details");
  app.set_version_flag("--version", SYMVIRT_VERSION);
  CLI11_PARSE(app, argc, argv);

  set_log_sink(stderr_log_sink);
  if (verbose) set_log_threshold(LogLevel::kDebug);
  auto config = load_config(config_path);
  if (!config) return complain(config.error());
  if (check_only) {
    std::cout << fmt::format("{}: good, {} VM class(es)\n", config_path, config->classes.size());
    return 0;
  }
  auto journal = SqliteJournal::open(config->journal);
  if (!journal) return complain(journal.error());

  signal(SIGPIPE, SIG_IGN);
  if (const std::size_t files = raise_file_limit(); files < kDaemonFiles)
    log_info(
        fmt::format("may open {} files; {} are better for a large cluster", files, kDaemonFiles));
  sigset_t stop_signals;
  sigemptyset(&stop_signals);
  sigaddset(&stop_signals, SIGTERM);
  sigaddset(&stop_signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &stop_signals,
                  nullptr);  // inherited by all threads; one waits for them

  Daemon::Parts parts;
  parts.config = std::move(*config);
  parts.host = short_host_name();
  parts.journal = std::move(*journal);
  parts.slurm = make_libslurm_api();
  parts.credentials = std::make_unique<MungeCredentials>();
  Daemon daemon(std::move(parts));
  std::thread([&daemon, stop_signals] {
    int signal_number = 0;
    sigwait(&stop_signals, &signal_number);
    sd_notify(0, "STOPPING=1");
    daemon.stop();
  }).detach();
  const Status status = daemon.run([] {
    log_info("ready");
    sd_notify(0, "READY=1");
  });
  if (!status) return complain(status.error());
  log_info("stopped");
  return 0;
}
