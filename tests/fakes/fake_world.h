// The world the coordinator lives in, in memory: hosts with VMs, devices and guests, Slurm, a
// clock, a journal that survives crashes, a fence. For unit tests only. It knows what is true, so
// tests can compare it with what the coordinator believes, and it puts a fault on any chosen call.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "spank-symvirt/coordinator/engine.h"

namespace symvirt::fakes {

enum class Fault {
  kNone,
  kFail,         // an error, nothing done
  kHangBefore,   // no answer, nothing done
  kHangAfter,    // no answer, done all the same
  kCrashBefore,  // the coordinator dies just before the effect
  kCrashAfter,   // ... and just after it
};

class FakeClock : public Clock {
 public:
  std::int64_t now_ns() override { return now; }
  std::int64_t now = 1'000'000'000'000;
};

// What append() accepted is there after a crash; nothing else is.
class FakeJournal : public Journal {
 public:
  Status append(const nlohmann::json& event) override;
  Status replay(const std::function<void(const nlohmann::json&)>& each) override;
  Result<std::int64_t> next_generation() override { return ++generation; }
  std::vector<std::string> records;
  std::int64_t generation = 0;
  bool broken = false;
};

struct FakeVm {
  std::string state = "running";  // running | paused | incoming
  bool device = false;
  bool linked = false;
  std::string model;  // of the devices it has met
};

struct FakeGuest {  // follows the VM
  std::int64_t rest_epoch = 0;
  int rest_round = 0;
  std::int64_t highest_epoch = 0;
  bool device_leaves = true;  // what its ranks were told
  bool let_go = false;
  bool node_started = false;
  bool configured = false;
};

struct FakeHost {
  bool drained = false;
  bool dead = false;  // does not answer
  int capacity = 2;
  std::string model;  // of its devices; empty: every guest knows them
  std::map<std::string, FakeVm> vms;
  std::set<std::string> reserved;  // VMs that hold a device
  std::int64_t generation = 0;
  std::map<std::string, Result<nlohmann::json>> ops;
};

struct FakeJob {
  LauncherSpec spec;
  JobState state = JobState::kPending;
  std::string host;
};

// Everything at once; the tests' main() of a small data centre.
class FakeWorld : public Hypervisor, public SlurmApi, public Fence {
 public:
  FakeWorld();

  // --- what the coordinator sees
  void call(const std::string& host, const std::string& method, nlohmann::json params,
            std::chrono::milliseconds timeout, Progress progress, Hypervisor::Done done) override;
  Result<std::uint32_t> submit_launcher(const LauncherSpec& spec, Deadline) override;
  Result<std::vector<JobInfo>> poll_jobs(Deadline) override;
  Result<std::vector<NodeInfo>> poll_nodes(Deadline) override { return std::vector<NodeInfo>{}; }
  Status cancel_launchers(const std::string& tag_prefix, Deadline) override;
  Status cancel_job(std::uint32_t job, Deadline) override;
  Status set_node_down(const std::string& node, const std::string& reason, Deadline) override;
  Status set_node_drain(const std::string&, const std::string&, Deadline) override { return {}; }
  Status resume_node(const std::string&, Deadline) override { return {}; }
  Status power_down(const std::string&, Deadline) override { return {}; }
  Status set_admin_comment(std::uint32_t job, const std::string& line, Deadline) override;
  Status set_time_limit(std::uint32_t job, std::uint32_t minutes, Deadline) override;
  bool available() const override { return has_fence; }
  void fence(const std::string& host, Fence::Done done) override;

  // --- the test's side
  void boot_by_hand(const std::string& vm,
                    const std::string& host);     // a VM that is up, with device and launcher job
  std::vector<std::string> broken_rules() const;  // of design 5, in words; empty: all kept
  std::vector<std::string> where_running(const std::string& vm) const;
  std::string summary() const;

  std::map<std::string, FakeHost> hosts;
  std::map<std::string, FakeGuest> guests;
  std::map<std::uint32_t, FakeJob> jobs;
  std::map<std::uint32_t, std::string> notes;
  std::map<std::uint32_t, std::uint32_t> time_limits = {{7, 60}};  // of users' jobs, in minutes
  std::map<std::string, std::string> down_nodes;
  bool has_fence = false;
  std::string dies_on_migrate;  // a host that loses power when the first VM begins to move
  std::string left_at_target;   // ... what is at the target then, when that host was the source
  int fences = 0;
  std::set<std::string> endless;  // guest methods that always want another round: "job.quiesce"
  std::set<std::string> failing_methods;  // always answered with an error: "device.attach@hv2"

  // The n-th call (from 1) that may change something gets the fault.
  Fault fault = Fault::kNone;
  int fault_at = 0;
  int calls = 0;
  std::string faulted;  // what it hit
  struct Crash {};      // thrown through the coordinator

  std::deque<std::pair<Hypervisor::Done, Result<nlohmann::json>>> answers;

 private:
  Fault take_fault(const std::string& what);
  Result<nlohmann::json> perform(const std::string& host, const std::string& method,
                                 const nlohmann::json& params);
  Result<nlohmann::json> host_method(const std::string& host, const std::string& method,
                                     const nlohmann::json& params);
  Result<nlohmann::json> guest_method(const std::string& host, const std::string& method,
                                      const std::string& vm, const nlohmann::json& params);
  Result<nlohmann::json> migrate(const std::string& host, const std::string& vm,
                                 const std::string& to);
  void note_copies();

  std::uint32_t next_job_ = 100;
  std::vector<std::string> broken_;
};

// A coordinator in that world, restarted whenever the world says so.
class Simulation {
 public:
  explicit Simulation(Config config);
  FakeWorld world;
  FakeClock clock;
  FakeJournal journal;

  Engine& engine() { return *engine_; }
  void restart();
  // Runs until nothing is under way or `limit_s` of the fake clock have passed. False: the latter.
  bool run(std::int64_t limit_s = 4 * 3600);
  // One round: answers delivered, engine turned, clock moved on if nothing else happened.
  void step();
  Result<std::int64_t> begin(Transaction tx);
  int restarts = 0;

 private:
  bool guarded(const std::function<void()>& work);
  Config config_;
  std::unique_ptr<Executor> executor_;
  std::unique_ptr<Engine> engine_;
  std::int64_t incarnation_ = 0;
};

Config two_vm_config();
// An evacuation of `moving` from their hosts, with the others of the job at rest meanwhile.
Transaction evacuation(const FakeWorld& world, const std::vector<std::string>& moving,
                       const std::vector<std::string>& resting);

}  // namespace symvirt::fakes
