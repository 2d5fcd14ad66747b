#include "spank-symvirt/coordinator/resume.h"

#include <fmt/format.h>

#include "common/log.h"

namespace symvirt {
namespace {

// Slurm marks a node before it calls ResumeProgram, but the look at Slurm may be older than that.
constexpr std::int64_t kLookIsNew = 30'000'000'000;

bool powering_up(const View& view, const std::string& vm) {
  const NodeInfo* node = view.node(vm);
  return node != nullptr && node->powering_up && !node->down;
}

Transaction boot(const View& view, const std::string& vm) {
  Transaction tx;
  tx.kind = TxKind::kBoot;
  tx.cause = "resume";
  tx.policy = view.config->policy;
  VmPart part;
  part.vm = vm;
  if (const ClassConfig* c = view.config->class_of_vm(vm)) part.vm_class = c->name;
  part.wanted = part.moving = true;
  tx.vms.push_back(std::move(part));
  return tx;
}

}  // namespace

// What Slurm asked for while nobody listened, or what was known only to a daemon that is no more.
void ResumeWishes::adopt(const View& view) {
  adopted_ = true;
  for (const NodeInfo& node : *view.nodes) {
    if (view.config->class_of_vm(node.name) == nullptr || !powering_up(view, node.name)) continue;
    if (view.live_with(node.name) != nullptr) continue;
    log_info(node.name + ": resume, found in the state of its node");
    add(node.name, view.now_ns);
  }
}

std::vector<Transaction> ResumeWishes::take(const View& view) {
  if (!adopted_ && !view.nodes->empty()) adopt(view);
  std::vector<Transaction> out;
  for (auto it = since_ns_.begin(); it != since_ns_.end();) {
    const auto& [vm, since_ns] = *it;
    const Transaction* live = view.live_with(vm);
    if (live != nullptr) {
      const bool being_booted = live->kind == TxKind::kBoot && !live->cancel_requested;
      it = being_booted ? since_ns_.erase(it) : std::next(it);
    } else if (!view.up(vm)) {
      out.push_back(boot(view, vm));
      it = since_ns_.erase(it);
    } else if (powering_up(view, vm)) {
      out.push_back(stop_of(view, view.vms->at(vm), "resume of a node whose VM still runs"));
      ++it;
    } else if (view.now_ns - since_ns > kLookIsNew) {
      log_info(vm + ": runs, and Slurm does not wait for it: the resume was a late repetition");
      it = since_ns_.erase(it);
    } else {
      ++it;
    }
  }
  return out;
}

}  // namespace symvirt
