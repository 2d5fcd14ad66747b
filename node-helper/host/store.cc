#include "node-helper/host/store.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "common/log.h"
#include "common/unique_fd.h"

namespace symvirt::host {

using nlohmann::json;

namespace {

Error os_error(const std::string& what) {
  return Error{Code::kUnavailable, fmt::format("{}: {}", what, std::strerror(errno))};
}

std::string text_of(const json& j, const char* key) {
  auto it = j.find(key);
  return it != j.end() && it->is_string() ? it->get<std::string>() : "";
}

std::int64_t number_of(const json& j, const char* key, std::int64_t otherwise) {
  auto it = j.find(key);
  return it != j.end() && it->is_number_integer() ? it->get<std::int64_t>() : otherwise;
}

std::vector<int> numbers_of(const json& j, const char* key) {
  std::vector<int> numbers;
  auto it = j.find(key);
  if (it == j.end() || !it->is_array()) return numbers;
  for (const json& n : *it) {
    if (n.is_number_integer()) numbers.push_back(n.get<int>());
  }
  return numbers;
}

json vm_to_json(const VmRecord& vm) {
  json slots = json::array();
  for (const Reservation& r : vm.slots)
    slots.push_back({{"slot", r.slot},
                     {"gres", r.gres},
                     {"device", r.device},
                     {"mac", r.mac},
                     {"guest_address", r.guest_address}});
  return {{"slots", slots},
          {"memory_bytes", vm.memory_bytes},
          {"overlays", vm.overlays},
          {"ended_here", vm.ended_here},
          {"lease",
           {{"job_id", vm.lease.job_id},
            {"cpus", vm.lease.cpus},
            {"memory_bytes", vm.lease.memory_bytes},
            {"numa_node", vm.lease.numa_node},
            {"gres", vm.lease.gres}}},
          {"unplugs", vm.unplugs}};
}

std::vector<std::string> texts_of(const json& j, const char* field) {
  std::vector<std::string> texts;
  if (auto it = j.find(field); it != j.end() && it->is_array()) {
    for (const json& text : *it) {
      if (text.is_string()) texts.push_back(text.get<std::string>());
    }
  }
  return texts;
}

VmRecord vm_from_json(const json& j) {
  VmRecord vm;
  if (auto it = j.find("slots"); it != j.end() && it->is_array()) {
    for (const json& r : *it)
      vm.slots.push_back({text_of(r, "slot"), text_of(r, "gres"), text_of(r, "device"),
                          text_of(r, "mac"), text_of(r, "guest_address")});
  }
  vm.memory_bytes = number_of(j, "memory_bytes", 0);
  vm.overlays = texts_of(j, "overlays");
  vm.unplugs = texts_of(j, "unplugs");
  vm.ended_here = j.contains("ended_here") && j["ended_here"] == true;
  if (auto it = j.find("lease"); it != j.end() && it->is_object()) {
    vm.lease = {number_of(*it, "job_id", 0), numbers_of(*it, "cpus"),
                number_of(*it, "memory_bytes", 0),
                static_cast<int>(number_of(*it, "numa_node", -1)), numbers_of(*it, "gres")};
  }
  return vm;
}

Status make_folder(const std::string& path) {
  if (mkdir(path.c_str(), 0700) == 0 || errno == EEXIST) return {};
  return os_error(path);
}

Status sync_folder(const std::string& path) {
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd || fsync(fd.get()) != 0) return os_error(path);
  return {};
}

}  // namespace

std::string state_to_text(const NodeState& state) {
  json vms = json::object();
  for (const auto& [name, vm] : state.vms) vms[name] = vm_to_json(vm);
  return json{{"schema_version", 1}, {"generation", state.generation}, {"vms", vms}}.dump(1) + "\n";
}

Result<NodeState> state_from_text(const std::string& text) {
  const json j = json::parse(text, nullptr, false);
  if (!j.is_object()) return Error{Code::kInvalidArgument, "not a JSON object"};
  if (number_of(j, "schema_version", 0) != 1)
    return Error{Code::kInvalidArgument, "schema_version is not 1; an older noded cannot read it"};
  NodeState state;
  state.generation = number_of(j, "generation", 0);
  if (auto it = j.find("vms"); it != j.end() && it->is_object()) {
    for (const auto& [name, vm] : it->items()) state.vms[name] = vm_from_json(vm);
  }
  return state;
}

Status Store::load() {
  if (Status s = make_folder(directory_); !s) return s;
  const std::string path = directory_ + "/state.json";
  std::ifstream file(path);
  if (!file) return errno == ENOENT ? Status() : Status(os_error(path));
  std::stringstream text;
  text << file.rdbuf();
  auto state = state_from_text(text.str());
  std::lock_guard lock(mutex_);
  if (state) {
    state_ = std::move(*state);
    generation_ = state_.generation;
    return {};
  }
  const std::string aside = fmt::format("{}.bad-{}", path, std::time(nullptr));
  if (rename(path.c_str(), aside.c_str()) != 0) return os_error(path);
  log_error(fmt::format("{}: {}: set aside as {}; reservations are read from the running VMs", path,
                        state.error().message, aside));
  return {};
}

NodeState Store::get() const {
  std::lock_guard lock(mutex_);
  return state_;
}

VmRecord Store::vm(const std::string& vm) const {
  std::lock_guard lock(mutex_);
  auto it = state_.vms.find(vm);
  return it == state_.vms.end() ? VmRecord() : it->second;
}

Status Store::update(const std::function<Status(NodeState&)>& change) {
  std::lock_guard lock(mutex_);
  NodeState next = state_;
  if (Status s = change(next); !s) return s;
  std::erase_if(next.vms, [](const auto& item) { return item.second.empty(); });
  if (next == state_) return {};
  if (Status s = write(next); !s) return s;
  state_ = std::move(next);
  generation_ = state_.generation;
  return {};
}

Status Store::write(const NodeState& state) {
  const std::string path = directory_ + "/state.json", fresh = path + ".new";
  const std::string text = state_to_text(state);
  UniqueFd fd(open(fresh.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!fd) return os_error(fresh);
  for (std::size_t done = 0; done < text.size();) {
    const ssize_t n = ::write(fd.get(), text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return os_error(fresh);
    done += static_cast<std::size_t>(n);
  }
  if (fsync(fd.get()) != 0) return os_error(fresh);
  if (rename(fresh.c_str(), path.c_str()) != 0) return os_error(path);
  return sync_folder(directory_);
}

}  // namespace symvirt::host
