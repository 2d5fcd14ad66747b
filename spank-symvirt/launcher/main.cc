// symvirt-launcher: the batch script of a launcher job. It holds what Slurm gave it (CPUs, memory,
// device) for one VM, tells symvirt-noded of it, and ends when the VM has left this host. It is not
// QEMU's parent: ending it does not end the VM.
#include <fmt/format.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <iostream>
#include <thread>

#include "common/log.h"
#include "node-helper/protocol/rpc.h"

using namespace symvirt;
using nlohmann::json;

namespace {

constexpr auto kLeaseCall = std::chrono::hours(1);  // then it is simply opened again
constexpr auto kFirstPause = std::chrono::milliseconds(200);
constexpr auto kLongestPause = std::chrono::milliseconds(10'000);

std::int64_t number_from_environment(const char* name) {
  const char* text = std::getenv(name);
  std::int64_t value = 0;
  if (text != nullptr) std::from_chars(text, text + std::strlen(text), value);
  return value;
}

std::vector<int> own_cpus() {
  std::vector<int> cpus;
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return cpus;
  for (int i = 0; i < CPU_SETSIZE; ++i) {
    if (CPU_ISSET(i, &set)) cpus.push_back(i);
  }
  return cpus;
}

std::string short_host_name() {
  char name[256] = "";
  gethostname(name, sizeof name - 1);
  const std::string full = name;
  return full.substr(0, full.find('.'));
}

json lease_of(const std::string& vm, std::uint32_t job) {
  const std::int64_t mib = number_from_environment("SLURM_MEM_PER_NODE");
  return {{"vm", vm},           {"job_id", job},
          {"cpus", own_cpus()}, {"memory_bytes", mib << 20},
          {"numa_node", -1},    {"gres", json::array()}};
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{
      "Runs as a Slurm job on a host and holds its resources for one VM. Submitted by symvirtd; "
      "symvirt-launcher(8)"};
  std::string vm, address = "127.0.0.1";
  int port = 6821;
  std::uint32_t job = static_cast<std::uint32_t>(number_from_environment("SLURM_JOB_ID"));
  app.add_option("--vm", vm, "VM to hold the resources for")->required();
  app.add_option("--noded", address, "Address of symvirt-noded")->capture_default_str();
  app.add_option("--port", port, "Its port")->capture_default_str();
  app.add_option("--job", job, "Slurm job; default $SLURM_JOB_ID");
  app.set_version_flag("--version", SYMVIRT_VERSION);
  CLI11_PARSE(app, argc, argv);
  set_log_sink(stderr_log_sink);
  signal(SIGPIPE, SIG_IGN);
  if (job == 0) {
    std::cerr << "symvirt-launcher: no job: run it as a Slurm job, or give --job\n";
    return 1;
  }
  log_info(fmt::format("{}: holding job {} on {}", vm, job, short_host_name()));

  MungeCredentials credentials;
  RpcClient::Options options;
  options.host = short_host_name();
  options.address = address;
  options.port = port;
  RpcClient client(options, credentials);
  auto pause = kFirstPause;
  for (std::string last_error;;) {
    Result<json> result = client.call(
        "lease.open", lease_of(vm, job), Deadline::after(kLeaseCall), [&](const json& progress) {
          pause = kFirstPause;
          last_error.clear();
          log_info(fmt::format("{}: {}", vm, progress.value("state", "")));
        });
    if (result) {
      log_info(fmt::format("{}: {}", vm, result->value("reason", "ended")));
      return 0;
    }
    // noded may be restarting: the VM does not mind, and neither do we. Anything else is said once.
    const Error& error = result.error();
    if (error.message != last_error) log_warning(error.message);
    last_error = error.message;
    if (error.code == Code::kInvalidArgument || error.code == Code::kPermission) return 1;
    if (error.code == Code::kDeadline) continue;
    std::this_thread::sleep_for(pause);
    pause =
        std::min(pause * 2, std::chrono::duration_cast<std::chrono::milliseconds>(kLongestPause));
  }
}
