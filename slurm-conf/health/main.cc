// symvirt-health: HealthCheckProgram of slurm.conf. Looks at its own host and drains it when it is
// failing; symvirtd then moves the VMs away. docs/man/symvirt-health.8 is the manual.
//
//   exit 0  healthy, or not a host (VM nodes run this program, too)
//   exit 1  failing; the node is drained: by this run, an earlier one, or somebody else
//   exit 2  not known, or failing and the node could not be drained. Nothing was changed: neither a
//   broken configuration nor a
//           slurmctld that is away is a reason to take a host out of service
#include <fmt/format.h>
#include <syslog.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "slurm-conf/health/config.h"
#include "slurm-conf/health/hardware.h"
#include "slurm-conf/health/history.h"
#include "slurm-conf/health/site_checks.h"
#include "slurm-conf/programs/own_node.h"

using namespace symvirt;
using namespace symvirt::health;

namespace {

enum Exit { kHealthy = 0, kFailing = 1, kError = 2 };

// slurmd kills us after 60 s: checks, then scontrol, have to be over before.
constexpr auto kChecks = std::chrono::seconds(40);
constexpr auto kScontrol = std::chrono::seconds(6);

struct Arguments {
  std::string config = kDefaultConfig;
  bool config_given = false;
  std::string sysfs_root = "/sys";
  bool dry_run = false;
  bool json = false;
  bool forget = false;
};

struct Report {
  std::string node;
  std::vector<Failure> failures;
  std::vector<std::string> errors;
  std::string drain = "no";  // now, already, would, failed

  Exit exit_code() const {
    if (drain == "failed") return kError;
    if (!failures.empty()) return kFailing;
    return errors.empty() ? kHealthy : kError;
  }
  std::string reason() const {
    std::string text;
    for (const Failure& f : failures)
      text += (text.empty() ? "" : "; ") + f.check + ": " + f.reason;
    return text;
  }
};

Result<Config> configuration(const Arguments& arguments) {
  Result<Config> config = load_config(arguments.config);
  // A host without the file is checked by the defaults; a file that was named has to be there.
  if (!config && config.error().code == Code::kNotFound && !arguments.config_given) return Config{};
  return config;
}

void look(const Config& config, const Arguments& arguments, Report& report) {
  const Deadline deadline = Deadline::after(kChecks);
  History history(moment_now(), config.window_ms);
  if (!arguments.forget) history.load(config.state_file);
  const auto take = [&report](std::vector<Failure> found) {
    report.failures.insert(report.failures.end(), found.begin(), found.end());
  };
  take(check_memory(config.memory, config.window_ms, arguments.sysfs_root, history));
  for (const Port& port : config.ports)
    take(check_port(port, config.window_ms, arguments.sysfs_root, history));
  if (!arguments.dry_run) {
    if (Status saved = history.save(config.state_file); !saved)
      report.errors.push_back(saved.error().message);
  }
  SiteFindings site = run_site_checks(config.checks, deadline);
  take(site.failures);
  report.errors.insert(report.errors.end(), site.errors.begin(), site.errors.end());
}

void drain(const Arguments& arguments, Report& report) {
  if (report.failures.empty()) return;
  if (arguments.dry_run) {
    report.drain = "would";
    return;
  }
  const Result<Drained> drained =
      drain_node(report.node, report.reason(), Deadline::after(kScontrol));
  if (!drained) {
    report.drain = "failed";
    report.errors.push_back(
        fmt::format("{}: not drained: {}", report.node, drained.error().message));
    return;
  }
  report.drain = *drained == Drained::kNow ? "now" : "already";
}

void tell(const Arguments& arguments, const Report& report) {
  if (report.drain == "now")
    syslog(LOG_ERR, "%s drained: %s", report.node.c_str(), report.reason().c_str());
  for (const std::string& error : report.errors) syslog(LOG_WARNING, "%s", error.c_str());
  if (!arguments.json) {
    for (const Failure& f : report.failures)
      fmt::print("{}: failing: {}: {}\n", report.node, f.check, f.reason);
    if (report.drain == "now") fmt::print("{}: drained\n", report.node);
    if (report.drain == "already")
      fmt::print("{}: out of service already, left as it is\n", report.node);
    if (report.drain == "would") fmt::print("{}: would be drained\n", report.node);
    for (const std::string& error : report.errors)
      fmt::print(stderr, "symvirt-health: {}\n", error);
    if (report.failures.empty() && report.errors.empty()) fmt::print("{}: healthy\n", report.node);
    return;
  }
  nlohmann::json out = {{"schema_version", 1},
                        {"node", report.node},
                        {"healthy", report.failures.empty()},
                        {"failures", nlohmann::json::array()},
                        {"errors", report.errors},
                        {"drain", report.drain}};
  for (const Failure& f : report.failures)
    out["failures"].push_back({{"check", f.check}, {"reason", f.reason}});
  fmt::print("{}\n", out.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

int run(const Arguments& arguments) {
  Report report;
  report.node = own_node_name();
  if (!arguments.config_given && in_vm_node("/")) return kHealthy;
  const Result<Config> config = configuration(arguments);
  if (!config) {
    report.errors.push_back(config.error().message);
  } else {
    look(*config, arguments, report);
    drain(arguments, report);
  }
  tell(arguments, report);
  return report.exit_code();
}

}  // namespace

int main(int argc, char** argv) {
  // slurmd gives none; set before there are threads.
  setenv("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin", 0);
  openlog("symvirt-health", LOG_PID, LOG_DAEMON);
  try {
    Arguments arguments;
    CLI::App app(
        "Checks this host and drains its Slurm node when it is failing. Exit code: 0 healthy, 1 "
        "failing, 2 not known");
    auto* config =
        app.add_option("--config", arguments.config, "health.toml")->capture_default_str();
    app.add_option("--sysfs-root", arguments.sysfs_root, "where the kernel's counters are")
        ->capture_default_str();
    app.add_flag("--dry-run", arguments.dry_run,
                 "drain nothing and remember nothing: say what would be done");
    app.add_flag("--json", arguments.json, "one JSON object instead of lines");
    app.add_flag("--forget", arguments.forget,
                 "count errors from now on, for instance after a repair");
    try {
      app.parse(argc, argv);
    } catch (const CLI::ParseError& e) {
      return app.exit(e) == 0 ? kHealthy : kError;
    }
    arguments.config_given = config->count() > 0;
    return run(arguments);
  } catch (const std::exception& e) {
    fmt::print(stderr, "symvirt-health: {}\n", e.what());
    return kError;
  }
}
