// bench_verbs: what the verbs layer costs (docs/verbs.md: costs). --help tells more.
#include <benchmark/benchmark.h>
#include <fmt/core.h>

#include <CLI/CLI.hpp>

#include "tests/bench/verbs_costs.h"

namespace {

using symvirt::hooks::verbs::bench::measure_calls;
using symvirt::hooks::verbs::bench::measure_move;

void print_calls(const nlohmann::json& rows) {
  fmt::print(
      "Nanoseconds a call, over a provider whose post and poll are a few stores (medians; +: more "
      "than direct)\n");
  fmt::print("{:<24} {:>7} {:>8} {:>7} {:>6} {:>8} {:>7} {:>6} {:>10}\n", "call", "direct",
             "before", "+", "x", "after", "+", "x", "quartiles");
  for (const auto& r : rows) {
    const auto get = [&r](const char* key) { return r[key].get<double>(); };
    fmt::print("{:<24} {:>7.1f} {:>8.1f} {:>7.1f} {:>6.2f} {:>8.1f} {:>7.1f} {:>6.2f} {:>10.1f}\n",
               r["call"].get<std::string>(), get("direct_ns"), get("before_ns"),
               get("before_more_ns"), get("before_ratio"), get("after_ns"), get("after_more_ns"),
               get("after_ratio"), get("quartiles_ns"));
  }
}

void print_move(const nlohmann::json& rows) {
  fmt::print(
      "\nMilliseconds of one of two processes to come to rest and back, over the double (medians; "
      "in brackets: the same\n"
      "calls of the double without the layer)\n");
  fmt::print("{:>11} {:>9} {:>20} {:>20}\n", "queue pairs", "drain", "destroy", "rebuild");
  for (const auto& r : rows) {
    const auto get = [&r](const char* key) { return r[key].get<double>(); };
    fmt::print("{:>11} {:>9.2f} {:>10.2f} ({:>7.2f}) {:>10.2f} ({:>7.2f})\n",
               r["queue_pairs"].get<int>(), get("drain_ms"), get("destroy_ms"),
               get("double_destroy_ms"), get("rebuild_ms"), get("double_rebuild_ms"));
  }
}

}  // namespace

int main(int argc, char** argv) {
  bool json = false;
  int repetitions = 5;
  std::string only;
  std::vector<int> pairs = {1, 64, 1024};
  CLI::App app("What the verbs layer costs: per call, and to drain and rebuild queue pairs");
  app.add_flag("--json", json, "one JSON object instead of tables");
  app.add_option("--only", only, "calls or moves")->check(CLI::IsMember({"calls", "moves"}));
  app.add_option("--pairs", pairs, "numbers of queue pairs to move")->check(CLI::Range(1, 8192));
  app.add_option("--repetitions", repetitions, "of each move")->check(CLI::Range(1, 1000));
  app.footer(
      "Options of Google Benchmark (--benchmark_filter=..., --benchmark_repetitions=...) are "
      "taken, too.");
  app.allow_extras();
  CLI11_PARSE(app, argc, argv);

  // By turns in random order, so that noise hits all alike. Later options win.
  std::vector<std::string> options = {argv[0], "--benchmark_enable_random_interleaving=true",
                                      "--benchmark_repetitions=15", "--benchmark_min_time=0.02"};
  for (const std::string& extra : app.remaining()) options.push_back(extra);
  std::vector<char*> arguments;
  for (std::string& option : options) arguments.push_back(option.data());
  int count = static_cast<int>(arguments.size());
  arguments.push_back(nullptr);

  nlohmann::json out = nlohmann::json::object();
  if (only != "moves") {
    out["calls"] = measure_calls(&count, arguments.data());
    if (out["calls"].is_null()) return 1;
    if (benchmark::ReportUnrecognizedArguments(count, arguments.data())) return 2;
  }
  if (only != "calls") {
    for (const int n : pairs) {
      out["moves"].push_back(measure_move(n, repetitions));
      if (out["moves"].back().is_null()) return 1;
    }
  }
  if (json) {
    fmt::print("{}\n", out.dump(2));
    return 0;
  }
  if (out.contains("calls")) print_calls(out["calls"]);
  if (out.contains("moves")) print_move(out["moves"]);
  return 0;
}
