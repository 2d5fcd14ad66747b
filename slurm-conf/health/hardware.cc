#include "slurm-conf/health/hardware.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <optional>

namespace symvirt::health {
namespace {

namespace fs = std::filesystem;

std::optional<std::string> first_line(const fs::path& file) {
  std::ifstream in(file);
  std::string line;
  if (!std::getline(in, line))
    return std::nullopt;  // reading "carrier" of an interface that is down fails, too
  return line;
}

std::optional<std::uint64_t> number(const fs::path& file) {
  const auto line = first_line(file);
  if (!line) return std::nullopt;
  std::uint64_t value = 0;
  const char* end = line->data() + line->size();
  if (std::from_chars(line->data(), end, value).ec != std::errc()) return std::nullopt;
  return value;
}

// "within 60 min". A reason is read by people in a column of sinfo -R.
std::string within(std::int64_t window_ms) {
  const std::int64_t seconds = window_ms / 1000;
  return seconds % 60 == 0 ? fmt::format("within {} min", seconds / 60)
                           : fmt::format("within {} s", seconds);
}

struct Grown {
  std::string check;
  std::string what;  // "mc0: corrected errors"
  fs::path file;
  std::uint64_t limit;
};

void judge(const Grown& counter, std::int64_t window_ms, History& history,
           std::vector<Failure>& failures) {
  const auto value = number(counter.file);
  if (!value) return;  // not every driver has every counter
  const std::uint64_t grown = history.growth(counter.file.string(), *value);
  if (grown <= counter.limit) return;
  failures.push_back({counter.check, fmt::format("{}: {} {}, limit {}", counter.what, grown,
                                                 within(window_ms), counter.limit)});
}

fs::path port_folder(const Port& port, const fs::path& root) {
  switch (port.kind) {
    case PortKind::kNet:
      return root / "class/net" / port.device;
    case PortKind::kInfiniband:
      return root / "class/infiniband" / port.device / "ports" / std::to_string(port.port);
  }
  return {};
}

// What is wrong with the link; empty: it is up.
std::string link_trouble(const Port& port, const fs::path& folder) {
  switch (port.kind) {
    case PortKind::kNet: {
      const std::string state = first_line(folder / "operstate").value_or("unknown");
      if (state == "up") return "";
      // Some drivers never tell more than "unknown".
      if (state == "unknown" && number(folder / "carrier") == std::uint64_t{1}) return "";
      return "link " + state;
    }
    case PortKind::kInfiniband: {
      const std::string state = first_line(folder / "state").value_or("unknown");  // "4: ACTIVE"
      if (state.find("ACTIVE") != std::string::npos) return "";
      return "port state " + state;
    }
  }
  return "";
}

}  // namespace

std::vector<Failure> check_memory(const MemoryLimits& limits, std::int64_t window_ms,
                                  const std::string& root, History& history) {
  std::vector<Failure> failures;
  if (!limits.enabled) return failures;
  std::vector<fs::path> controllers;
  std::error_code ignored;  // a machine without EDAC has no such folder
  for (const auto& entry :
       fs::directory_iterator(fs::path(root) / "devices/system/edac/mc", ignored)) {
    const std::string name = entry.path().filename();
    if (name.rfind("mc", 0) == 0) controllers.push_back(entry.path());
  }
  std::sort(controllers.begin(), controllers.end());
  for (const fs::path& mc : controllers) {
    const std::string name = mc.filename();
    judge({"memory", name + ": uncorrected errors", mc / "ue_count", limits.uncorrected}, window_ms,
          history, failures);
    judge({"memory", name + ": corrected errors", mc / "ce_count", limits.corrected}, window_ms,
          history, failures);
  }
  return failures;
}

std::vector<Failure> check_port(const Port& port, std::int64_t window_ms, const std::string& root,
                                History& history) {
  std::vector<Failure> failures;
  const fs::path folder = port_folder(port, root);
  const std::string name =
      port.kind == PortKind::kNet ? port.device : fmt::format("{}/{}", port.device, port.port);
  std::error_code ignored;
  if (!fs::exists(folder, ignored)) {
    if (!port.may_be_absent) failures.push_back({"port", name + ": not there"});
    return failures;
  }
  const std::string trouble = port.link_up ? link_trouble(port, folder) : "";
  const std::int64_t down_ms = history.lasting("link " + name, !trouble.empty());
  if (!trouble.empty() && down_ms >= port.down_ms)
    failures.push_back(
        {"port", fmt::format("{}: {}{}", name, trouble,
                             down_ms > 0 ? fmt::format(" for {} s", down_ms / 1000) : "")});
  const bool net = port.kind == PortKind::kNet;
  for (const std::string& counter : port.counters) {
    judge({"port", fmt::format("{}: {}", name, counter),
           folder / (net ? "statistics" : "counters") / counter, port.errors},
          window_ms, history, failures);
  }
  judge({"port", name + ": link changes",
         folder / (net ? "carrier_changes" : "counters/link_downed"), port.link_changes},
        window_ms, history, failures);
  return failures;
}

}  // namespace symvirt::health
