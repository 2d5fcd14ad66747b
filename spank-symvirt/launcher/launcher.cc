#include "spank-symvirt/launcher/launcher.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>

#include "common/log.h"

namespace symvirt {

using nlohmann::json;
using std::chrono::milliseconds;

namespace {

constexpr milliseconds kFirstPause{200};
constexpr milliseconds kLongestPause{5'000};

std::string text_of(const json& j, const char* field) {
  const auto it = j.is_object() ? j.find(field) : j.end();
  return it != j.end() && it->is_string() ? it->get<std::string>() : std::string();
}

std::int64_t number(const std::string& text) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() && value > 0 ? value : 0;
}

}  // namespace

std::vector<int> parse_cpu_list(const std::string& text) {
  std::vector<int> cpus;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (at < end) {
    int first = 0;
    auto [after, error] = std::from_chars(at, end, first);
    int last = first;
    if (error == std::errc() && after < end && *after == '-') {
      const auto range = std::from_chars(after + 1, end, last);
      after = range.ptr;
      error = range.ec;
    }
    const bool good = error == std::errc() && first >= 0 && last >= first && last < 1 << 16;
    if (!good || (after < end && *after != ',')) return {};
    for (int cpu = first; cpu <= last; ++cpu) cpus.push_back(cpu);
    at = after < end ? after + 1 : end;
  }
  return cpus;
}

int numa_node_of(const std::vector<int>& cpus, const std::string& sysfs) {
  if (cpus.empty()) return -1;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(sysfs, ignored)) {
    const std::string name = entry.path().filename().string();
    if (name.rfind("node", 0) != 0) continue;
    std::string list;
    std::ifstream(entry.path() / "cpulist") >> list;
    const std::vector<int> here = parse_cpu_list(list);
    const bool all = std::all_of(cpus.begin(), cpus.end(), [&](int cpu) {
      return std::find(here.begin(), here.end(), cpu) != here.end();
    });
    int node = -1;
    const char* const end = name.data() + name.size();
    if (all && std::from_chars(name.data() + 4, end, node).ptr == end) return node;
  }
  return -1;
}

json lease_of(const std::string& vm, std::uint32_t job, const std::vector<int>& cpus,
              const Variables& variables) {
  std::int64_t mib = number(variables("SLURM_MEM_PER_NODE"));
  if (mib == 0)
    mib = number(variables("SLURM_MEM_PER_CPU")) * number(variables("SLURM_CPUS_ON_NODE"));
  return {{"vm", vm},
          {"job_id", job},
          {"cpus", cpus},
          {"memory_bytes", mib << 20},
          {"numa_node", numa_node_of(cpus)},
          {"gres", json::array()}};
}

Result<std::string> hold(const json& lease, const LauncherWorld& world) {
  const std::string vm = text_of(lease, "vm");
  json asked = lease;
  milliseconds pause = kFirstPause;
  for (std::string last_error;;) {
    const Result<json> result = world.open(asked, [&](const json& progress) {
      pause = kFirstPause;
      last_error.clear();
      const std::string state = text_of(progress, "state");
      log_info(vm + ": " + state);
      // A noded that is restarted does not know whether a VM that is absent has yet to come.
      if (state == "running" || state == "paused") asked["seen"] = true;
    });
    if (result) {
      const std::string reason = text_of(*result, "reason");
      return reason.empty() ? "ended" : reason;
    }
    const Error& error = result.error();
    if (error.code == Code::kInvalidArgument) return error;
    // The call's own time is over; the lease goes on.
    if (error.code == Code::kDeadline) continue;
    if (error.message != last_error) log_warning(error.message + "; trying again");
    last_error = error.message;
    world.sleep(pause);
    pause = std::min(pause * 2, kLongestPause);
  }
}

}  // namespace symvirt
