// Descriptors a daemon may have: one for each connection, each VM's port, each program it runs.
// The shell's default, 1024, is less than a coordinator of a large cluster needs.
#pragma once

#include <sys/resource.h>

#include <algorithm>
#include <cstddef>

namespace symvirt {

inline constexpr std::size_t kDaemonFiles = 65'536;  // LimitNOFILE of the units

// What the process may have now.
inline std::size_t file_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return kDaemonFiles;
  return static_cast<std::size_t>(limit.rlim_cur);
}

// Raises it to `wanted` as far as that is allowed; never lowers it. What it is then.
inline std::size_t raise_file_limit(std::size_t wanted = kDaemonFiles) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < wanted) {
    limit.rlim_cur = std::min<rlim_t>(wanted, limit.rlim_max);
    setrlimit(RLIMIT_NOFILE, &limit);
  }
  return file_limit();
}

}  // namespace symvirt
