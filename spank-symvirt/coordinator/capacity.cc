#include "spank-symvirt/coordinator/capacity.h"

#include <algorithm>
#include <charconv>
#include <string_view>

namespace symvirt {
namespace {

using Counts = std::map<std::string, int>;  // by GRES

Counts demand_of(const ClassConfig& c) {
  Counts counts;
  for (const SlotConfig& slot : c.slots) ++counts[slot.gres];
  return counts;
}

// "symvirt:TX:VM:ATTEMPT" -> VM; empty: no launcher job of ours. Anybody may write that into the
// comment of a job of his own.
std::string vm_of_launcher(const View& view, const JobInfo& job) {
  constexpr std::string_view kBegin = "symvirt:";
  const std::size_t begin = job.comment.find(':', kBegin.size());
  const std::size_t end = job.comment.rfind(':');
  if (job.uid != view.own_uid || job.comment.rfind(kBegin, 0) != 0 || begin >= end) return "";
  return job.comment.substr(begin + 1, end - begin - 1);
}

// What launcher jobs hold of each host.
std::map<std::string, Counts> held_by_launchers(const View& view) {
  std::map<std::string, Counts> held;
  for (const JobInfo& job : *view.jobs) {
    if (job.state == JobState::kPending || job.state == JobState::kEnded) continue;
    const ClassConfig* c = view.config->class_of_vm(vm_of_launcher(view, job));
    if (c == nullptr) continue;
    for (const std::string& host : job.nodes) {
      for (const auto& [gres, n] : demand_of(*c)) held[host][gres] += n;
    }
  }
  return held;
}

// What all VMs together may hold: of healthy hosts, without what other jobs have taken. A host
// whose CPUs are all taken has nothing to give but what our launchers hold already.
Counts supply_of(const View& view) {
  Counts supply;
  for (const ClassConfig& c : view.config->classes) {
    for (const SlotConfig& slot : c.slots) supply[slot.gres] = -view.config->spares;
  }
  std::map<std::string, Counts> held = held_by_launchers(view);
  for (const NodeInfo& n : *view.nodes) {
    if (n.partitions.find(view.config->hosts_partition) == std::string::npos) continue;
    if (n.drain || n.fail || n.down || n.not_responding) continue;
    for (auto& [gres, count] : supply) {
      const int ours = held[n.name][gres];
      const int others = std::max(gres_count(n.gres_used, gres) - ours, 0);
      count += n.full ? ours : std::max(gres_count(n.gres, gres) - others, 0);
    }
  }
  return supply;
}

struct ClassNodes {
  const ClassConfig* config;
  Counts demand;                       // of one VM
  std::vector<const NodeInfo*> spare;  // promised, not in use
  std::vector<const NodeInfo*> ours;   // taken back by us, or a boot that found no host
};

ClassNodes look_at(const View& view, const ClassConfig& c, Counts& room) {
  ClassNodes found{&c, demand_of(c), {}, {}};
  for (const std::string& vm : c.nodes) {
    const NodeInfo* node = view.node(vm);
    if (node == nullptr) continue;
    const bool up = view.up(vm);
    const bool busy = up || view.live_with(vm) != nullptr || !view.jobs_on(vm).empty();
    const bool out_of_use = node->drain || node->down;
    if (out_of_use && !busy && !node->powering_down && node->reason.rfind(kNoHostReason, 0) == 0)
      found.ours.push_back(node);
    if (out_of_use && !up) continue;
    for (const auto& [gres, n] : found.demand) room[gres] -= n;
    if (!out_of_use && !busy && !node->allocated) found.spare.push_back(node);
  }
  return found;
}

}  // namespace

void keep_capacity(const View& view, Decisions& out) {
  if (!view.config->capacity) return;
  Counts room = supply_of(view);
  std::vector<ClassNodes> classes;
  for (const ClassConfig& c : view.config->classes) {
    if (!c.slots.empty()) classes.push_back(look_at(view, c, room));
  }
  // A GRES that two classes share is promised once: who comes first in the configuration keeps it.
  for (auto it = classes.rbegin(); it != classes.rend(); ++it) {
    auto lacks = [&] {
      return std::any_of(it->demand.begin(), it->demand.end(),
                         [&](const auto& item) { return room[item.first] < 0; });
    };
    for (; !it->spare.empty() && lacks(); it->spare.pop_back()) {
      out.list.push_back(
          {Decision::Kind::kDrainNode, {}, 0, it->spare.back()->name, kNoHostReason});
      for (const auto& [gres, n] : it->demand) room[gres] += n;
    }
  }
  for (ClassNodes& c : classes) {
    auto fits = [&] {
      return std::all_of(c.demand.begin(), c.demand.end(),
                         [&](const auto& item) { return room[item.first] >= item.second; });
    };
    for (; !c.ours.empty() && fits(); c.ours.pop_back()) {
      out.list.push_back({Decision::Kind::kResumeNode, {}, 0, c.ours.back()->name, ""});
      for (const auto& [gres, n] : c.demand) room[gres] -= n;
    }
  }
}

int gres_count(const std::string& text, const std::string& name) {
  // What is in parentheses (sockets, indices) has colons and commas of its own.
  std::string plain;
  int depth = 0;
  for (const char ch : text) {
    depth += ch == '(';
    if (depth == 0) plain += ch;
    depth -= ch == ')';
  }
  int sum = 0;
  for (std::size_t pos = 0; pos < plain.size();) {
    const std::size_t end = std::min(plain.find(',', pos), plain.size());
    const std::string item = plain.substr(pos, end - pos);
    pos = end + 1;
    if (item.rfind(name + ":", 0) != 0) continue;
    int n = 0;
    std::from_chars(item.data() + item.rfind(':') + 1, item.data() + item.size(), n);
    sum += n;
  }
  return sum;
}

}  // namespace symvirt
