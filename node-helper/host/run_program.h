// Runs a program without a shell and waits for it. Killed at the deadline.
// Threads: any.
#pragma once

#include <string>
#include <vector>

#include "common/deadline.h"
#include "common/result.h"

namespace symvirt::host {

// kRefused: it ended with another status than 0; the message is the end of what it wrote to stderr.
Status run_program(const std::vector<std::string>& argv, Deadline deadline);

}  // namespace symvirt::host
