#include "tests/fakes/fake_hypervisor.h"

#include <algorithm>
#include <thread>

#include "common/line_buffer.h"

namespace symvirt::fakes {

using host::VmEnd;
using host::VmLook;
using host::VmState;

struct FakeHypervisor::PortState {
  std::mutex mutex;
  bool closed = false;
  std::string vm;
  LineBuffer input;
  std::function<void(std::string_view)> on_data;
  std::function<void()> on_close;
};

class FakeHypervisor::Channel : public host::ByteChannel {
 public:
  Channel(FakeHypervisor& owner, std::shared_ptr<PortState> state)
      : owner_(owner), state_(std::move(state)) {}
  ~Channel() override {
    std::lock_guard lock(state_->mutex);
    state_->closed = true;
  }
  // Answers come on another thread, as libvirt's do.
  void send(const std::string& bytes) override {
    auto guest = owner_.guest;
    if (!guest || !owner_.domain(state_->vm).guest) return;
    std::thread([state = state_, guest, bytes] {
      std::vector<std::string> answers;
      std::function<void(std::string_view)> on_data;
      {
        std::lock_guard lock(state->mutex);
        (void)state->input.append(bytes);
        while (auto line = state->input.next()) {
          if (!line->empty()) answers.push_back(*line);
        }
        on_data = state->on_data;
      }
      for (const std::string& line : answers) {
        const std::string answer = guest(line);
        std::lock_guard lock(state->mutex);
        if (!state->closed && !answer.empty()) on_data(answer + "\n");
      }
    }).detach();
  }

