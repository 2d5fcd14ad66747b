#include "node-helper/host/libvirt.h"

#include <fmt/format.h>
#include <libvirt/virterror.h>

#include "common/log.h"
#include "node-helper/host/libvirt_internal.h"
#include "node-helper/host/migration_end.h"

namespace symvirt::host {
namespace {

constexpr std::chrono::milliseconds kProgressEvery{200};
constexpr std::chrono::milliseconds kAbortGrace{8'000};

Code code_of(const virError& e) {
  const std::string_view message = e.message == nullptr ? "" : e.message;
  // libvirt has no code of its own for these.
  if (message.find("No more available PCI slots") != std::string_view::npos)
    return Code::kExhausted;
  if (message.find("in use by") != std::string_view::npos) return Code::kPrecondition;
  if (e.domain == VIR_FROM_RPC || e.domain == VIR_FROM_REMOTE) return Code::kUnavailable;
  switch (e.code) {
    case VIR_ERR_NO_DOMAIN:
      return Code::kNotFound;
    case VIR_ERR_NO_CONNECT:
    case VIR_ERR_INVALID_CONN:
    case VIR_ERR_OPERATION_TIMEOUT:
    case VIR_ERR_RPC:
      return Code::kUnavailable;
    case VIR_ERR_OPERATION_INVALID:
      return Code::kPrecondition;
    case VIR_ERR_OPERATION_ABORTED:
      return Code::kCancelled;
    case VIR_ERR_XML_ERROR:
    case VIR_ERR_XML_DETAIL:
    case VIR_ERR_INVALID_ARG:
    case VIR_ERR_CONFIG_UNSUPPORTED:
      return Code::kInvalidArgument;
    default:  // an open set, of another project
      return Code::kRefused;
  }
}

Result<Domain> find(virConnectPtr conn, const std::string& vm) {
  Domain domain(virDomainLookupByName(conn, vm.c_str()));
  if (!domain) return libvirt_error(vm);
  return domain;
}

std::string xml_of(virDomainPtr domain, unsigned flags) {
  char* text = virDomainGetXMLDesc(domain, flags);
  std::string xml = text == nullptr ? "" : text;
  std::free(text);
  return xml;
}

struct JobLook {
  int type = VIR_DOMAIN_JOB_NONE;
  bool outgoing = false;
  bool incoming = false;
  MigrateProgress progress;
};

JobLook job_of(virDomainPtr domain) {
  TypedParams params;
  JobLook job;
  if (virDomainGetJobStats(domain, &job.type, &params.data, &params.count, 0) != 0) {
    // libvirt 9: "migration statistics are available only on the source host".
    const virError* e = virGetLastError();
    job.incoming = e != nullptr && (e->code == VIR_ERR_OPERATION_UNSUPPORTED ||
                                    e->code == VIR_ERR_OPERATION_INVALID);
    return job;
  }
  int operation = VIR_DOMAIN_JOB_OPERATION_UNKNOWN;
  virTypedParamsGetInt(params.data, params.count, VIR_DOMAIN_JOB_OPERATION, &operation);
  job.outgoing =
      job.type != VIR_DOMAIN_JOB_NONE && operation == VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT;
  job.incoming = operation == VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN;
  auto get = [&](const char* name) { return param(params.data, params.count, name, 0); };
  job.progress = {get(VIR_DOMAIN_JOB_MEMORY_PROCESSED), get(VIR_DOMAIN_JOB_MEMORY_TOTAL),
                  get(VIR_DOMAIN_JOB_MEMORY_REMAINING), get(VIR_DOMAIN_JOB_MEMORY_BPS)};
  return job;
}

Result<VmLook> look_at(virConnectPtr conn, const std::string& vm) {
  VmLook look;
  auto domain = find(conn, vm);
  if (!domain) {
    if (domain.error().code == Code::kNotFound) return look;
    return domain.error();
  }
  const std::string xml = xml_of(domain->get(), 0);
  if (xml.empty()) {
    Error e = libvirt_error(vm + ": XML");
    if (e.code == Code::kNotFound) return look;
    return e;
  }
  auto parsed = parse_domain(xml);
  if (!parsed) return parsed.error();
  look.domain = std::move(*parsed);
  const JobLook job = job_of(domain->get());
  // The last of all: to ask for the job is to ask QEMU, which may take seconds, and a migration
  // that is in its switchover by then must not look like one that is not.
  int state = 0, reason = 0;
  if (virDomainGetState(domain->get(), &state, &reason, 0) != 0) {
    Error e = libvirt_error(vm + ": state");
    if (e.code == Code::kNotFound) return look;
    return e;
  }
  if (state == VIR_DOMAIN_SHUTOFF || state == VIR_DOMAIN_CRASHED) {
    look.state = VmState::kShutoff;
    return look;
  }
  look.migrating = job.outgoing;
  look.state = VmState::kRunning;
  if (state == VIR_DOMAIN_PAUSED) {
    // Both sides of a migration are paused for the same reason at its end; only the job tells them
    // apart.
    const bool arriving = job.incoming && (reason == VIR_DOMAIN_PAUSED_MIGRATION ||
                                           reason == VIR_DOMAIN_PAUSED_STARTING_UP);
    look.state = arriving ? VmState::kIncoming : VmState::kPaused;
  }
  return look;
}

}  // namespace

Error libvirt_error(const std::string& what) {
  const virError* e = virGetLastError();
  if (e == nullptr || e->code == VIR_ERR_OK)
    return Error{Code::kInternal, what + ": unknown error"};
  return Error{code_of(*e), fmt::format("{}: {}", what, e->message == nullptr ? "" : e->message)};
}

Libvirt::Libvirt(const NodedConfig& config) : config_(config), shared_(std::make_shared<Shared>()) {
  static std::once_flag once;
  std::call_once(once, [] {
    virInitialize();
    virSetErrorFunc(nullptr, [](void*, virErrorPtr) {});
    virEventRegisterDefaultImpl();
  });
  shared_->uri = config.libvirt_uri;
  // The loop has to turn now and then to see that it should end.
  wake_timer_ = virEventAddTimeout(
      250, [](int, void*) {}, nullptr, nullptr);
  event_thread_ = std::thread([this] {
    while (!stopping_) {
      if (virEventRunDefaultImpl() < 0) std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
  });
}

Libvirt::~Libvirt() {
  stopping_ = true;
  event_thread_.join();
  virEventRemoveTimeout(wake_timer_);
}

void Libvirt::subscribe(HypervisorEvents events) { shared_->events = std::move(events); }

Status Libvirt::domain_call(const std::string& what, const std::string& vm, Deadline deadline,
                            std::function<int(virDomainPtr)> work) {
  const std::string name = fmt::format("{}: {}", what, vm);
  auto result = call<int>(name, vm, deadline,
                          [name, vm, work = std::move(work)](virConnectPtr conn) -> Result<int> {
                            auto domain = find(conn, vm);
                            if (!domain) return domain.error().with(name);
                            const int rc = work(domain->get());
                            if (rc < 0) return libvirt_error(name);
                            return rc;
                          });
  return result ? Status() : Status(result.error());
}

Result<std::vector<std::string>> Libvirt::list(Deadline deadline) {
  using Names = std::vector<std::string>;
  return call<Names>("list", "", deadline, [](virConnectPtr conn) -> Result<Names> {
    virDomainPtr* domains = nullptr;
    const int count = virConnectListAllDomains(conn, &domains, VIR_CONNECT_LIST_DOMAINS_ACTIVE);
    if (count < 0) return libvirt_error("list of domains");
    Names names;
    for (int i = 0; i < count; ++i) {
      names.emplace_back(virDomainGetName(domains[i]));
      virDomainFree(domains[i]);
    }
    std::free(domains);
    return names;
  });
}

Result<VmLook> Libvirt::look(const std::string& vm, Deadline deadline) {
  return call<VmLook>("look at " + vm, vm, deadline,
                      [vm](virConnectPtr conn) { return look_at(conn, vm); });
}

Status Libvirt::create(const std::string& xml, Deadline deadline) {
  auto result = call<int>("start", "", deadline, [xml](virConnectPtr conn) -> Result<int> {
    Domain domain(virDomainCreateXML(conn, xml.c_str(), VIR_DOMAIN_NONE));
    if (!domain) return libvirt_error("start");
    return 0;
  });
  return result ? Status() : Status(result.error());
}

Status Libvirt::shutdown(const std::string& vm, Deadline deadline) {
  return domain_call("shut down", vm, deadline, [](virDomainPtr d) {
    return virDomainShutdownFlags(d, VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN);
  });
}

Status Libvirt::destroy(const std::string& vm, Deadline deadline) {
  return domain_call("destroy", vm, deadline, [](virDomainPtr d) { return virDomainDestroy(d); });
}

Status Libvirt::suspend(const std::string& vm, Deadline deadline) {
  return domain_call("suspend", vm, deadline, [](virDomainPtr d) { return virDomainSuspend(d); });
}

Status Libvirt::resume(const std::string& vm, Deadline deadline) {
  return domain_call("resume", vm, deadline, [](virDomainPtr d) { return virDomainResume(d); });
}

Status Libvirt::attach(const std::string& vm, const std::string& xml, Deadline deadline) {
  return domain_call("attach", vm, deadline, [xml](virDomainPtr d) {
    return virDomainAttachDeviceFlags(d, xml.c_str(), VIR_DOMAIN_AFFECT_LIVE);
  });
}

Status Libvirt::ask_detach(const std::string& vm, const std::string& alias, Deadline deadline) {
  // Unlike virDomainDetachDeviceFlags this one does not wait five seconds in libvirt.
  return domain_call("detach " + alias, vm, deadline, [alias](virDomainPtr d) {
    return virDomainDetachDeviceAlias(d, alias.c_str(), VIR_DOMAIN_AFFECT_LIVE);
  });
}

Status Libvirt::abort_migration(const std::string& vm, Deadline deadline) {
  return domain_call("abort migration", vm, deadline,
                     [](virDomainPtr d) { return virDomainAbortJob(d); });
}

Status Libvirt::pin(const std::string& vm, const Pinning& pinning, Deadline deadline) {
  return domain_call("pin", vm, deadline, [pinning](virDomainPtr d) {
    if (pinning.cpus.empty()) return 0;
    const int highest = *std::max_element(pinning.cpus.begin(), pinning.cpus.end());
    std::vector<unsigned char> all(VIR_CPU_MAPLEN(highest + 1));
    for (int cpu : pinning.cpus) VIR_USE_CPU(all.data(), cpu);
    virDomainInfo info{};
    if (virDomainGetInfo(d, &info) != 0) return -1;
    for (unsigned i = 0; i < info.nrVirtCpu; ++i) {
      std::vector<unsigned char> one(all.size());
      if (info.nrVirtCpu <= pinning.cpus.size())
        VIR_USE_CPU(one.data(), pinning.cpus[i]);
      else
        one = all;
      if (virDomainPinVcpuFlags(d, i, one.data(), static_cast<int>(one.size()),
                                VIR_DOMAIN_AFFECT_LIVE) != 0)
        return -1;
    }
    return virDomainPinEmulator(d, all.data(), static_cast<int>(all.size()),
                                VIR_DOMAIN_AFFECT_LIVE);
  });
}

Status Libvirt::remember(const std::string& vm, const LiveDomain& domain, Deadline deadline) {
  return domain_call("metadata", vm, deadline, [text = vm_metadata(domain)](virDomainPtr d) {
    return virDomainSetMetadata(d, VIR_DOMAIN_METADATA_ELEMENT, text.c_str(), kMetadataPrefix,
                                kMetadataUri, VIR_DOMAIN_AFFECT_LIVE);
  });
}

std::optional<MigrateProgress> Libvirt::job_progress(const std::string& vm) {
  using Progress = std::optional<MigrateProgress>;
  auto got = call<Progress>("progress of " + vm, vm, Deadline::after(std::chrono::seconds(2)),
                            [vm](virConnectPtr conn) -> Result<Progress> {
                              auto domain = find(conn, vm);
                              if (!domain) return domain.error();
                              const JobLook job = job_of(domain->get());
                              if (!job.outgoing) return Progress();
                              return Progress(job.progress);
                            });
  return got ? *got : std::nullopt;
}

Result<MigrateStats> Libvirt::migrate(const std::string& vm, const MigrateArgs& args,
                                      Deadline deadline,
                                      const std::function<void(const MigrateProgress&)>& progress) {
  std::string uri = config_.migrate_uri;
  uri.replace(uri.find("{host}"), 6, args.to);
  struct Slot {
    std::mutex mutex;
    std::condition_variable ready;
    std::optional<Result<int>> result;
  };
  auto slot = std::make_shared<Slot>();
  {
    std::lock_guard lock(shared_->mutex);
    shared_->completed.erase(vm);
  }
  const NodedConfig config = config_;
  const Deadline longest = Deadline::at(deadline.time() + 2 * kAbortGrace);
  const auto begun = std::chrono::steady_clock::now();
  std::function<Result<int>(virConnectPtr)> work = [vm, uri,
                                                    config](virConnectPtr conn) -> Result<int> {
    auto domain = find(conn, vm);
    if (!domain) return domain.error();
    TypedParams params;
    // Detached and gone here when it is over: the domain is transient. Not PERSIST_DEST, so also
    // there.
    unsigned flags = VIR_MIGRATE_LIVE | VIR_MIGRATE_PEER2PEER;
    if (config.migrate_unsafe) flags |= VIR_MIGRATE_UNSAFE;
    if (config.migrate_parallel > 0) {
      flags |= VIR_MIGRATE_PARALLEL;
      params.add(VIR_MIGRATE_PARAM_PARALLEL_CONNECTIONS, config.migrate_parallel);
    }
    if (config.migrate_mib_s > 0)
      params.add(VIR_MIGRATE_PARAM_BANDWIDTH,
                 static_cast<unsigned long long>(config.migrate_mib_s));
    if (config.pin) {
      // The other host pins with its own numbers when the VM has arrived.
      auto plain =
          without_pinning(xml_of(domain->get(), VIR_DOMAIN_XML_MIGRATABLE | VIR_DOMAIN_XML_SECURE));
      if (!plain) return plain.error();
      params.add(VIR_MIGRATE_PARAM_DEST_XML, *plain);
    }
    if (virDomainMigrateToURI3(domain->get(), uri.c_str(), params.data,
                               static_cast<unsigned>(params.count), flags) != 0)
      return libvirt_error(fmt::format("migration of {} to {}", vm, uri));
    return 0;
  };
  std::thread([this_call = [shared = shared_, work, longest]() -> Result<int> {
    auto connection = shared->connection(longest);
    if (!connection) return connection.error();
    return work((*connection)->conn);
  },
               slot] {
    Result<int> result = this_call();
    std::lock_guard lock(slot->mutex);
    slot->result = std::move(result);
    slot->ready.notify_all();
  }).detach();

  bool aborted = false, limited = false;
  std::unique_lock lock(slot->mutex);
  for (;;) {
    const auto next = std::chrono::steady_clock::now() + kProgressEvery;
    if (slot->ready.wait_until(lock, next, [&] { return slot->result.has_value(); })) break;
    if (stopping_) return Error{Code::kUnavailable, "noded is ending; the migration goes on"};
    if (longest.expired())
      return Error{
          Code::kDeadline,
          fmt::format("migration of {} to {}: not over, and not aborted, in time", vm, args.to)};
    lock.unlock();
    if (deadline.expired() && !aborted) {
      aborted = true;
      Status s = end_migration(*this, vm, longest, [this] { return stopping_.load(); });
      if (!s && s.error().code != Code::kPrecondition) log_warning(s.error().message);
    }
    if (auto p = job_progress(vm)) {
      if (!limited && args.max_downtime_ms > 0) {
        limited = true;
        Status s = domain_call("downtime limit", vm, Deadline::after(std::chrono::seconds(2)),
                               [ms = args.max_downtime_ms](virDomainPtr d) {
                                 return virDomainMigrateSetMaxDowntime(
                                     d, static_cast<unsigned long long>(ms), 0);
                               });
        if (!s) log_warning(s.error().message);
      }
      progress(*p);
    }
    lock.lock();
  }
  const Result<int> result = *slot->result;
  lock.unlock();
  if (!result) {
    if (aborted && !result.error().unknown_effect())
      return Error{Code::kCancelled,
                   fmt::format("migration of {} to {}: not over in time, aborted ({})", vm, args.to,
                               result.error().message)};
    return result.error();
  }
  MigrateStats stats;
  {
    // The event is on its way when the call returns, and may be behind it.
    std::lock_guard guard(shared_->mutex);
    if (auto it = shared_->completed.find(vm); it != shared_->completed.end()) stats = it->second;
  }
  if (stats.total_s == 0)
    stats.total_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
  return stats;
}

}  // namespace symvirt::host
