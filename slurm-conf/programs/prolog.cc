// symvirt-prolog: Prolog of slurm.conf, run by slurmd as root where a job is about to start,
// whatever plugstack.conf says. A --symvirt job starts only in a VM whose plugin, hooks and device
// are there (docs/design.md section 5 rule 8).
//
//   job did not ask for VMs        exit 0 at once: no file is read, nobody is asked
//   asked, healthy VM              exit 0
//   asked, VM with something amiss exit 1 after the node was drained with the reason; Slurm
//   requeues
//                                  the job
//   asked, not a VM at all         the job is held and the host left alone: draining it would make
//                                  a mistaken job evacuate the host
#include <fmt/format.h>
#include <syslog.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <thread>

#include "slurm-conf/programs/local_call.h"
#include "slurm-conf/programs/own_node.h"
#include "common/subprocess.h"

using namespace symvirt;
namespace fs = std::filesystem;

namespace {

constexpr auto kHealthWait = std::chrono::seconds(20);  // a device that is being attached
constexpr auto kOneQuestion = std::chrono::seconds(5);
constexpr auto kScontrol = std::chrono::seconds(15);
constexpr auto kForTheKill = std::chrono::seconds(3);

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : "";
}

bool asked_for_vm() {
  const std::string decided = variable("SPANK_SYMVIRT");
  if (!decided.empty()) return decided != "0";
  return std::getenv("SPANK__SLURM_SPANK_OPTION_symvirt_symvirt") != nullptr;
}

bool names_plugin(const fs::path& file) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    const std::size_t first = line.find_first_not_of(" \t");
    if (first == std::string::npos || line[first] == '#') continue;
    // What an include brings in is not followed: then it is the plugin's own refusal that counts.
    if (line.find("spank_symvirt.so") != std::string::npos || line.rfind("include", first) == first)
      return true;
  }
  return false;
}

std::string missing_part(const fs::path& prefix) {
  std::error_code ignored;
  for (const char* part : {"spank_symvirt.so", "libsymvirt_hooks.so"}) {
    const fs::path file = prefix / "lib/symvirt" / part;
    if (!fs::exists(file, ignored)) return file.string() + " is missing";
  }
  // Beside the slurm.conf that slurmd uses (it tells its prolog), then where a configless one keeps
  // what it was sent, then the ordinary place. A plugstack.conf elsewhere is not judged.
  std::string seen;
  for (const fs::path& folder : {fs::path(variable("SLURM_CONF")).parent_path(),
                                 fs::path("/run/slurm/conf"), fs::path("/etc/slurm")}) {
    const fs::path file = folder / "plugstack.conf";
    if (folder.empty() || !fs::exists(file, ignored)) continue;
    if (names_plugin(file)) return "";
    seen = file.string();
  }
  return seen.empty() ? "" : seen + " does not load spank_symvirt.so";
}

std::string device_trouble(const std::string& job) {
  const std::string path = variable("SYMVIRT_GUESTD_SOCKET");
  const Deadline deadline = Deadline::after(kHealthWait);
  std::string trouble;
  do {
    auto answer = local_call(path.empty() ? kGuestdSocket : path, "node.check",
                             {{"job", std::strtoul(job.c_str(), nullptr, 10)}},
                             Deadline::after(kOneQuestion).earlier(deadline));
    if (answer && answer->is_object() && answer->value("healthy", nlohmann::json()) == true)
      return "";
    if (!answer) {
      trouble = answer.error().message;
    } else {
      const auto reason =
          answer->is_object() ? answer->value("reason", nlohmann::json()) : nlohmann::json();
      trouble = reason.is_string() ? reason.get<std::string>()
                                   : "symvirt-guestd says no, without a reason";
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(250));
  } while (!deadline.expired());
  return trouble;
}

fs::path own_prefix() {
  std::error_code error;
  const fs::path self = fs::read_symlink("/proc/self/exe", error);
  return self.parent_path().parent_path().parent_path();  // PREFIX/libexec/symvirt/symvirt-prolog
}

// slurmd does not start a job that was taken back while its prolog ran.
int hold_job(const std::string& job) {
  syslog(LOG_ERR, "job %s asked for --symvirt, but this is no VM of SymVirt's: held", job.c_str());
  auto held = run_program({"scontrol", "requeuehold", job}, Deadline::after(kScontrol));
  if (!held || held->exit_code != 0) {
    syslog(LOG_ERR, "job %s: scontrol requeuehold: %s", job.c_str(),
           held ? held->output.c_str() : held.error().message.c_str());
    return 1;
  }
  std::this_thread::sleep_for(kForTheKill);
  return 0;
}

}  // namespace

int main() {
  if (!asked_for_vm()) return 0;
  openlog("symvirt-prolog", LOG_PID | LOG_PERROR, LOG_DAEMON);
  const std::string job = variable("SLURM_JOB_ID");
  if (!in_vm_node("/")) return hold_job(job);
  std::string trouble = missing_part(own_prefix());
  if (trouble.empty()) trouble = device_trouble(job);
  if (trouble.empty()) return 0;

  const std::string node = own_node_name();
  syslog(LOG_ERR, "job %s not started: %s", job.c_str(), trouble.c_str());
  auto drained = drain_node(node, trouble, Deadline::after(kScontrol));
  if (!drained)
    syslog(LOG_ERR, "%s: not drained: %s", node.c_str(), drained.error().message.c_str());
  return 1;
}
