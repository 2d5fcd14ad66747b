// Counters only ever grow; what matters is how much they grew lately. The history keeps, from run
// to run in a small JSON file, what each counter said over the last window, and since when
// something has been wrong.
//
// Times are milliseconds of CLOCK_BOOTTIME together with the boot's id: a wall clock that jumps
// changes nothing, and after a reboot all counters begin at 0. Threads: none.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "common/result.h"

namespace symvirt::health {

struct Moment {
  std::string boot_id;
  std::int64_t ms = 0;
};
Moment moment_now();

class History {
 public:
  History(Moment now, std::int64_t window_ms) : now_(std::move(now)), window_ms_(window_ms) {}

  // A file that cannot be read is as good as none: false, and counting begins anew.
  bool load(const std::string& path);
  // Replaces the file in one step. Counters and conditions that were not asked for this time are
  // forgotten.
  Status save(const std::string& path) const;

  // Takes the counter's present value; by how much it grew within the window. 0 at first sight:
  // when its errors happened is not known. A counter that went down was reset; it then counts from
  // 0.
  std::uint64_t growth(const std::string& counter, std::uint64_t value);
  // For how long `condition` has been true in every run, milliseconds; 0 when it is not or has only
  // just become so.
  std::int64_t lasting(const std::string& condition, bool is_true);

 private:
  struct Point {
    std::int64_t ms;
    std::uint64_t value;
  };
  struct Counter {
    std::vector<Point> points;  // oldest first
    bool seen = false;
  };
  struct Condition {
    std::int64_t since_ms;
    bool seen = false;
  };

  Moment now_;
  std::int64_t window_ms_;
  bool rebooted_ = false;
  std::map<std::string, Counter> counters_;
  std::map<std::string, Condition> conditions_;
};

}  // namespace symvirt::health
