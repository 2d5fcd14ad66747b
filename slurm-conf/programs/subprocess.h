// One program, run to its end or to the deadline: no shell, nothing inherited but stderr.
#pragma once

#include <string>
#include <vector>

#include "common/deadline.h"
#include "common/result.h"

namespace symvirt {

struct ProgramResult {
  int exit_code = 0;   // 128 + signal when one ended it
  std::string output;  // stdout and stderr, at most kMostOutput bytes; what comes after is dropped
};

inline constexpr std::size_t kMostOutput = 64u << 10;

// argv[0] without a slash is looked for in PATH, or in the usual folders when PATH is not set (a
// Prolog has none). At the deadline the whole process group is killed: kDeadline. kNotFound: it
// cannot be started.
Result<ProgramResult> run_program(const std::vector<std::string>& argv, Deadline deadline);

}  // namespace symvirt
