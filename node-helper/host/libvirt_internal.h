// RAII over libvirt's handles, and what libvirt.cc and libvirt_connection.cc share.
#pragma once

#include <libvirt/libvirt.h>

#include <atomic>
#include <memory>
#include <thread>

#include "node-helper/host/libvirt.h"
#include "node-helper/host/timed_gate.h"

namespace symvirt::host {

struct FreeDomain {
  void operator()(virDomainPtr d) const { virDomainFree(d); }
};
using Domain = std::unique_ptr<virDomain, FreeDomain>;

struct FreeStream {
  void operator()(virStreamPtr s) const { virStreamFree(s); }
};
using Stream = std::unique_ptr<virStream, FreeStream>;

class TypedParams {
 public:
  TypedParams() = default;
  TypedParams(const TypedParams&) = delete;
  TypedParams& operator=(const TypedParams&) = delete;
  ~TypedParams() { virTypedParamsFree(data, count); }

  void add(const char* name, const std::string& value) {
    virTypedParamsAddString(&data, &count, &room, name, value.c_str());
  }
  void add(const char* name, int value) { virTypedParamsAddInt(&data, &count, &room, name, value); }
  void add(const char* name, unsigned long long value) {
    virTypedParamsAddULLong(&data, &count, &room, name, value);
  }
  virTypedParameterPtr data = nullptr;
  int count = 0;
  int room = 0;
};

inline std::int64_t param(virTypedParameterPtr params, int count, const char* name,
                          std::int64_t otherwise) {
  unsigned long long value = 0;
  return virTypedParamsGetULLong(params, count, name, &value) == 1
             ? static_cast<std::int64_t>(value)
             : otherwise;
}

struct Libvirt::Connection {
  virConnectPtr conn = nullptr;
  std::atomic<bool> dead{false};
  std::vector<int> callbacks;
  ~Connection();
};

struct Libvirt::Shared : std::enable_shared_from_this<Libvirt::Shared> {
  std::string uri;
  HypervisorEvents events;
  TimedGate open_mutex;  // one thread opens
  std::mutex mutex;
  ConnectionPtr current;
  std::uint64_t next_call = 1;
  std::map<std::uint64_t, std::chrono::steady_clock::time_point>
      running;                                    // calls that should be short
  std::map<std::string, MigrateStats> completed;  // of outgoing migrations, by VM

  Result<ConnectionPtr> connection(Deadline deadline);
  Result<ConnectionPtr> open();
  void broke(virConnectPtr conn);
};

template <typename T>
Result<T> Libvirt::call(const std::string& what, const std::string& vm, Deadline deadline,
                        std::function<Result<T>(virConnectPtr)> work, bool may_be_long) {
  return detached_.run<T>(
      what, vm, deadline,
      [shared = shared_, deadline, work = std::move(work), may_be_long]() -> Result<T> {
        auto connection = shared->connection(deadline);
        if (!connection) return connection.error();
        // Nobody waits any more: do not begin something nobody knows of.
        if (deadline.expired()) return Error{Code::kDeadline, "not begun in time"};
        std::uint64_t id = 0;
        {
          std::lock_guard lock(shared->mutex);
          id = shared->next_call++;
          if (!may_be_long) shared->running[id] = std::chrono::steady_clock::now();
        }
        Result<T> result = work((*connection)->conn);
        if (virConnectIsAlive((*connection)->conn) == 0) shared->broke((*connection)->conn);
        std::lock_guard lock(shared->mutex);
        shared->running.erase(id);
        return result;
      });
}

}  // namespace symvirt::host
