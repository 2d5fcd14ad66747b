// What was handed to the disk: fsync and fdatasync of the whole program, libraries included, are
// written down (and done). A test that only reads a file back cannot tell whether it would survive
// a power cut. Include in one file of a test program.
#pragma once

#include <sys/syscall.h>
#include <unistd.h>

#include <mutex>
#include <string>
#include <vector>

namespace symvirt::fakes {

// Paths as they were when they were synced, in order.
struct SyncLog {
  std::mutex mutex;
  std::vector<std::string> paths;

  void note(int fd) {
    char path[4096];
    const std::string link = "/proc/self/fd/" + std::to_string(fd);
    const ssize_t n = readlink(link.c_str(), path, sizeof path);
    std::lock_guard lock(mutex);
    paths.emplace_back(path, n > 0 ? static_cast<std::size_t>(n) : 0);
  }
  std::vector<std::string> take() {
    std::lock_guard lock(mutex);
    return std::move(paths);
  }
};
inline SyncLog sync_log;

}  // namespace symvirt::fakes

extern "C" int fsync(int fd) {
  symvirt::fakes::sync_log.note(fd);
  return static_cast<int>(syscall(SYS_fsync, fd));
}

extern "C" int fdatasync(int fd) {
  symvirt::fakes::sync_log.note(fd);
  return static_cast<int>(syscall(SYS_fdatasync, fd));
}
