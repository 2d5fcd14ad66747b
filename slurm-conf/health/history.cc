#include "slurm-conf/health/history.h"

#include <fmt/format.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

namespace symvirt::health {
namespace {

constexpr int kPoints = 24;  // a window is kept in so many steps
constexpr int kFormat = 1;

using Json = nlohmann::json;

const Json* member(const Json& object, const char* name) {
  const auto found = object.find(name);
  return found == object.end() ? nullptr : &*found;
}

bool is_count(const Json& value) { return value.is_number_unsigned(); }

}  // namespace

Moment moment_now() {
  Moment now;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> now.boot_id;
  timespec t{};
  clock_gettime(CLOCK_BOOTTIME, &t);
  now.ms = t.tv_sec * 1000 + t.tv_nsec / 1'000'000;
  return now;
}

bool History::load(const std::string& path) {
  std::ifstream in(path);
  std::stringstream text;
  text << in.rdbuf();
  const Json file = Json::parse(text.str(), nullptr, false);
  if (!in || !file.is_object() || file.value("format", Json()) != kFormat) return false;
  rebooted_ = file.value("boot_id", Json()) != now_.boot_id;
  const Json* counters = member(file, "counters");
  const Json* conditions = member(file, "conditions");
  if (counters == nullptr || !counters->is_object() || conditions == nullptr ||
      !conditions->is_object())
    return false;
  for (const auto& [name, list] : counters->items()) {
    if (!list.is_array()) continue;
    Counter counter;
    for (const Json& point : list) {
      if (!point.is_array() || point.size() != 2 || !is_count(point[0]) || !is_count(point[1]))
        continue;
      counter.points.push_back({point[0].get<std::int64_t>(), point[1].get<std::uint64_t>()});
    }
    // Times of another boot mean nothing; that the counter was known does: it counts from 0 now.
    if (rebooted_) counter.points = {{now_.ms, 0}};
    if (!counter.points.empty()) counters_[name] = counter;
  }
  if (rebooted_) return true;
  for (const auto& [name, since] : conditions->items()) {
    if (is_count(since)) conditions_[name] = {since.get<std::int64_t>()};
  }
  return true;
}

Status History::save(const std::string& path) const {
  Json file = {{"format", kFormat},
               {"boot_id", now_.boot_id},
               {"counters", Json::object()},
               {"conditions", Json::object()}};
  for (const auto& [name, counter] : counters_) {
    if (!counter.seen) continue;
    Json list = Json::array();
    for (const Point& point : counter.points)
      list.push_back({static_cast<std::uint64_t>(point.ms), point.value});
    file["counters"][name] = std::move(list);
  }
  for (const auto& [name, condition] : conditions_) {
    if (condition.seen) file["conditions"][name] = static_cast<std::uint64_t>(condition.since_ms);
  }
  std::error_code ignored;
  std::filesystem::create_directories(std::filesystem::path(path).parent_path(), ignored);
  // Two runs may meet (slurmd starts one of its own at its start).
  const std::string fresh = fmt::format("{}.{}", path, getpid());
  std::ofstream out(fresh, std::ios::trunc);
  out << file.dump(-1, ' ', false, Json::error_handler_t::replace) << "\n";
  out.close();
  if (out && std::rename(fresh.c_str(), path.c_str()) == 0) return {};
  const int error = errno;
  unlink(fresh.c_str());
  return Error{Code::kInternal,
               fmt::format("{}: cannot be written: {}; error rates are not known without it", path,
                           std::strerror(error))};
}

std::uint64_t History::growth(const std::string& name, std::uint64_t value) {
  Counter& counter = counters_[name];
  counter.seen = true;
  std::vector<Point>& points = counter.points;
  if (!points.empty() && value < points.back().value) points = {{now_.ms, 0}};
  if (points.empty()) points.push_back({now_.ms, value});
  // The oldest point kept is the youngest one that is at least a window old.
  while (points.size() > 1 && points[1].ms <= now_.ms - window_ms_) points.erase(points.begin());
  const std::uint64_t before = points.front().value;
  // The last point is always the last run's. Of others, no more than two lie within one step.
  const std::int64_t step = window_ms_ / kPoints;
  if (points.size() > 1 && now_.ms - points[points.size() - 2].ms < step) points.pop_back();
  points.push_back({now_.ms, value});
  return value - before;
}

std::int64_t History::lasting(const std::string& condition, bool is_true) {
  if (!is_true) {
    conditions_.erase(condition);
    return 0;
  }
  auto [found, fresh] = conditions_.try_emplace(condition, Condition{now_.ms});
  found->second.seen = true;
  return fresh ? 0 : now_.ms - found->second.since_ms;
}

}  // namespace symvirt::health
