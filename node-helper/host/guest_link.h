// The host's end of the virtio-serial port to symvirt-guestd (docs/protocols.md section 2).
//
// A call is one line with an id, repeated until it is answered: the port is opened again after a
// migration, a restart of libvirtd or of noded, and what was in it then is lost. guestd knows ids.
// Threads: any. Callers wait on their own threads and open the port themselves; nothing runs in the
// background.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>

#include "node-helper/host/hypervisor.h"

namespace symvirt::host {

class GuestLink {
 public:
  explicit GuestLink(Hypervisor& hypervisor) : hypervisor_(hypervisor) {}

  // Waits for guestd's answer until the deadline, or until `given_up` says true. kNotFound: no such
  // VM here. kUnavailable: guestd has not been heard of, or the VM has left. An id that is being
  // waited for already is joined.
  Result<nlohmann::json> call(const std::string& vm, const std::string& id,
                              const std::string& method, const nlohmann::json& params,
                              Deadline deadline, const std::function<bool()>& given_up);
  void vm_left(const std::string& vm);  // gone from this host: whoever waits is told
  void reopen_all();                    // the connection to libvirt is a new one
  bool heard_of(const std::string& vm) const;

 private:
  struct Line {
    std::string text;
    int waiters = 0;
    std::optional<Result<nlohmann::json>> answer;
  };
  struct Port;
  using PortPtr = std::shared_ptr<Port>;
  PortPtr port_of(const std::string& vm);
  Status open(const std::string& vm, const PortPtr& port, Deadline deadline);
  Status wait_step(const std::string& vm, const PortPtr& port, Line& line, Deadline deadline);

  Hypervisor& hypervisor_;
  mutable std::mutex mutex_;
  std::map<std::string, PortPtr> ports_;
};

}  // namespace symvirt::host
