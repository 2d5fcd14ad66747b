#include <fmt/format.h>
#include <signal.h>
#include <slurm/slurm.h>
#include <slurm/slurm_errno.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <utility>

#include "spank-symvirt/coordinator/slurm_api.h"

extern "C" void slurm_xfree_ptr(void*);  // exported, but in no header of Slurm's

namespace symvirt {
namespace {

// Slurm 22.05 forgets one string of each job. Where it does not, it finds it gone.
void free_jobs(job_info_msg_t* jobs) {
  for (std::uint32_t i = 0; jobs != nullptr && i < jobs->record_count; ++i) {
    slurm_xfree_ptr(std::exchange(jobs->job_array[i].admin_comment, nullptr));
  }
  slurm_free_job_info_msg(jobs);
}

template <auto Free>
struct FreeWith {
  template <typename T>
  void operator()(T* p) const {
    Free(p);
  }
};
using NodeMsg = std::unique_ptr<node_info_msg_t, FreeWith<slurm_free_node_info_msg>>;
using JobMsg = std::unique_ptr<job_info_msg_t, FreeWith<free_jobs>>;
using PartMsg = std::unique_ptr<partition_info_msg_t, FreeWith<slurm_free_partition_info_msg>>;

std::string text(const char* s) { return s != nullptr ? s : ""; }

// libslurm wants char* for what it only reads.
char* mutable_text(const std::string& s) {
  return s.empty() ? nullptr : const_cast<char*>(s.c_str());
}

// Nothing is known of the effect: the connection or its authentication failed, or a controller that
// is only a stand-by answered. The ranges are slurm_errno.h's: below 2000 communication, 5000 the
// socket layer (a time-out is there), 6000 authentication.
bool of_the_connection(int err) {
  return err < 2000 || (err >= 5000 && err < 5100) || (err >= 6000 && err < 6100) ||
         err == ESLURM_IN_STANDBY_MODE || err == ESLURM_IN_STANDBY_USE_BACKUP ||
         err == ESLURM_TRANSITION_STATE_NO_UPDATE;
}

Error slurm_error(const std::string& what) {
  const int err = slurm_get_errno();
  Code code = Code::kRefused;
  if (err == ESLURM_INVALID_JOB_ID || err == ESLURM_INVALID_NODE_NAME || err == ESLURM_ALREADY_DONE)
    code = Code::kNotFound;
  else if (of_the_connection(err))
    code = Code::kUnavailable;
  return Error{code, fmt::format("{}: {}", what, slurm_strerror(err))};
}

std::vector<std::string> expand(const char* list) {
  std::vector<std::string> names;
  if (list == nullptr || *list == '\0') return names;
  hostlist_t hosts = slurm_hostlist_create(list);
  while (char* name = slurm_hostlist_shift(hosts)) {
    names.emplace_back(name);
    free(name);
  }
  slurm_hostlist_destroy(hosts);
  return names;
}

// sinfo's words, as far as people care here.
std::string state_text(const NodeInfo& n) {
  if (n.drain) return n.allocated || n.completing ? "draining" : "drained";
  if (n.down) return "down";
  if (n.powering_down) return "powering_down";
  if (n.powering_up) return "powering_up";
  if (n.powered_down) return "powered_down";
  if (n.completing) return "completing";
  if (n.allocated) return "allocated";
  return n.idle ? "idle" : "unknown";
}

NodeInfo node_from(const node_info_t& n) {
  NodeInfo info;
  info.name = text(n.name);
  const std::uint32_t s = n.node_state;
  const std::uint32_t base = s & NODE_STATE_BASE;
  info.drain = (s & NODE_STATE_DRAIN) != 0;
  info.fail = (s & NODE_STATE_FAIL) != 0;
  info.down = base == NODE_STATE_DOWN;
  info.idle = base == NODE_STATE_IDLE;
  info.full = base == NODE_STATE_ALLOCATED;
  info.allocated = base == NODE_STATE_ALLOCATED || base == NODE_STATE_MIXED;
  info.completing = (s & NODE_STATE_COMPLETING) != 0;
  info.powered_down = (s & NODE_STATE_POWERED_DOWN) != 0;
  info.powering_up = (s & (NODE_STATE_POWERING_UP | NODE_STATE_POWER_UP)) != 0;
  info.powering_down = (s & (NODE_STATE_POWERING_DOWN | NODE_STATE_POWER_DOWN)) != 0;
  info.not_responding = (s & NODE_STATE_NO_RESPOND) != 0;
  info.state_text = state_text(info);
  info.reason = text(n.reason);
  info.gres = text(n.gres);
  info.gres_used = text(n.gres_used);
  return info;
}

JobState state_from(std::uint32_t s) {
  if ((s & JOB_COMPLETING) != 0) return JobState::kCompleting;
  switch (s & JOB_STATE_BASE) {
    case JOB_PENDING:
      return JobState::kPending;
    case JOB_RUNNING:
      return (s & JOB_CONFIGURING) != 0 ? JobState::kConfiguring : JobState::kRunning;
    case JOB_SUSPENDED:
      return JobState::kSuspended;
    default:  // not an enum of ours: every other value is an ending of some kind
      return JobState::kEnded;
  }
}

constexpr std::size_t kLongestComment = 2000;

class LibslurmApi : public SlurmApi {
 public:
  LibslurmApi() { slurm_init(nullptr); }
  ~LibslurmApi() override { slurm_fini(); }

