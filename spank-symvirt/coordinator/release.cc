#include "spank-symvirt/coordinator/release.h"

#include <fmt/format.h>

#include <algorithm>

namespace symvirt {
namespace {

std::string tag_prefix(std::int64_t tx, const std::string& vm) {
  return fmt::format("symvirt:{}:{}:", tx, vm);
}

bool first_with_job(const Transaction& tx, const VmPart& vm, std::uint32_t job) {
  for (const VmPart& other : tx.vms) {
    if (std::find(other.jobs.begin(), other.jobs.end(), job) != other.jobs.end())
      return other.vm == vm.vm;
  }
  return false;
}

std::int64_t pause_seconds(const Transaction& tx) {
  return (pause_ns(tx) + 999'999'999) / 1'000'000'000;
}

std::string note_of(const Transaction& tx, const VmPart& vm) {
  if (tx.hopeless)
    return fmt::format("symvirt: {}: {} lost: {}", tx.id, vm.vm,
                       vm.failure ? vm.failure->message : "see symvirtctl show");
  std::string moved;
  for (const VmPart& v : tx.vms) {
    if (v.wanted && v.at == Where::kTarget) moved += fmt::format(" {}:{}>{}", v.vm, v.from, v.to);
  }
  if (moved.empty())
    return fmt::format("symvirt: {}: not moved ({})", tx.id,
                       vm.failure ? vm.failure->message : "see symvirtctl show");
  return fmt::format("symvirt: {}: moved{} pause {} s", tx.id, moved, pause_seconds(tx));
}

}  // namespace

std::string launcher_tag(std::int64_t tx, const std::string& vm, int attempt) {
  return tag_prefix(tx, vm) + std::to_string(attempt);
}

std::uint32_t pause_minutes(const Transaction& tx) {
  return static_cast<std::uint32_t>((pause_seconds(tx) + 59) / 60);
}

ReleaseWork release_work(const Context& c) {
  const bool moved = c.vm.at == Where::kTarget;
  const bool lives = c.vm.at == Where::kSource || moved;
  ReleaseWork work;
  auto give_back = [&](const std::string& host, bool fenced) {
    if (!host.empty() && !fenced) work.calls.push_back(c.call(host, "device.release"));
  };
  if (!moved) {
    if (c.vm.prepare_begun) give_back(c.vm.to, c.vm.target_fenced);
    if (c.vm.acquire_begun) work.tags.push_back(tag_prefix(c.tx.id, c.vm.vm));
  }
  if (c.tx.kind != TxKind::kBoot && (moved || !lives)) {
    give_back(c.vm.from, c.vm.source_fenced);
    if (c.vm.from_job != 0) work.jobs.push_back(c.vm.from_job);
  }
  if (c.tx.kind == TxKind::kEvacuate && c.vm.rest_begun) {
    work.note = note_of(c.tx, c.vm);
    for (std::uint32_t job : c.vm.jobs) {
      if (first_with_job(c.tx, c.vm, job)) work.noted.push_back(job);
    }
  }
  if (c.vm.lost || c.tx.boot_failed)
    work.down_reason = fmt::format("symvirt: {}", c.vm.failure ? c.vm.failure->message : "failed");
  return work;
}

std::vector<std::uint32_t> limits_to_work_out(const Transaction& tx, const ReleaseWork& work) {
  std::vector<std::uint32_t> jobs;
  if (pause_ns(tx) == 0) return jobs;
  for (std::uint32_t job : work.noted) {
    const bool known = std::any_of(tx.time_limits.begin(), tx.time_limits.end(),
                                   [&](const TimeLimit& l) { return l.job == job; });
    if (!known) jobs.push_back(job);
  }
  return jobs;
}

}  // namespace symvirt
