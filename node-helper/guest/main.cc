// symvirt-guestd: the hypervisor's partner inside a VM node. See docs/protocols.md sections 2 and
// 3, symvirt-guestd(8).
#include <fmt/format.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <systemd/sd-daemon.h>
#include <systemd/sd-journal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>

#include "common/log.h"
#include "node-helper/guest/guestd.h"
#include "node-helper/guest/version.h"

namespace {

using namespace symvirt;
using namespace symvirt::guest;

constexpr const char* kDefaultConfig = "/etc/symvirt/guestd.toml";

int journal_priority(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return 7;
    case LogLevel::kInfo:
      return 6;
    case LogLevel::kWarning:
      return 4;
    case LogLevel::kError:
      return 3;
  }
  return 3;
}

void journal_log_sink(LogLevel level, std::string_view message) {
  sd_journal_print(journal_priority(level), "%.*s", static_cast<int>(message.size()),
                   message.data());
}

// Every task of a wide node may wait in task.enter at once.
void allow_many_files() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

int run(const Config& config) {
  ::signal(SIGPIPE, SIG_IGN);
  allow_many_files();
  auto loop = EventLoop::create();
  if (!loop) {
    log_error(loop.error().message);
    return 1;
  }
  for (const int signal : {SIGTERM, SIGINT}) {
    if (const Status s = (*loop)->exit_on(signal); !s) log_warning(s.error().message);
  }
  auto guestd = Guestd::create(**loop, config);
  if (!guestd) {
    log_error(guestd.error().message);
    return 1;
  }
  // While a guest is moved its memory is busy, and a page of ours that was pushed out would
  // lengthen the pause.
  if (mlockall(MCL_CURRENT) != 0) log_debug("mlockall failed");
  log_info(fmt::format("symvirt-guestd {} ready, socket {}", kVersion, config.socket));
  sd_notify(0, "READY=1");
  const int code = (*loop)->run();
  sd_notify(0, "STOPPING=1");
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{
      "Partner of symvirt-noded inside a VM node: brings jobs to rest, gives devices and addresses "
      "back."};
  std::string file;
  bool check_only = false, foreground = false, debug = false;
  app.set_version_flag("--version", kVersion);
  app.add_option("--config", file,
                 fmt::format("configuration file (default {}, may be missing)", kDefaultConfig));
  app.add_flag("--check-config", check_only,
               "read the configuration, say what is wrong with it, and end");
  app.add_flag("--foreground", foreground, "log to standard error, not to the journal");
  app.add_flag("--debug", debug, "log everything");
  CLI11_PARSE(app, argc, argv);

  const bool journal = !foreground && ::access("/run/systemd/journal/socket", F_OK) == 0;
  set_log_sink(journal ? journal_log_sink : stderr_log_sink);
  const bool missing_default = file.empty() && ::access(kDefaultConfig, F_OK) != 0;
  const auto config = missing_default ? Result<Config>(Config{})
                                      : load_config(file.empty() ? kDefaultConfig : file);
  if (!config) {
    std::fprintf(stderr, "symvirt-guestd: %s\n", config.error().message.c_str());
    return 2;
  }
  if (check_only) {
    std::printf("configuration is good\n");
    return 0;
  }
  set_log_threshold(debug ? LogLevel::kDebug : config->log_level);
  return run(*config);
}
