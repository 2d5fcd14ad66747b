#include "node-helper/guest/clock.h"

#include <fmt/format.h>
#include <time.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

namespace symvirt::guest {
namespace {

constexpr std::int64_t kSecond = 1'000'000'000;
constexpr std::int64_t kTolerated = kSecond / 10;

}  // namespace

WallClock WallClock::real() {
  return {[] {
            timespec t{};
            clock_gettime(CLOCK_REALTIME, &t);
            return static_cast<std::int64_t>(t.tv_sec) * kSecond + t.tv_nsec;
          },
          [](std::int64_t ns) {
            const timespec t{static_cast<time_t>(ns / kSecond), static_cast<long>(ns % kSecond)};
            return clock_settime(CLOCK_REALTIME, &t) == 0 ? 0 : errno;
          }};
}

Result<std::int64_t> set_clock(const WallClock& clock, std::int64_t time_ns) {
  const std::int64_t off = time_ns - clock.now();
  if (std::llabs(off) <= kTolerated) return std::int64_t{0};
  if (const int error = clock.set(time_ns); error != 0) {
    return Error{Code::kInternal, fmt::format("guest.set_clock: {}; guestd needs CAP_SYS_TIME",
                                              std::strerror(error))};
  }
  return off / 1'000'000;
}

}  // namespace symvirt::guest
