// One program, run to its end or to the deadline: no shell, no file descriptors inherited, no signal
// blocked. Threads: any.
#pragma once

#include <string>
#include <vector>

#include "common/deadline.h"
#include "common/result.h"

namespace symvirt {

struct ProgramResult {
  int exit_code = 0;   // 128 + signal when one ended it
  std::string output;  // stdout and stderr, at most kMostOutput bytes; what comes after is dropped

  bool ok() const { return exit_code == 0; }
  // The end of the output, in one line, for a message; "exit code N" when it said nothing.
  std::string why() const;
};

inline constexpr std::size_t kMostOutput = 64u << 10;

// argv[0] without a slash is looked for in PATH; the program gets the usual one when there is none
// (a Prolog has none). At the deadline the whole process group is killed: kDeadline. kNotFound: it
// cannot be started.
Result<ProgramResult> run_program(const std::vector<std::string>& argv, Deadline deadline);

}  // namespace symvirt