  Result<std::vector<NodeInfo>> poll_nodes(Deadline) override;
  Result<std::vector<JobInfo>> poll_jobs(Deadline) override;
  Result<std::uint32_t> submit_launcher(const LauncherSpec& spec, Deadline deadline) override;
  Status cancel_launchers(const std::string& tag_prefix, Deadline deadline) override;
  Status cancel_job(std::uint32_t job, Deadline) override;
  Status set_node_down(const std::string& node, const std::string& reason,
                       Deadline deadline) override;
  Status set_node_drain(const std::string& node, const std::string& reason,
                        Deadline deadline) override;
  Status resume_node(const std::string& node, Deadline deadline) override;
  Status power_down(const std::string& node, Deadline) override;
  Status set_admin_comment(std::uint32_t job, const std::string& line, Deadline) override;
  Status set_time_limit(std::uint32_t job, std::uint32_t minutes, Deadline) override;

 private:
  Status load_partitions();
  Status load_job_list();
  Status update_node(const std::string& node, std::uint32_t state, const std::string& reason);
  Result<NodeInfo> find_node(const std::string& node, Deadline deadline);

  NodeMsg node_msg_;
  PartMsg part_msg_;
  JobMsg job_msg_;
  std::vector<NodeInfo> nodes_;
  std::vector<JobInfo> jobs_;
  std::map<std::string, std::string> partitions_of_;
};

Status LibslurmApi::load_partitions() {
  partition_info_msg_t* fresh = nullptr;
  if (slurm_load_partitions(part_msg_ ? part_msg_->last_update : 0, &fresh, SHOW_ALL) !=
      SLURM_SUCCESS) {
    if (part_msg_ && slurm_get_errno() == SLURM_NO_CHANGE_IN_DATA) return {};
    return slurm_error("list of partitions");
  }
  part_msg_.reset(fresh);
  partitions_of_.clear();
  for (std::uint32_t i = 0; i < fresh->record_count; ++i) {
    const partition_info_t& p = fresh->partition_array[i];
    for (const std::string& node : expand(p.nodes)) {
      std::string& list = partitions_of_[node];
      list += (list.empty() ? "" : ",") + text(p.name);
    }
  }
  return {};
}

Result<std::vector<NodeInfo>> LibslurmApi::poll_nodes(Deadline) {
  if (Status status = load_partitions(); !status) return status.error();
  node_info_msg_t* fresh = nullptr;
  if (slurm_load_node(node_msg_ ? node_msg_->last_update : 0, &fresh, SHOW_ALL | SHOW_DETAIL) !=
      SLURM_SUCCESS) {
    if (node_msg_ && slurm_get_errno() == SLURM_NO_CHANGE_IN_DATA) return nodes_;
    return slurm_error("list of nodes");
  }
  node_msg_.reset(fresh);
  nodes_.clear();
  for (std::uint32_t i = 0; i < fresh->record_count; ++i) {
    if (fresh->node_array[i].name == nullptr) continue;
    NodeInfo info = node_from(fresh->node_array[i]);
    info.partitions = partitions_of_[info.name];
    nodes_.push_back(std::move(info));
  }
  return nodes_;
}

Status LibslurmApi::load_job_list() {
  job_info_msg_t* fresh = nullptr;
  if (slurm_load_jobs(job_msg_ ? job_msg_->last_update : 0, &fresh, SHOW_ALL | SHOW_DETAIL) !=
      SLURM_SUCCESS) {
    if (job_msg_ && slurm_get_errno() == SLURM_NO_CHANGE_IN_DATA) return {};
    return slurm_error("list of jobs");
  }
  job_msg_.reset(fresh);
  jobs_.clear();
  for (std::uint32_t i = 0; i < fresh->record_count; ++i) {
    const slurm_job_info_t& j = fresh->job_array[i];
    JobInfo info;
    info.id = j.job_id;
    info.uid = j.user_id;
    info.state = state_from(j.job_state);
    info.partition = text(j.partition);
    info.name = text(j.name);
    info.comment = text(j.comment);
    info.admin_comment = text(j.admin_comment);
    info.nodes = expand(j.nodes);
    info.time_limit_min = j.time_limit == INFINITE || j.time_limit == NO_VAL ? 0 : j.time_limit;
    jobs_.push_back(std::move(info));
  }
  return {};
}

Result<std::vector<JobInfo>> LibslurmApi::poll_jobs(Deadline) {
  if (Status status = load_job_list(); !status) return status.error();
  return jobs_;
}

Result<std::uint32_t> LibslurmApi::submit_launcher(const LauncherSpec& spec, Deadline) {
  if (Status status = load_job_list(); !status) return status.error();
  for (const JobInfo& job : jobs_) {
    // Anybody may write our tag into the comment of a job of his own.
    if (job.uid != getuid()) continue;
    if (job.comment == spec.tag && job.state != JobState::kEnded &&
        job.state != JobState::kCompleting)
      return job.id;
  }
  job_desc_msg_t desc;
  slurm_init_job_desc_msg(&desc);
  const std::string name = "symvirt-" + spec.vm;
  const std::string script =
      fmt::format("#!/bin/sh\nexec {} --vm {}\n", spec.launcher_path, spec.vm);
  const std::string output = "/var/log/" + name + ".log";
  const std::string gres = spec.gres.empty() ? "" : "gres:" + spec.gres;
  const std::string exclude = fmt::format("{}", fmt::join(spec.exclude_hosts, ","));
  const std::string only = fmt::format("{}", fmt::join(spec.only_hosts, ","));
  std::string folder = "/", path = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";
  char* environment[] = {path.data(), nullptr};
  desc.name = mutable_text(name);
  desc.comment = mutable_text(spec.tag);
  desc.partition = mutable_text(spec.partition);
  desc.qos = mutable_text(spec.qos);
  desc.account = mutable_text(spec.account);
  desc.reservation = mutable_text(spec.reservation);
  desc.tres_per_node = mutable_text(gres);
  desc.exc_nodes = mutable_text(exclude);
  desc.req_nodes = mutable_text(only);
  desc.script = mutable_text(script);
  desc.std_out = mutable_text(output);
  desc.std_err = mutable_text(output);
  desc.open_mode = OPEN_MODE_APPEND;
  desc.work_dir = folder.data();
  desc.environment = environment;
  desc.env_size = 1;
  desc.user_id = getuid();
  desc.group_id = getgid();
  desc.min_nodes = desc.max_nodes = 1;
  desc.num_tasks = 1;
  desc.cpus_per_task = static_cast<std::uint16_t>(spec.cpus);
  desc.min_cpus = static_cast<std::uint32_t>(spec.cpus);
  desc.pn_min_memory = static_cast<std::uint64_t>(spec.memory_mib);
  desc.time_limit = INFINITE;
  // A launcher that Slurm requeued would boot a second copy of the VM.
  desc.requeue = 0;
  submit_response_msg_t* response = nullptr;
  if (slurm_submit_batch_job(&desc, &response) != SLURM_SUCCESS)
    return slurm_error("launcher job for " + spec.vm);
  const std::uint32_t id = response->job_id;
  slurm_free_submit_response_response_msg(response);
  return id;
}

Status LibslurmApi::cancel_launchers(const std::string& tag_prefix, Deadline deadline) {
  if (Status status = load_job_list(); !status) return status;
  for (const JobInfo& job : jobs_) {
    if (job.uid != getuid() || job.comment.rfind(tag_prefix, 0) != 0 ||
        job.state == JobState::kEnded)
      continue;
    if (Status status = cancel_job(job.id, deadline);
        !status && status.error().code != Code::kNotFound)
      return status;
  }
  return {};
}

Status LibslurmApi::cancel_job(std::uint32_t job, Deadline) {
  if (slurm_kill_job(job, SIGKILL, 0) == SLURM_SUCCESS) return {};
  return slurm_error(fmt::format("job {}", job));
}

Status LibslurmApi::update_node(const std::string& node, std::uint32_t state,
                                const std::string& reason) {
  update_node_msg_t msg;
  slurm_init_update_node_msg(&msg);
  msg.node_names = mutable_text(node);
  msg.node_state = state;
  msg.reason = mutable_text(reason);
  msg.reason_uid = getuid();
  if (slurm_update_node(&msg) == SLURM_SUCCESS) return {};
  return slurm_error("node " + node);
}

Result<NodeInfo> LibslurmApi::find_node(const std::string& node, Deadline deadline) {
  auto nodes = poll_nodes(deadline);
  if (!nodes) return nodes.error();
  auto it =
      std::find_if(nodes->begin(), nodes->end(), [&](const NodeInfo& n) { return n.name == node; });
  if (it == nodes->end()) return Error{Code::kNotFound, "node " + node + ": not in slurm.conf"};
  return *it;
}

bool somebody_elses(const NodeInfo& node) {
  return !node.reason.empty() && node.reason.rfind("symvirt:", 0) != 0 &&
         (node.drain || node.down || node.fail);
}

Status LibslurmApi::set_node_down(const std::string& node, const std::string& reason,
                                  Deadline deadline) {
  auto info = find_node(node, deadline);
  if (!info) return info.error();
  return update_node(node, NODE_STATE_DOWN, somebody_elses(*info) ? info->reason : reason);
}

Status LibslurmApi::set_node_drain(const std::string& node, const std::string& reason,
                                   Deadline deadline) {
  auto info = find_node(node, deadline);
  if (!info) return info.error();
  if (somebody_elses(*info)) return {};
  return update_node(node, NODE_STATE_DRAIN, reason);
}

Status LibslurmApi::resume_node(const std::string& node, Deadline deadline) {
  auto info = find_node(node, deadline);
  if (!info) return info.error();
  if (somebody_elses(*info))
    return Error{Code::kPrecondition,
                 fmt::format("node {}: its reason is not ours: {}", node, info->reason)};
  // NODE_RESUME does more than undo a drain: it ends power saving states, too.
  if (!info->drain && !info->down && !info->fail) return {};
  return update_node(node, NODE_RESUME, "");
}

Status LibslurmApi::power_down(const std::string& node, Deadline) {
  return update_node(node, NODE_STATE_POWER_DOWN, "");
}

Status LibslurmApi::set_admin_comment(std::uint32_t job, const std::string& line, Deadline) {
  if (Status status = load_job_list(); !status) return status;
  std::string comment;
  for (const JobInfo& j : jobs_) {
    if (j.id == job) comment = j.admin_comment;
  }
  if (comment.find(line) != std::string::npos) return {};  // a repetition
  comment += (comment.empty() ? "" : "; ") + line;
  // What is oldest is kept: it is how the job was submitted.
  if (comment.size() > kLongestComment)
    comment = comment.substr(0, kLongestComment / 4) + " ... " +
              comment.substr(comment.size() - kLongestComment / 2);
  job_desc_msg_t desc;
  slurm_init_job_desc_msg(&desc);
  desc.job_id = job;
  desc.admin_comment = mutable_text(comment);
  if (slurm_update_job(&desc) == SLURM_SUCCESS) return {};
  return slurm_error(fmt::format("comment of job {}", job));
}

Status LibslurmApi::set_time_limit(std::uint32_t job, std::uint32_t minutes, Deadline) {
  if (Status status = load_job_list(); !status) return status;
  for (const JobInfo& j : jobs_) {
    if (j.id != job || j.time_limit_min == 0 || j.time_limit_min >= minutes) continue;
    job_desc_msg_t desc;
    slurm_init_job_desc_msg(&desc);
    desc.job_id = job;
    desc.time_limit = minutes;
    if (slurm_update_job(&desc) == SLURM_SUCCESS) return {};
    return slurm_error(fmt::format("time limit of job {}", job));
  }
  return {};
}

}  // namespace

std::unique_ptr<SlurmApi> make_libslurm_api() { return std::make_unique<LibslurmApi>(); }

}  // namespace symvirt
