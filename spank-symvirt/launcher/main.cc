// symvirt-launcher: the batch script of a launcher job (symvirt-launcher(8)). Its lines go to the
// job's output file on the host. scancel's signals end it; the VM does not mind.
#include <fmt/format.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdlib>
#include <iostream>
#include <thread>

#include "common/log.h"
#include "spank-symvirt/launcher/launcher.h"

using namespace symvirt;
using nlohmann::json;

namespace {

constexpr auto kLeaseCall = std::chrono::hours(1);  // then it is simply opened again

// With task/affinity or task/cgroup these are the job's; without them, all of the host's.
std::vector<int> own_cpus() {
  std::vector<int> cpus;
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return cpus;
  for (int i = 0; i < CPU_SETSIZE; ++i) {
    if (CPU_ISSET(i, &set)) cpus.push_back(i);
  }
  return cpus;
}

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : "";
}

std::string short_host_name() {
  char name[256] = "";
  gethostname(name, sizeof name - 1);
  const std::string full = name;
  return full.substr(0, full.find('.'));
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{
      "Runs as a Slurm job on a host and holds its resources for one VM. Submitted by symvirtd; "
      "symvirt-launcher(8)"};
  std::string vm, address = "127.0.0.1";
  int port = 6821;
  std::uint32_t job = 0;
  app.add_option("--vm", vm, "VM to hold the resources for")->required();
  app.add_option("--noded", address, "Address of symvirt-noded")->capture_default_str();
  app.add_option("--port", port, "Its port")->capture_default_str();
  app.add_option("--job", job, "Slurm job")->envname("SLURM_JOB_ID")->required();
  app.set_version_flag("--version", SYMVIRT_VERSION);
  CLI11_PARSE(app, argc, argv);
  set_log_sink(stderr_log_sink);
  signal(SIGPIPE, SIG_IGN);
  log_info(fmt::format("{}: holding job {} on {}", vm, job, short_host_name()));

  MungeCredentials credentials;
  RpcClient::Options options;
  options.host = short_host_name();
  options.address = address;
  options.port = port;
  RpcClient client(options, credentials);
  LauncherWorld world;
  world.open = [&](const json& lease, const RpcProgress& progress) {
    return client.call("lease.open", lease, Deadline::after(kLeaseCall), progress);
  };
  world.sleep = [](std::chrono::milliseconds time) { std::this_thread::sleep_for(time); };
  auto reason = hold(lease_of(vm, job, own_cpus(), variable), world);
  if (!reason) {
    log_error(reason.error().message);
    return 1;
  }
  log_info(fmt::format("{}: {}", vm, *reason));
  return 0;
}
