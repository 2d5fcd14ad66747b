// What a coordinator pays to bring N VMs to rest and to let them go: quiesce in two rounds, resume
// in two, over real connections to N simulated noded's in this process. Both ends share the
// machine, so a real cluster's coordinator pays about half of it. One JSON object a line.
#include <fmt/format.h>
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <condition_variable>
#include <fstream>

#include "common/file_limit.h"
#include "tests/fakes/fake_credentials.h"
#include "tests/fakes/fake_noded.h"

namespace {

using namespace symvirt;
using nlohmann::json;
using Seconds = std::chrono::duration<double>;

// One call to every host at once; the time until the last answer. Negative when one failed.
double fan_out(RpcPool& pool, int hosts, const std::string& method, int round) {
  std::mutex mutex;
  std::condition_variable all;
  int left = hosts, failed = 0;
  std::string why;
  const auto begun = std::chrono::steady_clock::now();
  for (int i = 0; i < hosts; ++i) {
    const std::string vm = fmt::format("v{}", i);
    json params = {
        {"vm", vm},
        {"gen", 1},
        {"op", fmt::format("1/{}/{}/{}", method, vm, round)},
        {"method", method},
        {"params",
         {{"job", 1}, {"epoch", 1}, {"round", round}, {"timeout_ms", 60000}, {"lease_ms", 60000}}}};
    pool.call(fmt::format("h{}", i), "guest.call", std::move(params),
              std::chrono::milliseconds(120'000), {}, [&](Result<json> r) {
                std::lock_guard lock(mutex);
                if (!r) {
                  ++failed;
                  why = r.error().message;
                }
                if (--left == 0) all.notify_all();
              });
  }
  std::unique_lock lock(mutex);
  all.wait(lock, [&] { return left == 0; });
  if (failed > 0) fmt::print(stderr, "{}: {} of {} failed: {}\n", method, failed, hosts, why);
  return failed > 0 ? -1 : Seconds(std::chrono::steady_clock::now() - begun).count();
}

double cpu_seconds() {
  rusage u{};
  getrusage(RUSAGE_SELF, &u);
  auto s = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) / 1e6;
  };
  return s(u.ru_utime) + s(u.ru_stime);
}

std::int64_t peak_rss_kib() {
  rusage u{};
  getrusage(RUSAGE_SELF, &u);
  return u.ru_maxrss;
}

int measure(int hosts, Credentials& here, Credentials& there, const char* kind, int threads) {
  fakes::FakeSite site({}, there);
  for (int i = 0; i < hosts; ++i) {
    if (Status s = site.add_host(fmt::format("h{}", i)); !s) {
      fmt::print(stderr, "fanout: host {}: {}\n", i, s.error().message);
      return 1;
    }
    site.add_vm(fmt::format("v{}", i), fmt::format("h{}", i), 1);
  }
  RpcPool::Options options;
  options.ports = site.ports();
  options.addresses = site.addresses();
  options.max_threads = static_cast<std::size_t>(threads);
  options.max_spare = std::min(options.max_spare, file_limit() / 4);
  options.replier_allowed = [](uid_t) { return true; };
  RpcPool pool(options, here);
  const double cpu = cpu_seconds();
  const double connect = fan_out(pool, hosts, "guest.ping", 0);
  const double q1 = fan_out(pool, hosts, "job.quiesce", 1),
               q2 = fan_out(pool, hosts, "job.quiesce", 2);
  const double r1 = fan_out(pool, hosts, "job.resume", 1),
               r2 = fan_out(pool, hosts, "job.resume", 2);
  for (double s : {connect, q1, q2, r1, r2}) {
    if (s < 0) return 1;
  }
  fmt::print("{}\n", json{{"vms", hosts},
                          {"credentials", kind},
                          {"connect_s", connect},
                          {"quiesce_s", q1 + q2},
                          {"resume_s", r1 + r2},
                          {"calls_per_s", 4.0 * hosts / (q1 + q2 + r1 + r2)},
                          {"cpu_s", cpu_seconds() - cpu},
                          {"peak_rss_kib", peak_rss_kib()}}
                         .dump());
  std::fflush(stdout);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Fan-out of quiesce and resume to simulated hosts, in one process");
  std::vector<int> sizes = {1000, 2000, 4000};
  std::string socket;
  int threads = 512;
  app.add_option("--vms", sizes, "Numbers of VMs, each on a host of its own")->delimiter(',');
  app.add_option("--munge-socket", socket,
                 "Use the munged that listens there; default: a stand-in without munged");
  app.add_option("--threads", threads, "Threads of the pool");
  CLI11_PARSE(app, argc, argv);
  raise_file_limit();  // as symvirtd does, and no further
  int rc = 0;
  for (int n : sizes) {
    if (socket.empty()) {
      fakes::FakeCredentials here, there;
      rc |= measure(n, here, there, "none", threads);
    } else {
      MungeCredentials munge(socket);
      rc |= measure(n, munge, munge, "munge", threads);
    }
  }
  return rc;
}