 private:
  FakeHypervisor& owner_;
  std::shared_ptr<PortState> state_;
};

Status FakeHypervisor::enter(const std::string& call) {
  ++counts_[call];
  auto it = faults_.find(call);
  if (it == faults_.end()) return {};
  Error error = it->second.second;
  if (--it->second.first == 0) faults_.erase(it);
  return error;
}

void FakeHypervisor::fail(const std::string& call, Error error, int times) {
  std::lock_guard lock(mutex_);
  faults_.insert_or_assign(call, std::pair(times, std::move(error)));
}

int FakeHypervisor::count(const std::string& call) {
  std::lock_guard lock(mutex_);
  return counts_[call];
}

void FakeHypervisor::put(const std::string& vm, FakeDomain domain) {
  std::lock_guard lock(mutex_);
  domains_[vm] = std::move(domain);
}

FakeDomain FakeHypervisor::domain(const std::string& vm) {
  std::lock_guard lock(mutex_);
  return domains_[vm];
}

bool FakeHypervisor::exists(const std::string& vm) {
  std::lock_guard lock(mutex_);
  return domains_.contains(vm);
}

void FakeHypervisor::vanish(const std::string& vm, VmEnd end) {
  {
    std::lock_guard lock(mutex_);
    domains_.erase(vm);
  }
  events_.ended(vm, end);
}

void FakeHypervisor::gives_up(const std::string& vm, const std::string& alias, bool event) {
  {
    std::lock_guard lock(mutex_);
    std::erase(domains_[vm].aliases, alias);
  }
  if (event) events_.device_removed(vm, alias);
}

void FakeHypervisor::refuses(const std::string& vm, const std::string& alias) {
  events_.removal_failed(vm, alias);
}

void FakeHypervisor::close_ports() {
  std::vector<std::weak_ptr<PortState>> ports;
  {
    std::lock_guard lock(mutex_);
    ports.swap(ports_);
  }
  for (auto& weak : ports) {
    auto state = weak.lock();
    if (!state) continue;
    std::unique_lock lock(state->mutex);
    if (std::exchange(state->closed, true)) continue;
    auto on_close = state->on_close;
    lock.unlock();
    on_close();
  }
}

Result<std::vector<std::string>> FakeHypervisor::list(Deadline) {
  std::lock_guard lock(mutex_);
  if (Status s = enter("list"); !s) return s.error();
  std::vector<std::string> names;
  for (const auto& [name, d] : domains_) names.push_back(name);
  return names;
}

Result<VmLook> FakeHypervisor::look(const std::string& vm, Deadline) {
  std::lock_guard lock(mutex_);
  if (Status s = enter("look"); !s) return s.error();
  VmLook look;
  auto it = domains_.find(vm);
  if (it == domains_.end()) return look;
  look.state = it->second.state;
  look.migrating = it->second.migrating;
  look.domain.name = vm;
  look.domain.uuid = "uuid-of-" + vm;
  look.domain.memory_bytes = 1 << 29;
  look.domain.has_guest_port = true;
  look.domain.overlays = it->second.overlays;
  look.domain.models = it->second.models;
  for (const std::string& alias : it->second.aliases) {
    if (auto part = host::parse_alias(alias)) look.domain.parts.push_back(*part);
  }
  return look;
}

Status FakeHypervisor::create(const std::string& xml, Deadline) {
  std::lock_guard lock(mutex_);
  if (Status s = enter("create"); !s) return s;
  auto parsed = host::parse_domain(xml);
  if (!parsed) return parsed.error();
  FakeDomain domain;
  domain.overlays = parsed->overlays;
  domains_[parsed->name] = domain;
  return {};
}

Status FakeHypervisor::shutdown(const std::string& vm, Deadline) {
  {
    std::lock_guard lock(mutex_);
    if (Status s = enter("shutdown"); !s) return s;
    if (!domains_[vm].guest) return {};
  }
  vanish(vm, VmEnd::kStopped);
  return {};
}

Status FakeHypervisor::destroy(const std::string& vm, Deadline) {
  {
    std::lock_guard lock(mutex_);
    if (Status s = enter("destroy"); !s) return s;
  }
  vanish(vm, VmEnd::kStopped);
  return {};
}

Status FakeHypervisor::suspend(const std::string& vm, Deadline) {
  std::lock_guard lock(mutex_);
  if (Status s = enter("suspend"); !s) return s;
  FakeDomain& d = domains_[vm];
  d.state = VmState::kPaused;
  if (d.abort_sticks && d.pause_helps) d.migrating = false;
  return {};
}

Status FakeHypervisor::resume(const std::string& vm, Deadline) {
  std::lock_guard lock(mutex_);
  if (Status s = enter("resume"); !s) return s;
  domains_[vm].state = VmState::kRunning;
  return {};
}

Status FakeHypervisor::attach(const std::string& vm, const std::string& xml, Deadline) {
  std::lock_guard lock(mutex_);
  const bool guard = xml.find("<shmem") != std::string::npos;
  if (Status s = enter(guard ? "attach guard" : "attach nic"); !s) return s;
  last_device = xml;
  const std::size_t at = xml.find("ua-symvirt-");
  domains_[vm].aliases.push_back(xml.substr(at, xml.find('"', at) - at));
  return {};
}

Status FakeHypervisor::ask_detach(const std::string& vm, const std::string& alias, Deadline) {
  bool event = false;
  {
    std::lock_guard lock(mutex_);
    if (Status s = enter("ask_detach"); !s) return s;
    FakeDomain& d = domains_[vm];
    if (!d.stuck.contains(alias)) {
      std::erase(d.aliases, alias);
      event = !d.silent_removal;
    }
  }
  if (event) events_.device_removed(vm, alias);
  return {};
}

Result<host::MigrateStats> FakeHypervisor::migrate(
    const std::string& vm, const host::MigrateArgs&, Deadline deadline,
    const std::function<void(const host::MigrateProgress&)>& progress) {
  {
    std::lock_guard lock(mutex_);
    if (Status s = enter("migrate"); !s) return s.error();
    domains_[vm].migrating = true;
  }
  const Deadline end = deadline.earlier(Deadline::after(std::chrono::milliseconds(migrate_ms)));
  do {
    progress({1, 2, 1, 1});
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    std::lock_guard lock(mutex_);
    if (!domains_[vm].migrating) return Error{Code::kCancelled, "aborted"};
  } while (!end.expired());
  vanish(vm, VmEnd::kMigrated);
  return host::MigrateStats{1.5, 20, 100};
}

Status FakeHypervisor::abort_migration(const std::string& vm, Deadline) {
  std::lock_guard lock(mutex_);
  if (Status s = enter("abort"); !s) return s;
  if (!domains_[vm].abort_sticks) domains_[vm].migrating = false;
  return {};
}

Status FakeHypervisor::pin(const std::string&, const host::Pinning&, Deadline) {
  std::lock_guard lock(mutex_);
  return enter("pin");
}

Status FakeHypervisor::remember(const std::string& vm, const host::LiveDomain& domain, Deadline) {
  std::lock_guard lock(mutex_);
  if (Status s = enter("remember"); !s) return s;
  domains_[vm].overlays = domain.overlays;
  domains_[vm].models = domain.models;
  return {};
}

Result<std::unique_ptr<host::ByteChannel>> FakeHypervisor::open_channel(
    const std::string& vm, const std::string&, std::function<void(std::string_view)> on_data,
    std::function<void()> on_close, Deadline) {
  std::lock_guard lock(mutex_);
  if (Status s = enter("open_channel"); !s) return s.error();
  auto state = std::make_shared<PortState>();
  state->vm = vm;
  state->on_data = std::move(on_data);
  state->on_close = std::move(on_close);
  ports_.push_back(state);
  return std::unique_ptr<host::ByteChannel>(std::make_unique<Channel>(*this, state));
}

}  // namespace symvirt::fakes
