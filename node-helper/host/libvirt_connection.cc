// Opening, losing and re-opening the connection; events.
#include <fmt/format.h>
#include <libvirt/virterror.h>

#include "common/log.h"
#include "node-helper/host/libvirt_internal.h"

namespace symvirt::host {
namespace {

// A call that should be short and is still out after so long: the connection is given up.
constexpr std::chrono::seconds kHung{45};

using SharedRef = std::weak_ptr<Libvirt::Shared>;

void free_ref(void* opaque) { delete static_cast<SharedRef*>(opaque); }

std::shared_ptr<Libvirt::Shared> shared_of(void* opaque) {
  return static_cast<SharedRef*>(opaque)->lock();
}

void on_close(virConnectPtr conn, int reason, void* opaque) {
  if (auto shared = shared_of(opaque)) {
    log_warning(fmt::format("libvirt: connection lost (reason {}); it is opened again when needed",
                            reason));
    shared->broke(conn);
  }
}

VmEnd end_of(int event, int detail) {
  if (event != VIR_DOMAIN_EVENT_STOPPED) return VmEnd::kStopped;
  if (detail == VIR_DOMAIN_EVENT_STOPPED_MIGRATED) return VmEnd::kMigrated;
  if (detail == VIR_DOMAIN_EVENT_STOPPED_SAVED) return VmEnd::kSaved;
  return VmEnd::kStopped;
}

int on_lifecycle(virConnectPtr, virDomainPtr domain, int event, int detail, void* opaque) {
  auto shared = shared_of(opaque);
  const char* name = virDomainGetName(domain);
  if (!shared || name == nullptr) return 0;
  log_debug(fmt::format("libvirt: {}: event {} detail {}", name, event, detail));
  if (event == VIR_DOMAIN_EVENT_STOPPED) {
    if (shared->events.ended) shared->events.ended(name, end_of(event, detail));
  } else if (shared->events.changed) {
    shared->events.changed(name);
  }
  return 0;
}

void on_removed(virConnectPtr, virDomainPtr domain, const char* alias, void* opaque) {
  auto shared = shared_of(opaque);
  if (shared && shared->events.device_removed)
    shared->events.device_removed(virDomainGetName(domain), alias);
}

void on_removal_failed(virConnectPtr, virDomainPtr domain, const char* alias, void* opaque) {
  auto shared = shared_of(opaque);
  if (shared && shared->events.removal_failed)
    shared->events.removal_failed(virDomainGetName(domain), alias);
}

void on_job_completed(virConnectPtr, virDomainPtr domain, virTypedParameterPtr params, int count,
                      void* opaque) {
  auto shared = shared_of(opaque);
  const char* name = virDomainGetName(domain);
  if (!shared || name == nullptr) return;
  MigrateStats stats;
  stats.total_s =
      static_cast<double>(param(params, count, VIR_DOMAIN_JOB_TIME_ELAPSED, 0)) / 1000.0;
  stats.downtime_ms = param(params, count, VIR_DOMAIN_JOB_DOWNTIME, -1);
  stats.transferred_bytes = param(params, count, VIR_DOMAIN_JOB_MEMORY_PROCESSED, 0);
  std::lock_guard lock(shared->mutex);
  shared->completed[name] = stats;
}

}  // namespace

Libvirt::Connection::~Connection() {
  if (conn == nullptr) return;
  virConnectUnregisterCloseCallback(conn, on_close);
  for (int id : callbacks) virConnectDomainEventDeregisterAny(conn, id);
  virConnectClose(conn);
}

void Libvirt::Shared::broke(virConnectPtr conn) {
  std::lock_guard lock(mutex);
  if (current && current->conn == conn) current->dead = true;
}

Result<Libvirt::ConnectionPtr> Libvirt::Shared::open() {
  auto fresh = std::make_shared<Connection>();
  fresh->conn = virConnectOpen(uri.c_str());
  if (fresh->conn == nullptr) {
    Error e = libvirt_error("libvirt: " + uri);
    return Error{Code::kUnavailable, e.message + "; is libvirtd running?"};
  }
  virConnectSetKeepAlive(fresh->conn, 5, 4);
  auto ref = [this] { return new SharedRef(weak_from_this()); };
  virConnectRegisterCloseCallback(fresh->conn, on_close, ref(), free_ref);
  auto listen = [&](int id, auto function) {
    // By way of void(*)(): libvirt's generic type is a cast by design.
    auto generic = reinterpret_cast<virConnectDomainEventGenericCallback>(
        reinterpret_cast<void (*)()>(function));
    const int callback =
        virConnectDomainEventRegisterAny(fresh->conn, nullptr, id, generic, ref(), free_ref);
    if (callback >= 0) fresh->callbacks.push_back(callback);
    return callback >= 0;
  };
  if (!listen(VIR_DOMAIN_EVENT_ID_LIFECYCLE, on_lifecycle) ||
      !listen(VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, on_removed) ||
      !listen(VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED, on_removal_failed) ||
      !listen(VIR_DOMAIN_EVENT_ID_JOB_COMPLETED, on_job_completed)) {
    Error e = libvirt_error("libvirt: subscribe to events");
    return Error{Code::kUnavailable, e.message};
  }
  log_info(fmt::format("libvirt: connected to {}", uri));
  return fresh;
}

Result<Libvirt::ConnectionPtr> Libvirt::Shared::connection(Deadline deadline) {
  auto usable = [this]() -> ConnectionPtr {
    std::lock_guard lock(mutex);
    if (!current || current->dead) return nullptr;
    const auto now = std::chrono::steady_clock::now();
    for (const auto& [id, since] : running) {
      if (now - since > kHung) {
        log_error("libvirt: a call has not come back; its connection is given up");
        current->dead = true;
        running.clear();
        return nullptr;
      }
    }
    return current;
  };
  if (auto c = usable()) return c;
  std::unique_lock lock(open_mutex, deadline.time());
  if (!lock)
    return Error{Code::kUnavailable, fmt::format("libvirt: {}: not connected in time", uri)};
  if (auto c = usable()) return c;
  auto fresh = open();
  if (!fresh) return fresh.error();
  ConnectionPtr old;
  {
    std::lock_guard guard(mutex);
    old = std::exchange(current, *fresh);
  }
  // Closing a connection that hangs may hang.
  if (old) std::thread([old = std::move(old)]() mutable { old.reset(); }).detach();
  if (events.changed) events.changed("");
  return *fresh;
}

}  // namespace symvirt::host
