// Which calls an action consists of: functions of (transaction, action, configuration) and nothing
// else. Methods and parameters: docs/protocols.md sections 1 and 2.
#pragma once

#include <chrono>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/result.h"
#include "spank-symvirt/coordinator/config.h"
#include "spank-symvirt/coordinator/transaction.h"

namespace symvirt {

struct Call {
  std::string host;
  std::string method;
  nlohmann::json params;
  std::chrono::milliseconds timeout;
  // This field of the answer becomes a parameter of the next call, and the answer no part of the
  // action's result. Empty: an ordinary call.
  std::string hand_on = "";
};

// What every action needs at hand. References outlive it: it lives on the stack of Executor::start.
struct Context {
  const Transaction& tx;
  const VmPart& vm;
  const Action& action;
  std::int64_t generation;
  const ClassConfig* vm_class;
  int index;  // of the VM in its class, from 1

  std::chrono::milliseconds step() const { return std::chrono::milliseconds(tx.policy.step_ms); }
  // A call to noded on `host` that takes `timeout` at most.
  Call call(const std::string& host, const char* method,
            nlohmann::json extra = nlohmann::json::object()) const;
  Call call(const std::string& host, const char* method, std::chrono::milliseconds timeout,
            nlohmann::json extra) const;
  // The same, relayed to guestd.
  Call guest(const std::string& host, const std::string& method, std::chrono::milliseconds timeout,
             nlohmann::json guest_params) const;
  nlohmann::json slots() const;
};

std::vector<Call> plan_calls(const Context& c);
Result<std::vector<Call>> prepare_calls(const Context& c);
Result<std::vector<Call>> start_calls(const Context& c);
Result<std::vector<Call>> ready_calls(const Context& c, std::int64_t now_ns);
std::vector<Call> round_calls(const Context& c, const char* method);  // job.quiesce, job.resume
std::vector<Call> detach_calls(const Context& c);
Result<std::vector<Call>> attach_calls(const Context& c);
std::vector<Call> link_calls(const Context& c, std::int64_t now_ns);

}  // namespace symvirt
