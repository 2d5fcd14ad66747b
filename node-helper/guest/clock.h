// The guest's wall clock. It stands still while the VM is saved, and MUNGE and Slurm refuse a node
// that is minutes behind: after a restore it is set before anything else happens.
#pragma once

#include <cstdint>
#include <functional>

#include "common/result.h"

namespace symvirt::guest {

struct WallClock {  // the seam: clock_gettime and clock_settime of CLOCK_REALTIME, in nanoseconds
                    // since 1970
  std::function<std::int64_t()> now;
  std::function<int(std::int64_t)> set;  // errno
  static WallClock real();
};

// Steps the clock to time_ns if it is off by more than 100 ms: less is what NTP slews away, and the
// message itself took time. Milliseconds stepped (forward positive), 0 when it was left alone.
Result<std::int64_t> set_clock(const WallClock& clock, std::int64_t time_ns);

}  // namespace symvirt::guest
