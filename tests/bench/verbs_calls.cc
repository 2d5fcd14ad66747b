#include <benchmark/benchmark.h>
#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <map>

#include "tests/bench/bench_process.h"
#include "tests/bench/null_provider.h"
#include "tests/bench/verbs_costs.h"

namespace symvirt::hooks::verbs::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kBatch =
    64;  // calls between two looks at the clock; also how much work is outstanding at most
constexpr std::uint32_t kBytes = 64;
enum WayName { kDirect, kBefore, kAfter, kWays };
constexpr const char* kNames[kWays] = {"direct", "before", "after"};

// One way to the provider, with objects of its own.
struct Way {
  Process process;
  ibv_qp* connected = nullptr;
  ibv_qp* datagrams = nullptr;
  ibv_qp* consumer = nullptr;
  ibv_ah* ah = nullptr;
  std::uint64_t local = 0, remote = 0;
  std::uint32_t lkey = 0, rkey = 0;
  std::uint64_t posted = 0;

  Way(testing::Fabric& fabric, const RealVerbs& under, int host)
      : process(fabric, under, host, host != kDirect) {
    testing::Endpoint& e = *process.end;
    // Gone before the move, so that the others have other numbers after it.
    for (int i = 0; i < 8; ++i) e.make_qp();
    const std::vector<ibv_qp*> unused = e.qps;
    ibv_qp* const peer = e.make_qp();
    connected = e.make_qp();
    datagrams = e.make_qp(IBV_QPT_UD);
    ibv_srq_init_attr init{};
    init.attr = {256, 4, 0};
    e.srq = e.v.create_srq(e.pd, &init);
    consumer = e.make_qp();
    e.connect(connected, e, peer->qp_num);
    e.connect(peer, e, connected->qp_num);
    e.connect(datagrams, e, 0);
    e.to_init(consumer);
    ibv_ah_attr path = e.path_to(e);
    ah = e.v.create_ah(e.pd, &path);
    for (ibv_qp* qp : unused) e.v.destroy_qp(qp);
    e.qps.erase(e.qps.begin(), e.qps.begin() + static_cast<std::ptrdiff_t>(unused.size()));
    local = e.address(0), remote = e.address(4096);
    lkey = e.mr->lkey, rkey = e.mr->rkey;
  }
  ~Way() {
    process.act();
    process.end->v.destroy_ah(ah);
  }
  Way(const Way&) = delete;
  Way& operator=(const Way&) = delete;

  // Requests are made anew for each call, as applications do.
  ibv_sge element() const { return {local, kBytes, lkey}; }
  int post_write() {
    ibv_sge sge = element();
    ibv_send_wr wr;
    wr.wr_id = ++posted;
    wr.next = nullptr;
    wr.sg_list = &sge;
    wr.num_sge = 1;
    wr.opcode = IBV_WR_RDMA_WRITE;
    wr.send_flags = IBV_SEND_SIGNALED;
    wr.wr.rdma.remote_addr = remote;
    wr.wr.rdma.rkey = rkey;
    ibv_send_wr* bad = nullptr;
    return ibv_post_send(connected, &wr, &bad);
  }
  int post_datagram() {
    ibv_sge sge = element();
    ibv_send_wr wr;
    wr.wr_id = ++posted;
    wr.next = nullptr;
    wr.sg_list = &sge;
    wr.num_sge = 1;
    wr.opcode = IBV_WR_SEND;
    wr.send_flags = IBV_SEND_SIGNALED;
    wr.wr.ud = {ah, datagrams->qp_num, 0x1234};
    ibv_send_wr* bad = nullptr;
    return ibv_post_send(datagrams, &wr, &bad);
  }
  int post_receive() {
    ibv_sge sge = element();
    ibv_recv_wr wr{++posted, nullptr, &sge, 1};
    ibv_recv_wr* bad = nullptr;
    return ibv_post_recv(connected, &wr, &bad);
  }
  int post_shared_receive() {
    ibv_sge sge = element();
    ibv_recv_wr wr{++posted, nullptr, &sge, 1};
    ibv_recv_wr* bad = nullptr;
    return ibv_post_srq_recv(process.end->srq, &wr, &bad);
  }
  int poll() {
    ibv_wc wc;
    return ibv_poll_cq(process.end->cq, 1, &wc);
  }
  int notify() { return ibv_req_notify_cq(process.end->cq, 0); }

