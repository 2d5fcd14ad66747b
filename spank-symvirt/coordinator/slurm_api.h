// Slurm, as far as the coordinator needs it: the fifth narrow interface. Blocking calls; the
// implementation over libslurm is in slurm_libslurm.cc.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/deadline.h"
#include "common/result.h"

namespace symvirt {

struct NodeInfo {
  std::string name;
  bool drain = false;  // DRAIN flag
  bool fail = false;
  bool down = false;
  bool allocated = false;
  bool full = false;  // every CPU of it
  bool completing = false;
  bool powered_down = false;
  bool powering_up = false;
  bool powering_down = false;
  bool not_responding = false;
  bool idle = false;
  std::string state_text;  // as sinfo prints it
  std::string reason;
  std::string partitions;
  std::string gres;       // as configured: "hca:2"
  std::string gres_used;  // of those, in use by jobs
};

enum class JobState { kPending, kConfiguring, kRunning, kSuspended, kCompleting, kEnded };

struct JobInfo {
  std::uint32_t id = 0;
  std::uint32_t uid = 0;
  JobState state = JobState::kPending;
  std::string partition;
  std::string name;
  std::string comment;
  std::string admin_comment;
  std::uint32_t time_limit_min = 0;  // 0: none
  std::vector<std::string> nodes;
};

struct LauncherSpec {
  std::string vm;
  std::string vm_class;
  std::string tag;
  std::string partition;
  std::string gres;
  int cpus = 1;
  std::int64_t memory_mib = 0;
  std::vector<std::string> exclude_hosts;
  std::vector<std::string> only_hosts;
  std::string reservation;
  std::string qos;
  std::string account;
  std::string launcher_path;
};

class SlurmApi {
 public:
  virtual ~SlurmApi() = default;
  // Cheap when nothing changed: slurmctld then answers so, and the last list is given again.
  virtual Result<std::vector<NodeInfo>> poll_nodes(Deadline) = 0;
  virtual Result<std::vector<JobInfo>> poll_jobs(Deadline) = 0;
  // Returns the live launcher job of that tag where there is one: repeating a submission makes no
  // second job.
  virtual Result<std::uint32_t> submit_launcher(const LauncherSpec& spec, Deadline) = 0;
  virtual Status cancel_launchers(const std::string& tag_prefix, Deadline) = 0;
  virtual Status cancel_job(std::uint32_t job, Deadline) = 0;
  // Reasons of other people stay: the state changes, the reason does not.
  virtual Status set_node_down(const std::string& node, const std::string& reason, Deadline) = 0;
  virtual Status set_node_drain(const std::string& node, const std::string& reason, Deadline) = 0;
  // Only a node whose reason begins with "symvirt:"; kPrecondition otherwise.
  virtual Status resume_node(const std::string& node, Deadline) = 0;
  virtual Status power_down(const std::string& node, Deadline) = 0;
  // Adds the line to what stands there.
  virtual Status set_admin_comment(std::uint32_t job, const std::string& line, Deadline) = 0;
  // A longer limit than that stays, and none at all.
  virtual Status set_time_limit(std::uint32_t job, std::uint32_t minutes, Deadline) = 0;
};

// libslurm's. Reads slurm.conf as every Slurm command does.
std::unique_ptr<SlurmApi> make_libslurm_api();

}  // namespace symvirt
