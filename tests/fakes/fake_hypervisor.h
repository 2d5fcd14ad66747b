// A hypervisor in memory, for unit tests of noded. It knows what is true of its VMs; tests set
// faults by call and look at what was asked. A guest that answers lines sits behind the port.
#pragma once

#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "node-helper/host/hypervisor.h"

namespace symvirt::fakes {

struct FakeDomain {
  host::VmState state = host::VmState::kRunning;
  bool migrating = false;
  std::vector<std::string> aliases;
  std::vector<std::string> overlays;
  std::map<std::string, std::string> models;  // by slot
  std::set<std::string> stuck;                // aliases the guest does not give up
  bool silent_removal = false;                // no event
  bool guest = true;                          // answers lines
  bool abort_sticks = false;  // an abort is taken, and nothing comes of it before a pause
  bool pause_helps = true;    // and that ends it
};

class FakeHypervisor : public host::Hypervisor {
 public:
  using Deadline = symvirt::Deadline;

  void subscribe(host::HypervisorEvents events) override { events_ = std::move(events); }
  Result<std::vector<std::string>> list(Deadline) override;
  Result<host::VmLook> look(const std::string& vm, Deadline) override;
  Status create(const std::string& xml, Deadline) override;
  Status shutdown(const std::string& vm, Deadline) override;
  Status destroy(const std::string& vm, Deadline) override;
  Status suspend(const std::string& vm, Deadline) override;
  Status resume(const std::string& vm, Deadline) override;
  Status attach(const std::string& vm, const std::string& xml, Deadline) override;
  Status ask_detach(const std::string& vm, const std::string& alias, Deadline) override;
  Result<host::MigrateStats> migrate(
      const std::string& vm, const host::MigrateArgs& args, Deadline deadline,
      const std::function<void(const host::MigrateProgress&)>& progress) override;
  Status abort_migration(const std::string& vm, Deadline) override;
  Status pin(const std::string& vm, const host::Pinning& pinning, Deadline) override;
  Status remember(const std::string& vm, const host::LiveDomain& domain, Deadline) override;
  Result<std::unique_ptr<host::ByteChannel>> open_channel(
      const std::string& vm, const std::string& port, std::function<void(std::string_view)> on_data,
      std::function<void()> on_close, Deadline) override;

  // For tests.
  void fail(const std::string& call, Error error, int times = 1);
  int count(const std::string& call);  // how often it was asked for, failures included
  void put(const std::string& vm, FakeDomain domain);
  FakeDomain domain(const std::string& vm);
  bool exists(const std::string& vm);
  void vanish(const std::string& vm, host::VmEnd end);
  // The guest answers an unplug that was asked for before.
  void gives_up(const std::string& vm, const std::string& alias, bool event = true);
  void refuses(const std::string& vm, const std::string& alias);
  void close_ports();  // as when libvirtd is restarted

  std::function<std::string(const std::string& line)> guest;  // answer to a line; "": none
  int migrate_ms = 0;
  std::string last_device;  // XML of the last attach

 private:
  struct PortState;
  class Channel;
  Status enter(const std::string& call);

  host::HypervisorEvents events_;
  std::mutex mutex_;
  std::map<std::string, FakeDomain> domains_;
  std::map<std::string, std::pair<int, Error>> faults_;
  std::map<std::string, int> counts_;
  std::vector<std::weak_ptr<PortState>> ports_;
};

}  // namespace symvirt::fakes
