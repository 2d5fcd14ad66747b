#include "slurm-conf/health/site_checks.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <thread>

#include "common/subprocess.h"

namespace symvirt::health {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kAtOnce = 8;
constexpr std::size_t kLongestReason = 120;

bool left_over(const std::string& name) {
  const auto ends = [&name](std::string_view end) {
    return name.size() > end.size() && name.ends_with(end);
  };
  return name.front() == '.' || ends("~") || ends(".swp") || ends(".rpmsave") || ends(".rpmnew") ||
         name.find(".dpkg-") != std::string::npos;
}

std::string first_line(const std::string& output) {
  std::string line = output.substr(0, output.find('\n'));
  if (line.size() > kLongestReason) line.resize(kLongestReason);
  return line;
}

struct Outcome {
  std::string failure;
  std::string error;
};

Outcome run_check(const fs::path& file, std::int64_t timeout_ms, Deadline all) {
  if (all.expired()) return {"", file.string() + ": not run: the checks before it took too long"};
  const Deadline deadline = Deadline::after(std::chrono::milliseconds(timeout_ms)).earlier(all);
  const auto result = run_program({file.string()}, deadline);
  if (!result && result.error().code == Code::kDeadline)
    return {fmt::format("no answer within {} s", timeout_ms / 1000), ""};
  if (!result) return {"", result.error().message};
  if (result->exit_code == 0) return {};
  const std::string line = first_line(result->output);
  return {line.empty() ? fmt::format("exit code {}", result->exit_code) : line, ""};
}

// Executables in the order of their names; what may not be run goes to errors.
std::vector<fs::path> find_checks(const std::string& folder, std::vector<std::string>& errors) {
  std::vector<fs::path> files;
  std::error_code error;
  fs::directory_iterator entries(folder, error);
  if (error) {
    if (error != std::errc::no_such_file_or_directory)
      errors.push_back(fmt::format("{}: cannot be read: {}", folder, error.message()));
    return files;
  }
  for (const auto& entry : entries) {
    struct stat about {};
    if (left_over(entry.path().filename()) || stat(entry.path().c_str(), &about) != 0) continue;
    if (!S_ISREG(about.st_mode) || (about.st_mode & 0111) == 0) continue;
    const bool ours = about.st_uid == 0 || about.st_uid == geteuid();
    if (!ours || (about.st_mode & 022) != 0) {
      errors.push_back(
          fmt::format("{}: not run: others than root may write it; chown root, chmod go-w",
                      entry.path().string()));
      continue;
    }
    files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace

SiteFindings run_site_checks(const SiteChecks& checks, Deadline all) {
  SiteFindings findings;
  const std::vector<fs::path> files = find_checks(checks.folder, findings.errors);
  std::vector<Outcome> outcomes(files.size());
  std::atomic<std::size_t> next = 0;
  {
    std::vector<std::jthread> workers;
    for (std::size_t i = 0; i < std::min(kAtOnce, files.size()); ++i) {
      workers.emplace_back([&] {
        for (std::size_t mine = next++; mine < files.size(); mine = next++)
          outcomes[mine] = run_check(files[mine], checks.timeout_ms, all);
      });
    }
  }
  for (std::size_t i = 0; i < files.size(); ++i) {
    const std::string name = files[i].filename();
    if (!outcomes[i].failure.empty()) findings.failures.push_back({name, outcomes[i].failure});
    if (!outcomes[i].error.empty()) findings.errors.push_back(outcomes[i].error);
  }
  return findings;
}

}  // namespace symvirt::health