  // Whose number the provider puts into the completions of shared receives.
  void consume_shared() const {
    null_queue.consumer = process.layer == nullptr ? consumer->qp_num : of(consumer)->real->qp_num;
  }
};

template <typename F>
double timed(F f) {
  const auto begun = Clock::now();
  for (int i = 0; i < kBatch; ++i) {
    int result = f();
    benchmark::DoNotOptimize(result);
  }
  return std::chrono::duration<double, std::nano>(Clock::now() - begun).count() / kBatch;
}

template <typename F>
void repeat(F f) {
  for (int i = 0; i < kBatch; ++i) f();
}

using Call = double (*)(Way&);  // nanoseconds a call, of one batch
struct Measured {
  const char* name;
  Call batch;
};

// Each leaves nothing outstanding.
constexpr Measured kCalls[] = {
    {"post_send (RDMA write)",
     [](Way& w) {
       const double ns = timed([&w] { return w.post_write(); });
       repeat([&w] { w.poll(); });
       return ns;
     }},
    {"post_send (UD)",
     [](Way& w) {
       const double ns = timed([&w] { return w.post_datagram(); });
       repeat([&w] { w.poll(); });
       return ns;
     }},
    {"post_recv",
     [](Way& w) {
       const double ns = timed([&w] { return w.post_receive(); });
       repeat([&w] { w.poll(); });
       return ns;
     }},
    {"post_srq_recv",
     [](Way& w) {
       w.consume_shared();
       const double ns = timed([&w] { return w.post_shared_receive(); });
       repeat([&w] { w.poll(); });
       return ns;
     }},
    {"poll_cq (empty)", [](Way& w) { return timed([&w] { return w.poll(); }); }},
    {"poll_cq (1 send)",
     [](Way& w) {
       repeat([&w] { w.post_write(); });
       return timed([&w] { return w.poll(); });
     }},
    {"poll_cq (1 receive)",
     [](Way& w) {
       repeat([&w] { w.post_receive(); });
       return timed([&w] { return w.poll(); });
     }},
    {"post_send + poll_cq",
     [](Way& w) {
       return timed([&w] {
         w.post_write();
         return w.poll();
       });
     }},
    {"req_notify_cq", [](Way& w) { return timed([&w] { return w.notify(); }); }},
};

double quantile(std::vector<double>& values, double q) {
  const auto at =
      values.begin() + static_cast<std::ptrdiff_t>(q * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

// The median of the batches: one that was interrupted does not count.
void run(benchmark::State& state, Way& way, Call batch) {
  std::vector<double> samples;
  samples.reserve(1 << 16);
  for (auto _ : state) samples.push_back(batch(way));
  state.counters["ns"] = quantile(samples, 0.5);
}

// Collects the repetitions.
class Collector : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context&) override { return true; }
  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& r : runs) {
      if (r.run_type == Run::RT_Iteration && !r.error_occurred)
        found[r.run_name.function_name].push_back(r.counters.at("ns").value);
    }
  }
  std::map<std::string, std::vector<double>> found;
};

// One process that talks to itself, moved to another device.
bool move(Process& process) {
  process.act();
  constexpr int kRounds = 20;
  const auto rounds = [&](auto call) {
    Payloads payloads;
    for (std::uint32_t round = 1; round <= kRounds; ++round) {
      const TransportAnswer answer = call(round, payloads);
      payloads = {{"0", answer.payload}};
      if (!answer.more) return true;
    }
    return false;
  };
  return rounds([&](auto round, const Payloads& p) {
           return process.transport->quiesce(1, round, p, true);
         }) &&
         process.replace_device() && rounds([&](auto round, const Payloads& p) {
           return process.transport->resume(1, round, p);
         });
}

