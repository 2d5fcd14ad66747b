// A cluster's hosts, simulated: every host is a real RpcServer on loopback that answers as
// symvirt-noded and symvirt-guestd would, from one small model of where each VM is. For benchmarks
// and for tests of the coordinator that want the wire, thousands of hosts in one process. Threads:
// any.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "node-helper/protocol/rpc.h"

namespace symvirt::fakes {

class FakeSite {
 public:
  struct Options {
    int quiesce_ms = 0;  // what ranks take to answer
    int detach_ms = 0, migrate_ms = 0, link_ms = 0;
    int rounds = 2;  // of quiesce and of resume
  };
  FakeSite(Options options, Credentials& credentials)
      : options_(options), credentials_(credentials) {}
  ~FakeSite();

  // A host that listens on a port of its own.
  Status add_host(const std::string& host, std::vector<std::string> devices = {"hca0", "hca1"});
  // A VM that runs there with its device, at work for `job`.
  void add_vm(const std::string& vm, const std::string& host, std::uint32_t job);

  std::map<std::string, int> ports() const;
  std::map<std::string, std::string> addresses() const;  // all of them loopback
  std::string host_of(const std::string& vm) const;      // "" when it runs nowhere
  bool at_rest(const std::string& vm) const;
  std::int64_t calls() const { return calls_; }

 private:
  using json = nlohmann::json;
  struct Vm {
    std::string host;
    std::uint32_t job = 0;
    bool device = false;
    std::int64_t rest_epoch = 0, highest_epoch = 0;
    bool node_started = false;
  };
  struct Host {
    std::string name;
    std::vector<std::string> devices;
    std::int64_t generation = 0;
    std::map<std::string, std::string> reserved;  // device -> VM
    std::map<std::string, std::int64_t> leases;   // VM -> job
    std::unique_ptr<RpcServer> server;
  };

  Result<json> handle(Host& host, const RpcRequest& request);
  Result<json> host_method(Host& host, const std::string& vm, const RpcRequest& request);
  Result<json> lease_open(Host& host, const std::string& vm, const RpcRequest& request);
  Result<json> reserve(Host& host, const std::string& vm, const json& params);
  Result<json> migrate(Host& host, const std::string& vm, const RpcRequest& request);
  Result<json> guest(Host& host, const std::string& vm, const json& params);
  Result<json> quiesce(Vm& vm, const std::string& name, const json& params);
  json vm_info(const Host& host, const std::string& vm) const;
  json host_info(const Host& host) const;
  bool here(const Host& host, const std::string& vm) const;

  const Options options_;
  Credentials& credentials_;
  std::atomic<std::int64_t> calls_{0};
  mutable std::mutex mutex_;
  std::map<std::string, std::unique_ptr<Host>> hosts_;
  std::map<std::string, Vm> vms_;
};

}  // namespace symvirt::fakes
