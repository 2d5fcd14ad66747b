// The site's own checks: every executable of a folder, all at once, each with a deadline.
#pragma once

#include <string>
#include <vector>

#include "common/deadline.h"
#include "slurm-conf/health/config.h"
#include "slurm-conf/health/hardware.h"

namespace symvirt::health {

struct SiteFindings {
  std::vector<Failure> failures;    // in the order of the checks' names
  std::vector<std::string> errors;  // checks that could not be run: no reason to drain
};

// Runs as root whatever lies there, so files that others than root (or who runs this) may write are
// not run but reported. Not meant as checks: hidden files, editors' and package managers' copies,
// what is not executable. A check that fails to end by itself is failing: that is what a host with
// a dead file system looks like.
SiteFindings run_site_checks(const SiteChecks& checks, Deadline all);

}  // namespace symvirt::health