// Whether work takes the way that is to be measured: with the application's numbers down to the
// provider, or with others; and back with the application's.
bool goes_the_way(Way& way, bool carried) {
  way.process.act();
  ibv_wc wc{};
  bool good = way.post_write() == 0;
  const NullWork work = null_queue.last();
  good = good && (work.lkey != way.lkey) == carried && (work.rkey != way.rkey) == carried;
  good = good && (work.qp_number != way.connected->qp_num) == carried;
  good =
      good && ibv_poll_cq(way.process.end->cq, 1, &wc) == 1 && wc.qp_num == way.connected->qp_num;
  good = good && way.post_datagram() == 0;
  good = good && (null_queue.last().remote_number != way.datagrams->qp_num) == carried &&
         way.poll() == 1;
  way.consume_shared();
  good = good && way.post_shared_receive() == 0 && ibv_poll_cq(way.process.end->cq, 1, &wc) == 1;
  good = good && wc.wr_id == way.posted && wc.qp_num == way.consumer->qp_num;
  return good && way.poll() == 0;
}

nlohmann::json table(std::map<std::string, std::vector<double>>& found) {
  nlohmann::json out = nlohmann::json::array();
  for (const Measured& call : kCalls) {
    nlohmann::json row{{"call", call.name}};
    double medians[kWays] = {};
    double spread = 0;
    for (int way = 0; way < kWays; ++way) {
      std::vector<double>& values = found[fmt::format("{}/{}", call.name, kNames[way])];
      if (values.empty()) break;  // left out by --benchmark_filter
      medians[way] = quantile(values, 0.5);
      spread = std::max(spread, quantile(values, 0.75) - quantile(values, 0.25));
      row[fmt::format("{}_ns", kNames[way])] = medians[way];
    }
    if (medians[kAfter] == 0) continue;
    for (const int way : {kBefore, kAfter}) {
      row[fmt::format("{}_more_ns", kNames[way])] = medians[way] - medians[kDirect];
      row[fmt::format("{}_ratio", kNames[way])] = medians[way] / medians[kDirect];
    }
    row["quartiles_ns"] = spread;
    out.push_back(std::move(row));
  }
  return out;
}

}  // namespace

nlohmann::json measure_calls(int* argc, char** argv) {
  testing::Options options;
  options.threads = false;
  testing::Fabric fabric(options);
  const RealVerbs& under = null_verbs(fabric.thread_verbs());
  std::array<std::unique_ptr<Way>, kWays> ways;
  for (int i = 0; i < kWays; ++i)
    ways[static_cast<std::size_t>(i)] = std::make_unique<Way>(fabric, under, i);
  if (!move(ways[kAfter]->process)) {
    fmt::print(stderr, "bench_verbs: the process did not get from one device to the other\n");
    return nullptr;
  }
  for (std::size_t i = 0; i < kWays; ++i) {
    if (goes_the_way(*ways[i], i == kAfter)) continue;
    fmt::print(stderr, "bench_verbs: {}: what the provider saw is not what was to be measured\n",
               kNames[i]);
    return nullptr;
  }
  for (const Measured& call : kCalls) {
    for (std::size_t i = 0; i < kWays; ++i)
      benchmark::RegisterBenchmark(fmt::format("{}/{}", call.name, kNames[i]).c_str(), run,
                                   std::ref(*ways[i]), call.batch);
  }
  benchmark::Initialize(argc, argv);
  Collector collector;
  benchmark::RunSpecifiedBenchmarks(&collector);
  return table(collector.found);
}

}  // namespace symvirt::hooks::verbs::bench
