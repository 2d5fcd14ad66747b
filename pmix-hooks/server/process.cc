#include "pmix-hooks/server/process.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <string>

namespace symvirt::hooks {
namespace {

constexpr int kMaxGenerations =
    64;  // of ancestors; a loop cannot exist, a race could look like one

std::optional<std::string> read_small_file(const std::string& path) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return std::nullopt;
  char buffer[4096];
  const ssize_t size = read(fd.get(), buffer, sizeof buffer);
  if (size < 0) return std::nullopt;
  return std::string(buffer, static_cast<std::size_t>(size));
}

// State letter and parent of /proc/PID/stat (proc(5)): behind the last ')', for the name may hold
// anything.
struct Stat {
  char state = '?';
  std::int32_t parent = 0;
};
std::optional<Stat> read_stat(const std::string& path) {
  const std::optional<std::string> text = read_small_file(path);
  if (!text) return std::nullopt;
  const std::size_t name_end = text->rfind(')');
  if (name_end == std::string::npos || name_end + 4 >= text->size()) return std::nullopt;
  return Stat{(*text)[name_end + 2],
              static_cast<std::int32_t>(std::atoi(text->c_str() + name_end + 4))};
}

std::string proc_path(std::int32_t pid, const char* rest) {
  return "/proc/" + std::to_string(pid) + rest;
}

}  // namespace

Result<Process> Process::open(std::int32_t pid) {
  UniqueFd fd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  if (!fd) {
    return Error{errno == ESRCH ? Code::kNotFound : Code::kInternal,
                 "process not opened: pid " + std::to_string(pid) + ": " + std::strerror(errno)};
  }
  return Process(pid, std::move(fd));
}

Status Process::signal(int number) const {
  if (syscall(SYS_pidfd_send_signal, fd_.get(), number, nullptr, 0) == 0) return {};
  return Error{errno == ESRCH ? Code::kNotFound : Code::kPermission,
               "signal " + std::to_string(number) + " not sent: pid " + std::to_string(pid_) +
                   ": " + std::strerror(errno)};
}

StopProgress Process::stop_progress() const {
  const std::string tasks = proc_path(pid_, "/task");
  const std::unique_ptr<DIR, int (*)(DIR*)> directory(opendir(tasks.c_str()), closedir);
  if (!directory) return StopProgress::kGone;
  int alive = 0;
  while (const dirent* entry = readdir(directory.get())) {
    if (entry->d_name[0] == '.') continue;
    const std::optional<Stat> stat = read_stat(tasks + "/" + entry->d_name + "/stat");
    if (!stat) continue;  // this thread ended meanwhile
    if (stat->state == 'Z' || stat->state == 'X') continue;
    ++alive;
    // 't' is a stop under a debugger, which the kernel shows in place of 'T'.
    if (stat->state != 'T' && stat->state != 't') return StopProgress::kRunning;
  }
  return alive > 0 ? StopProgress::kStopped : StopProgress::kGone;
}

bool Process::belongs_to(std::int32_t ancestor, std::uint32_t uid) const {
  const std::optional<std::string> status = read_small_file(proc_path(pid_, "/status"));
  if (!status) return false;
  const std::size_t line = status->find("\nUid:");
  if (line == std::string::npos) return false;
  if (std::strtoul(status->c_str() + line + 5, nullptr, 10) != uid) return false;
  std::int32_t pid = pid_;
  for (int i = 0; i < kMaxGenerations && pid > 1; ++i) {
    if (pid == ancestor) return true;
    const std::optional<Stat> stat = read_stat(proc_path(pid, "/stat"));
    if (!stat) return false;
    pid = stat->parent;
  }
  return false;
}

}  // namespace symvirt::hooks
