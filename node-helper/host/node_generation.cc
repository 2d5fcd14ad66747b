// Generations: a coordinator that was replaced must not act after the one that came later, even
// when a request of his has waited here for something else to end.
#include <fmt/format.h>

#include <algorithm>

#include "node-helper/host/node.h"
#include "node-helper/host/params.h"

namespace symvirt::host {

using nlohmann::json;

namespace {

// What a guest is asked without anything changing.
bool only_asks_guest(const json& params) {
  auto method = params.find("method");
  return method != params.end() &&
         (*method == "guest.ping" || *method == "job.plan" || *method == "node.check");
}

Error stale(std::int64_t gen, std::int64_t newer) {
  return Error{
      Code::kPrecondition,
      fmt::format("generation {} is old: a symvirtd of generation {} has been here; two of "
                  "them must not run",
                  gen, newer)};
}

}  // namespace

Status Node::check_generation(const RpcRequest& request, bool changes) {
  const bool wanted =
      changes || (request.method == "guest.call" && !only_asks_guest(request.params));
  if (!request.params.contains("gen") && !wanted) return {};
  Params p(request.params);
  const std::int64_t gen = p.number("gen", 0, INT64_MAX);
  if (Status s = p.status(); !s) return s;
  return store_.update([&](NodeState& state) -> Status {
    if (gen < state.generation) return stale(gen, state.generation);
    state.generation = gen;
    return {};
  });
}

// The same operation, asked for by a later coordinator as well, is his, whoever asked first.
Node::OperationHold::OperationHold(Node& node, const std::string& op, const json& params)
    : node_(node), op_(op) {
  auto gen = params.find("gen");
  if (op_.empty() || gen == params.end() || !gen->is_number_integer()) return;
  std::lock_guard lock(node_.mutex_);
  AskedFor& asked = node_.asked_for_[op_];
  asked.generation = std::max(asked.generation, gen->get<std::int64_t>());
  ++asked.callers;
  counted_ = true;
}

Node::OperationHold::~OperationHold() {
  if (!counted_) return;
  std::lock_guard lock(node_.mutex_);
  auto it = node_.asked_for_.find(op_);
  if (it != node_.asked_for_.end() && --it->second.callers == 0) node_.asked_for_.erase(it);
}

Status Node::still_current(const json& params, std::int64_t newest) const {
  auto field = params.find("gen");
  if (field == params.end() || !field->is_number_integer()) return {};
  auto gen = field->get<std::int64_t>();
  if (gen >= newest) return {};
  if (auto op = params.find("op"); op != params.end() && op->is_string()) {
    std::lock_guard lock(mutex_);
    if (auto it = asked_for_.find(op->get<std::string>()); it != asked_for_.end())
      gen = std::max(gen, it->second.generation);
  }
  if (gen >= newest) return {};
  return stale(gen, newest);
}

Status Node::still_current(const RpcRequest& request) const {
  return still_current(request.params, store_.generation());
}

Result<std::unique_lock<TimedGate>> Node::hold(const std::string& vm, const RpcRequest& request) {
  std::unique_lock lock(*vm_lock(vm), request.deadline.time());
  if (!lock) return Error{Code::kDeadline, fmt::format("{}: another operation on it runs", vm)};
  if (Status s = still_current(request); !s) return s.error().with(vm);
  return lock;
}

}  // namespace symvirt::host
