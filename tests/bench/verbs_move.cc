#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <chrono>

#include "tests/bench/bench_process.h"
#include "tests/bench/verbs_costs.h"

namespace symvirt::hooks::verbs::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::uint32_t kBytes = 64;
constexpr int kSends = 4;  // of each queue pair, under way; every second is signalled
constexpr int kReceives = 8;

double since(Clock::time_point begun) {
  return std::chrono::duration<double, std::milli>(Clock::now() - begun).count();
}

int completions(int pairs) { return pairs * (kSends + kReceives + 2) + 64; }

struct Job {
  Job(int pairs, bool with_layer)
      : fabric(options()),
        processes{Process{fabric, fabric.thread_verbs(), 0, with_layer, completions(pairs)},
                  Process{fabric, fabric.thread_verbs(), 1, with_layer, completions(pairs)}} {}
  static testing::Options options() {
    testing::Options o;
    o.hold_ack = o.late = 0;
    return o;
  }

  // Queue pairs of both, connected; false when the double did not want it.
  bool make(int pairs) {
    for (Process& p : processes) {
      p.act();
      for (int i = 0; i < pairs; ++i) {
        if (p.end->make_qp() == nullptr) return false;
      }
    }
    for (std::size_t side = 0; side < 2; ++side) {
      processes[side].act();
      if (!connect(*processes[side].end, *processes[1 - side].end)) return false;
    }
    return true;
  }
  static bool connect(testing::Endpoint& mine, testing::Endpoint& other) {
    bool good = true;
    for (std::size_t i = 0; good && i < mine.qps.size(); ++i) {
      testing::ConnectOptions patient;
      patient.retry_cnt = 7;
      patient.timeout = 20;
      good = mine.connect(mine.qps[i], other, other.qps[i]->qp_num, patient) == 0;
    }
    return good;
  }

  // Sends whose acknowledgements are all outstanding until they are let go.
  bool put_work_under_way() {
    fabric.hold_acks(true);
    bool good = true;
    for (Process& p : processes) {
      p.act();
      for (ibv_qp* qp : p.end->qps) {
        for (int i = 0; i < kReceives; ++i) good = good && p.end->receive(qp, 1, 4096, kBytes) == 0;
      }
    }
    for (Process& p : processes) {
      p.act();
      for (ibv_qp* qp : p.end->qps) {
        for (int i = 0; i < kSends; ++i)
          good = good &&
                 p.end->send(qp, 2, 0, kBytes, i % 2 == 0 ? unsigned{IBV_SEND_SIGNALED} : 0) == 0;
      }
    }
    return good;
  }

  testing::Fabric fabric;
  std::array<Process, 2> processes;
};

// Rounds of both, one after the other. Milliseconds of each round of the first; empty: no end of
// it.
template <typename F>
std::vector<double> rounds(Job& job, F call) {
  constexpr std::uint32_t kMost = 20;
  Payloads payloads;
  std::vector<double> spent;
  std::array<bool, 2> more = {true, true};
  for (std::uint32_t round = 1; round <= kMost; ++round) {
    Payloads next;
    for (std::size_t i = 0; i < 2; ++i) {
      if (!more[i]) continue;
      job.processes[i].act();
      const auto begun = Clock::now();
      TransportAnswer answer = call(*job.processes[i].transport, round, payloads);
      if (i == 0) spent.push_back(since(begun));
      more[i] = answer.more;
      next[std::to_string(i)] = std::move(answer.payload);
    }
    payloads = std::move(next);
    if (!more[0] && !more[1]) return spent;
  }
  return {};
}

struct Spent {
  double drain = 0;
  double rest = 0;
  double rebuild = 0;
  int quiesce_rounds = 0;
};

// After the move every completion has to come that is owed: nothing was lost or repeated.
bool all_comes(Job& job, int pairs) {
  for (Process& p : job.processes) {
    int owed = pairs * (kSends / 2 + kSends);
    ibv_wc wc{};
    p.act();
    while (owed > 0 && (wc = p.end->wait_wc()).status == IBV_WC_SUCCESS) --owed;
    if (owed != 0 || ibv_poll_cq(p.end->cq, 1, &wc) != 0) return false;
  }
  return true;
}

bool move_once(int pairs, Spent& out) {
  Job job(pairs, true);
  if (!job.make(pairs) || !job.put_work_under_way()) return false;
  job.fabric.hold_acks(false);
  const auto down = rounds(job, [](VerbsTransport& t, std::uint32_t round, const Payloads& p) {
    return t.quiesce(1, round, p, true);
  });
  if (down.empty()) return false;
  for (Process& p : job.processes) {
    if (!p.replace_device()) return false;
  }
  const auto up = rounds(job, [](VerbsTransport& t, std::uint32_t round, const Payloads& p) {
    return t.resume(1, round, p);
  });
  if (up.empty()) return false;
  out.quiesce_rounds = static_cast<int>(down.size());
  out.drain = down.front();
  for (std::size_t i = 1; i < down.size(); ++i) out.rest += down[i];
  for (const double round : up) out.rebuild += round;
  return all_comes(job, pairs);
}

// The double's own part: the same objects made, connected and destroyed without the layer.
bool double_alone(int pairs, double& made, double& destroyed) {
  Job job(pairs, false);
  testing::Endpoint& mine = *job.processes[0].end;
  testing::Endpoint& other = *job.processes[1].end;
  job.processes[1].act();
  for (int i = 0; i < pairs; ++i) other.make_qp();
  job.processes[0].act();
  auto begun = Clock::now();
  for (int i = 0; i < pairs; ++i) mine.make_qp();
  if (!Job::connect(mine, other)) return false;
  for (ibv_qp* qp : mine.qps) {
    for (int i = 0; i < kReceives - kSends; ++i) {
      if (mine.receive(qp, 1, 4096, kBytes) != 0) return false;
    }
  }
  made = since(begun);
  begun = Clock::now();
  for (ibv_qp* qp : mine.qps) {
    if (mine.v.destroy_qp(qp) != 0) return false;
  }
  destroyed = since(begun);
  mine.qps.clear();
  return true;
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

nlohmann::json measure_move(int pairs, int repetitions) {
  std::vector<double> drain, rest, rebuild, made, destroyed;
  Spent spent;
  for (int i = 0; i < repetitions; ++i) {
    double making = 0;
    double destroying = 0;
    spent = {};
    if (!move_once(pairs, spent) || !double_alone(pairs, making, destroying)) {
      fmt::print(stderr,
                 "bench_verbs: {} queue pairs: not moved, or not all work was done exactly once\n",
                 pairs);
      return nullptr;
    }
    drain.push_back(spent.drain);
    rest.push_back(spent.rest);
    rebuild.push_back(spent.rebuild);
    made.push_back(making);
    destroyed.push_back(destroying);
  }
  return {{"queue_pairs", pairs},
          {"drain_ms", median(drain)},
          {"destroy_ms", median(rest)},
          {"rebuild_ms", median(rebuild)},
          {"double_destroy_ms", median(destroyed)},
          {"double_rebuild_ms", median(made)},
          {"quiesce_rounds", spent.quiesce_rounds}};
}

}  // namespace symvirt::hooks::verbs::bench
