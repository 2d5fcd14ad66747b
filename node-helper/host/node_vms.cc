// Starting, stopping and moving VMs.
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "common/log.h"
#include "common/subprocess.h"
#include "node-helper/host/migration_end.h"
#include "node-helper/host/node.h"
#include "node-helper/host/params.h"

namespace symvirt::host {

using nlohmann::json;
using std::chrono::milliseconds;

namespace {

constexpr milliseconds kDestroyMargin{
    5'000};  // of a shutdown's time, kept for the way without the guest
constexpr milliseconds kAskAgain{5'000};

bool gone(const VmLook& look) {
  return look.state == VmState::kAbsent || look.state == VmState::kShutoff;
}

// The texts of QEMU's block layer (block/file-posix.c, block/qcow2.c; qemu-img has no exit codes
// for them): somebody has the file open, here or on another host.
bool says_locked(const std::string& output) {
  for (const char* text : {": Failed to get shared \"", ": Failed to get \"",
                           ": Failed to lock byte ", "\nIs another process using the image ["}) {
    if (output.find(text) != std::string::npos) return true;
  }
  return false;
}

// And: what lies there has never been an overlay, such as one whose making was cut short.
bool says_no_image(const std::string& output) {
  return output.find(": Image is not in qcow2 format") != std::string::npos ||
         output.find(": qcow2 header too short") != std::string::npos;
}

// Whether an overlay's path can be used for a new one: nothing is there, or nobody uses what is.
// Any doubt (a file server that does not answer) speaks against it: the file may be a running VM's
// disk.
Status may_replace(const std::string& path, const std::string& qemu_img, Deadline deadline) {
  const auto absent = [&path] {
    struct stat info {};
    return lstat(path.c_str(), &info) != 0 && errno == ENOENT;
  };
  const auto no = [&path](Code code, const std::string& why) -> Status {
    return Error{code, fmt::format("overlay {}: {}", path, why)};
  };
  if (absent()) return {};
  struct stat info {};
  if (lstat(path.c_str(), &info) != 0)
    return no(Code::kRefused, fmt::format("cannot be looked at: {}", std::strerror(errno)));
  if (!S_ISREG(info.st_mode)) return no(Code::kRefused, "is there and is no file; remove it");
  auto seen = run_program({qemu_img, "info", "-f", "qcow2", path}, deadline);
  if (!seen) return seen.error().with(fmt::format("overlay {}", path));
  if (seen->ok() || says_no_image(seen->output) || absent()) return {};
  if (says_locked(seen->output))
    return no(Code::kPrecondition, "in use: a copy of the VM runs somewhere; stop it first");
  return no(Code::kRefused,
            fmt::format("is there, and whether a copy of the VM uses it cannot be told: {}; remove "
                        "it by hand if none runs",
                        seen->why()));
}

}  // namespace

// An overlay that some QEMU has open (anywhere its locks reach) belongs to a running copy of the
// VM.
Status Node::make_overlays(const json& overlays, Deadline deadline,
                           std::vector<std::string>& made) {
  for (const json& overlay : overlays) {
    Params p(overlay);
    const std::string path = p.text("path", 4095);
    const std::string base = p.text("base", 4095);
    const std::string format = p.name("base_format");
    if (Status s = p.status(); !s) return s.error().with("overlays");
    if (!path.starts_with('/') || !base.starts_with('/'))
      return Error{Code::kInvalidArgument,
                   fmt::format("overlays: {}: paths must be absolute", path)};
    if (Status s = may_replace(path, config_.qemu_img, deadline); !s) return s;
    if (unlink(path.c_str()) != 0 && errno != ENOENT)
      return Error{Code::kRefused, fmt::format("overlay {}: is there and cannot be replaced: {}",
                                               path, std::strerror(errno))};
    auto created = run_program(
        {config_.qemu_img, "create", "-q", "-f", "qcow2", "-b", base, "-F", format, path},
        deadline);
    if (!created) return created.error().with(fmt::format("overlay {}", path));
    if (!created->ok())
      return Error{Code::kRefused, fmt::format("overlay {}: {}", path, created->why())};
    made.push_back(path);
  }
  return {};
}

void Node::remove_overlays(const std::string& vm, const std::vector<std::string>& overlays) {
  for (const std::string& path : overlays) {
    if (unlink(path.c_str()) != 0 && errno != ENOENT)
      log_warning(fmt::format("{}: overlay {}: not removed: {}", vm, path, std::strerror(errno)));
  }
}

Result<json> Node::vm_start(const RpcRequest& request, const OperationLog::Progress&) {
  Params p(request.params);
  const std::string vm = p.name("vm");
  const std::int64_t job_id = p.number_or("job_id", 0, UINT32_MAX, 0);
  const std::string xml = p.text("xml", 1 << 20);
  const json overlays = request.params.contains("overlays") ? p.objects("overlays") : json::array();
  if (Status s = p.status(); !s) return s.error();
  auto asked = parse_domain(xml);
  if (!asked) return asked.error().with("field xml");
  if (asked->name != vm)
    return Error{Code::kInvalidArgument,
                 fmt::format("field xml: its name is {}, not {}", asked->name, vm)};
  const Deadline deadline = request.deadline;
  auto lock = hold(vm, request);
  if (!lock) return lock.error();
  auto look = hypervisor_.look(vm, deadline);
  if (!look) return look.error();
  const VmRecord record = store_.vm(vm);
  if (look->state == VmState::kIncoming)
    return Error{Code::kPrecondition, fmt::format("{}: is arriving from another host", vm)};
  if (!gone(*look)) return vm_to_json(vm, *look, record);
  if (job_id != 0 && record.lease.job_id != job_id) {
    return Error{Code::kPrecondition,
                 fmt::format("{}: launcher job {} holds no lease on {}", vm, job_id, config_.host)};
  }
  std::optional<Pinning> pinning;
  if (config_.pin && job_id != 0) pinning = Pinning{record.lease.cpus, record.lease.numa_node};

  std::vector<std::string> made;
  Status status = make_overlays(overlays, deadline, made);
  if (status) {
    status = store_.update([&](NodeState& state) -> Status {
      VmRecord& r = state.vms[vm];
      r.overlays = made;
      r.ended_here = false;
      return {};
    });
  }
  if (status) {
    auto prepared = prepare_domain(xml, pinning, made);
    status = prepared ? hypervisor_.create(*prepared, deadline) : Status(prepared.error());
  }
  if (!status) {
    // What may have begun to run keeps its disk.
    if (!status.error().unknown_effect()) remove_overlays(vm, made);
    return explain_attach(status.error()).with(fmt::format("start of {} on {}", vm, config_.host));
  }
  if (Status s = store_.update([&](NodeState& state) -> Status {
        state.vms[vm].memory_bytes = 0;  // it has it now
        return {};
      });
      !s)
    log_error(s.error().message);
  look = hypervisor_.look(vm, deadline);
  if (!look) return look.error();
  return vm_to_json(vm, *look, store_.vm(vm));
}

Status Node::wait_gone(const std::string& vm, Deadline deadline) {
  for (;;) {
    auto look = hypervisor_.look(vm, deadline);
    if (look && gone(*look)) return {};
    std::unique_lock lock(mutex_);
    if (stopping_) return Error{Code::kUnavailable, "noded is ending"};
    if (deadline.expired())
      return Error{Code::kDeadline, fmt::format("{}: has not ended in time", vm)};
    const std::uint64_t seen = changes_;
    changed_.wait_until(
        lock, std::min(deadline.time(), std::chrono::steady_clock::now() + milliseconds(500)),
        [&] { return stopping_ || changes_ != seen; });
  }
}

Result<json> Node::vm_stop(const RpcRequest& request, const OperationLog::Progress&) {
  Params p(request.params);
  const std::string vm = p.name("vm");
  const std::string mode = p.text("mode");
  if (Status s = p.status(); !s) return s.error();
  if (mode != "shutdown" && mode != "destroy" && mode != "leftover")
    return Error{Code::kInvalidArgument, "field mode must be shutdown, destroy or leftover"};
  const Deadline deadline = request.deadline;
  auto lock = hold(vm, request);
  if (!lock) return lock.error();
  auto look = hypervisor_.look(vm, deadline);
  if (!look) return look.error();
  const bool leftover = look->state == VmState::kIncoming || look->state == VmState::kPaused;
  if (mode == "leftover" && !leftover) return json::object();
  if (look->migrating)
    return Error{Code::kPrecondition,
                 fmt::format("{}: is moving to another host; vm.migrate_abort comes first", vm)};
  std::vector<std::string> overlays = look->domain.overlays;
  if (!gone(*look)) {
    // A half-arrived domain is not the VM: its disk belongs to the one that runs elsewhere.
    if (look->state == VmState::kIncoming || mode == "leftover") overlays.clear();
    {
      std::lock_guard guard(mutex_);
      stopped_by_us_.insert(vm);
    }
    bool ended = false;
    if (mode == "shutdown" && look->state == VmState::kRunning) {
      const Deadline patience =
          Deadline::at(deadline.time() - kDestroyMargin)
              .earlier(Deadline::after(std::chrono::seconds(config_.shutdown_s)));
      while (!ended && !patience.expired() && !stopping_) {
        if (Status s = hypervisor_.shutdown(vm, patience); !s) log_info(s.error().message);
        ended = wait_gone(vm, patience.earlier(Deadline::after(kAskAgain))).has_value();
      }
    }
    if (!ended) {
      Status s = hypervisor_.destroy(vm, deadline);
      if (!s && s.error().code != Code::kNotFound) return s.error();
      if (Status waited = wait_gone(vm, deadline); !waited) return waited.error();
    }
  } else {
    const VmRecord record = store_.vm(vm);
    if (record.ended_here) overlays = record.overlays;
  }
  remove_overlays(vm, overlays);
  Status s = store_.update([&](NodeState& state) -> Status {
    auto it = state.vms.find(vm);
    if (it == state.vms.end()) return {};
    it->second.overlays.clear();
    it->second.ended_here = false;
    return {};
  });
  if (!s) return s.error();
  return json::object();
}

Result<json> Node::vm_suspend(const RpcRequest& request, const OperationLog::Progress&) {
  const std::string vm = request.params["vm"];
  auto lock = hold(vm, request);
  if (!lock) return lock.error();
  auto look = look_here(vm, request.deadline);
  if (!look) return look.error();
  if (look->state == VmState::kPaused) return json::object();
  Status s = hypervisor_.suspend(vm, request.deadline);
  if (!s) return s.error();
  return json::object();
}

Result<json> Node::vm_resume(const RpcRequest& request, const OperationLog::Progress&) {
  const std::string vm = request.params["vm"];
  auto lock = hold(vm, request);
  if (!lock) return lock.error();
  auto look = look_here(vm, request.deadline);
  if (!look) return look.error();
  if (look->state == VmState::kRunning) return json::object();
  if (look->migrating)
    return Error{Code::kPrecondition, fmt::format("{}: is moving to another host", vm)};
  Status s = hypervisor_.resume(vm, request.deadline);
  if (!s) return s.error();
  return json::object();
}

Result<json> Node::vm_migrate(const RpcRequest& request, const OperationLog::Progress& progress) {
  Params p(request.params);
  const std::string vm = p.name("vm");
  MigrateArgs args;
  args.to = p.name("to");
  args.max_downtime_ms = p.number_or("max_downtime_ms", 1, 3'600'000, 0);
  if (Status s = p.status(); !s) return s.error();
  if (args.to == config_.host)
    return Error{Code::kInvalidArgument, fmt::format("field to: {} is this host", args.to)};
  auto lock = hold(vm, request);
  if (!lock) return lock.error();
  auto look = look_here(vm, request.deadline);
  if (!look) return look.error();
  std::string holds;
  if (!look->domain.parts.empty()) holds = device_named(vm, look->domain.parts.front().slot);
  if (!look->domain.foreign_blockers.empty())
    holds = "the device " + look->domain.foreign_blockers.front();
  if (!holds.empty()) {
    return Error{
        Code::kPrecondition,
        fmt::format("{}: cannot move while it has {}; device.detach comes first", vm, holds)};
  }
  if (look->migrating) return Error{Code::kPrecondition, fmt::format("{}: is moving already", vm)};
  const std::int64_t memory = look->domain.memory_bytes;
  // Aborting takes a moment, and the caller should hear of it rather than of nothing.
  const milliseconds margin = std::min(milliseconds(1'500), request.deadline.left() / 4);
  const Deadline limit = Deadline::at(request.deadline.time() - margin);
  auto stats = hypervisor_.migrate(vm, args, limit, [&](const MigrateProgress& m) {
    progress({{"done_bytes", m.done_bytes},
              {"total_bytes", m.total_bytes},
              {"remaining_bytes", m.remaining_bytes},
              {"rate_bytes_s", m.rate_bytes_s}});
  });
  if (!stats) {
    auto now = hypervisor_.look(vm, Deadline::after(milliseconds(3'000)));
    const std::string here = now ? fmt::format("here it is {}", state_name(now->state))
                                 : "libvirt does not say what it is here";
    Error e = stats.error();
    return Error{e.code, fmt::format("{}; {}", e.message, here)};
  }
  guests_.vm_left(vm);
  Status s = store_.update([&](NodeState& state) -> Status {
    auto it = state.vms.find(vm);
    if (it != state.vms.end()) it->second.overlays.clear();
    return {};
  });
  if (!s) log_error(s.error().message);
  log_info(fmt::format("{}: runs on {} now: {} MiB of memory in {:.2f} s", vm, args.to,
                       memory >> 20, stats->total_s));
  return json{{"total_s", stats->total_s},
              {"downtime_ms", stats->downtime_ms},
              {"transferred_bytes", stats->transferred_bytes}};
}

Result<json> Node::vm_migrate_abort(const RpcRequest& request, const OperationLog::Progress&) {
  const std::string vm = request.params["vm"];
  auto look = hypervisor_.look(vm, request.deadline);
  if (!look) return look.error();
  if (gone(*look) || look->state == VmState::kIncoming)
    return Error{Code::kPrecondition, fmt::format("{}: has left {}", vm, config_.host)};
  if (!look->migrating) return json::object();
  if (Status s = still_current(request); !s) return s.error().with(vm);
  Status s = end_migration(hypervisor_, vm, request.deadline, [this] { return stopping_.load(); });
  if (!s) return s.error();
  return json::object();
}

}  // namespace symvirt::host
