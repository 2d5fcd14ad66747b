#include "node-helper/guest/state.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <sstream>

#include "common/log.h"
#include "common/unique_fd.h"

namespace symvirt::guest {
namespace {

constexpr std::size_t kMostJobs = 4096;

Json to_json(const JobRecord& job) {
  return {{"job", job.job},     {"highest", job.highest}, {"at_rest", job.at_rest},
          {"round", job.round}, {"let_go", job.let_go},   {"lease_end_ms", job.lease_end_ms}};
}

JobRecord read_job(Fields& f) {
  JobRecord job;
  job.job = static_cast<JobId>(f.number("job", 1, UINT32_MAX));
  job.highest = f.number("highest", 0, INT64_MAX);
  job.at_rest = f.number("at_rest", 0, INT64_MAX);
  job.round = static_cast<std::uint32_t>(f.number("round", 0, 1000));
  job.let_go = f.flag_or("let_go", false);
  job.lease_end_ms = f.number("lease_end_ms", 0, INT64_MAX);
  if (job.at_rest > job.highest) f.fail("at_rest", "above highest");
  return job;
}

}  // namespace

std::string read_boot_id() {
  std::string id;
  std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), id);
  return id;
}

Json to_json(const State& state) {
  Json saved = Json::object(), jobs = Json::array();
  for (const auto& [slot, link] : state.saved) saved[slot] = to_json(link);
  for (const JobRecord& job : state.jobs) jobs.push_back(to_json(job));
  return {{"boot_id", state.boot_id},
          {"configuration", state.configuration},
          {"saved", std::move(saved)},
          {"jobs", std::move(jobs)},
          {"node_started", state.node_started}};
}

Result<State> parse_state(const Json& json) {
  Fields f(json, "state");
  State state;
  state.boot_id = f.text("boot_id", 64);
  if (const Json* c = f.object_or_none("configuration")) state.configuration = *c;
  state.node_started = f.flag_or("node_started", false);
  const Json* saved = f.object_or_none("saved");
  const Json* jobs = f.array_or_none("jobs", kMostJobs);
  if (!f.ok()) return f.error();
  if (!state.configuration.is_null()) {
    if (const auto c = parse_configure(state.configuration); !c) return c.error().with("state");
  }
  const Json none = Json::object();
  for (const auto& [slot, element] : (saved ? *saved : none).items()) {
    auto link = parse_saved_link(element);
    if (!link) return link.error().with("state: slot " + slot);
    state.saved[slot] = std::move(*link);
  }
  for (const Json& element : jobs ? *jobs : none) {
    Fields job(element, "state: job");
    state.jobs.push_back(read_job(job));
    if (!job.ok()) return job.error();
  }
  return state;
}

Status store_state(const State& state, const std::string& path) {
  const std::string next = path + ".new", text = to_text(to_json(state)) + "\n";
  const auto failed = [&] {
    return Error{Code::kInternal, fmt::format("state: {}: {}", next, std::strerror(errno))};
  };
  const UniqueFd fd(::open(next.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!fd) return failed();
  for (std::size_t done = 0; done < text.size();) {
    const ssize_t n = ::write(fd.get(), text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return failed();
    done += static_cast<std::size_t>(n);
  }
  if (std::rename(next.c_str(), path.c_str()) != 0) return failed();
  return {};
}

State load_state(const std::string& path, const std::string& boot_id) {
  State fresh;
  fresh.boot_id = boot_id;
  std::ifstream in(path);
  if (!in) return fresh;
  std::stringstream text;
  text << in.rdbuf();
  const Json json = Json::parse(text.str(), nullptr, /*allow_exceptions=*/false);
  auto state = json.is_discarded() ? Result<State>(Error{Code::kInvalidArgument, "not JSON"})
                                   : parse_state(json);
  if (!state) {
    log_error(fmt::format("state: {}: {}; set aside as {}.bad, starting without", path,
                          state.error().message, path));
    std::rename(path.c_str(), (path + ".bad").c_str());
    return fresh;
  }
  if (state->boot_id != boot_id) return fresh;
  return std::move(*state);
}

}  // namespace symvirt::guest
