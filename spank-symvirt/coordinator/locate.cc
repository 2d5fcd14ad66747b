#include "spank-symvirt/coordinator/locate.h"

namespace symvirt {
namespace {

constexpr std::int64_t kMs = 1'000'000;
constexpr int kLooksBeforeFence = 3;
// Both hosts were asked, but not at the same instant: a copy is not ended for what one look saw.
constexpr int kLooksBeforeEnd = 5;

// A host that does not answer means nothing until it has been fenced: then it runs nothing.
std::string state_at(const std::string& seen, bool fenced) {
  return seen == "unknown" && fenced ? "absent" : seen;
}
std::string at_source(const VmPart& vm) { return state_at(vm.seen_source, vm.source_fenced); }
std::string at_target(const VmPart& vm) { return state_at(vm.seen_target, vm.target_fenced); }

void note(Silence& silence, bool answered, std::int64_t now) {
  if (answered) {
    silence = {};
    return;
  }
  if (silence.looks++ == 0) silence.since_ns = now;
}

}  // namespace

void note_look(VmPart& vm, const std::string& source, const std::string& target, std::int64_t now) {
  vm.seen_source = source;
  vm.seen_target = target;
  note(vm.source_silence, source != "unknown", now);
  note(vm.target_silence, target != "unknown", now);
}

Located locate(const VmPart& vm) {
  const std::string source = at_source(vm);
  const std::string target = at_target(vm);
  const bool target_runs = target == "running";
  const bool source_runs = source == "running";
  if (target_runs && source_runs) {
    return {Where::kUnknown, "",
            vm.vm + " runs on " + vm.from + " and on " + vm.to + ": stop one of them by hand"};
  }
  if (target_runs) return {Where::kTarget, "", ""};
  if (source == "unknown") return {Where::kUnknown, vm.from, vm.from + " does not answer"};
  if (target == "unknown") return {Where::kUnknown, vm.to, vm.to + " does not answer"};
  if (source_runs && target == "absent") return {Where::kSource, "", ""};
  if (source == "absent" && target == "absent")
    return {Where::kNowhere, "", vm.vm + " is gone from both hosts"};
  return {Where::kUnknown, "",
          vm.vm + " is " + source + " on " + vm.from + " and " + target + " on " + vm.to};
}

bool silent_for_long(const VmPart& vm, const std::string& host, std::int64_t fence_after_ms,
                     std::int64_t now) {
  const Silence& silence = host == vm.from ? vm.source_silence : vm.target_silence;
  return silence.looks >= kLooksBeforeFence && now - silence.since_ns > fence_after_ms * kMs;
}

Help help_for(const VmPart& vm) {
  const std::string source = at_source(vm);
  const std::string target = at_target(vm);
  if (source == "migrating") return Help::kAbortMigration;
  if (source == "paused" && target == "absent") return Help::kResumeAtSource;
  // What arrived without ever running is no VM: beside a running source it is in the way, and
  // without a source the memory it would need is gone.
  const bool leftover = target == "incoming" || target == "paused";
  if (leftover && (source == "running" || source == "absent") && vm.tries > kLooksBeforeEnd)
    return Help::kEndLeftover;
  return Help::kNone;
}

}  // namespace symvirt
