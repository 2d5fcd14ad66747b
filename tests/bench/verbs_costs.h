// What the benchmark of the verbs layer (verbs.cc) measures, and over what.
#pragma once

#include <nlohmann/json.hpp>

namespace symvirt::hooks::verbs::bench {

// Over the null provider: what a call costs without the layer, through the layer before the first
// move, and after one, in nanoseconds. Google Benchmark runs the three by turns, in random order;
// its own options are taken out of argv. Null: the set-up does not do what it should, said on
// stderr.
nlohmann::json measure_calls(int* argc, char** argv);

// Over the double: `pairs` queue pairs of one process, each connected to one of another process and
// with work under way, are brought to rest and made again on another device. Milliseconds of the
// first process; medians of `repetitions`. Null as above.
nlohmann::json measure_move(int pairs, int repetitions);

}  // namespace symvirt::hooks::verbs::bench
