#include "tests/verbs/stress_job.h"

#include <chrono>

#include "tests/verbs/stress_plan.h"

namespace symvirt::verbs_stress {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

constexpr int kMaxRounds = 60;

}  // namespace

StressJob::StressJob(int ranks, const StressOptions& options, const double_::Options& fabric)
    : fabric_(fabric), meeting_(ranks) {
  hooks::verbs::set_real_verbs_for_test(&fabric_.thread_verbs());
  for (int rank = 0; rank < ranks; ++rank) {
    auto process = std::make_unique<Process>();
    Process* p = process.get();
    hooks::verbs::Patience patience;
    patience.silence = std::chrono::milliseconds(100);
    p->transport = std::make_unique<hooks::verbs::VerbsTransport>(
        [p]() -> hooks::verbs::Layer& { return p->layer; }, patience);
    p->options = options;
    p->options.stop = &stop_;
    p->options.deaf = &p->deaf;
    p->options.on_thread = [this, rank] { act_as(rank); };
    p->wire = std::make_unique<ThreadWire>(meeting_, rank, ranks);
    processes_.push_back(std::move(process));
    plug(rank);
  }
}

StressJob::~StressJob() { hooks::verbs::set_real_verbs_for_test(nullptr); }

void StressJob::act_as(int rank) {
  double_::set_thread_host(rank);
  hooks::verbs::Layer::set_current_for_test(&processes_[static_cast<std::size_t>(rank)]->layer);
}

// Every device differs from the one before in whatever may differ.
void StressJob::plug(int rank) {
  const std::uint64_t dice = mix(devices_++);
  double_::DeviceSpec spec;
  spec.name = "dev" + std::to_string(devices_);
  spec.guid = 0x1000 + devices_;
  spec.lid = static_cast<std::uint16_t>(100 + devices_);
  spec.first_key = 1 + static_cast<std::uint32_t>(dice % 3);
  spec.distinct_rkeys = (dice & 0x100) != 0;
  spec.free_slots_at_poll = (dice & 0x200) != 0;
  spec.clean_cq_on_destroy = (dice & 0x400) != 0;
  spec.gids = {double_::gid_from(0xfe80000000000000, spec.guid)};
  if (dice & 0x800) spec.gids.push_back(double_::gid_from(0xfd00000000000000, spec.guid));
  processes_[static_cast<std::size_t>(rank)]->device = spec.name;
  fabric_.plug(rank, spec);
}

void StressJob::start() {
  running_ = static_cast<int>(processes_.size());
  for (const auto& process : processes_) {
    process->thread = std::thread([this, p = process.get()] {
      p->result = run_stress(p->options, *p->wire);
      if (!p->result.error.empty()) meeting_.leave();
      --running_;
    });
  }
}

void StressJob::await_devices() {
  for (std::size_t i = 0; i < processes_.size(); ++i) {
    while (running() && fabric_.held(static_cast<int>(i), processes_[i]->device).nothing())
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

std::vector<StressResult> StressJob::join() {
  std::vector<StressResult> results;
  for (const auto& process : processes_) {
    process->thread.join();
    results.push_back(process->result);
  }
  return results;
}

void StressJob::deafen(unsigned ranks) {
  for (std::size_t i = 0; i < processes_.size(); ++i) processes_[i]->deaf = (ranks >> i & 1) != 0;
}

// As plugin and coordinator do: all at once, each round with what the last one answered; who is
// through is not asked again.
int StressJob::rounds(const Step& step, int limit, bool& finished) {
  hooks::Payloads payloads;
  course_.clear();
  std::vector<char> more(processes_.size(), 1);
  finished = false;
  int round = 0;
  while (!finished && round < limit) {
    ++round;
    std::vector<hooks::TransportAnswer> answers(processes_.size());
    std::vector<std::thread> agents;
    for (std::size_t i = 0; i < processes_.size(); ++i) {
      if (!more[i]) continue;
      agents.emplace_back([&, i] {
        act_as(static_cast<int>(i));
        answers[i] = step(i, static_cast<std::uint32_t>(round), payloads);
      });
    }
    for (std::thread& agent : agents) agent.join();
    payloads.clear();
    finished = true;
    for (std::size_t i = 0; i < processes_.size(); ++i) {
      if (!more[i]) continue;
      more[i] = answers[i].more;
      if (answers[i].more) finished = false;
      payloads[std::to_string(i)] = answers[i].payload;
    }
    course_ += " |";
    for (const auto& [rank, text] : payloads)
      course_ += " " + rank + ":" + text.substr(0, text.find('\n'));
  }
  return round;
}

MoveReport StressJob::move(unsigned moved_ranks, int give_up_after, bool undone) {
  MoveReport report;
  ++epoch_;
  auto begin = Clock::now();
  const auto quiesce = [&](std::size_t i, std::uint32_t round, const hooks::Payloads& payloads) {
    const bool leaves = (moved_ranks >> i & 1) != 0;
    return processes_[i]->transport->quiesce(epoch_, round, payloads, leaves);
  };
  report.quiesce_rounds =
      rounds(quiesce, give_up_after != 0 ? give_up_after : kMaxRounds, report.rested);
  report.drain_s = seconds_since(begin);
  report.course = course_;
  for (std::size_t i = 0; report.rested && !undone && i < processes_.size(); ++i) {
    if ((moved_ranks >> i & 1) == 0) continue;
    const std::string name = processes_[i]->device;
    if (!fabric_.unplug(static_cast<int>(i), name).nothing())
      report.error = "at rest, and " + name + " is held";
    plug(static_cast<int>(i));
  }
  begin = Clock::now();
  bool running = false;
  const auto resume = [&](std::size_t i, std::uint32_t round, const hooks::Payloads& payloads) {
    return processes_[i]->transport->resume(epoch_, round, payloads);
  };
  report.resume_rounds = rounds(resume, kMaxRounds, running);
  report.rebuild_s = seconds_since(begin);
  if (!running) report.error = "resume does not come to an end:" + course_;
  return report;
}

}  // namespace symvirt::verbs_stress
