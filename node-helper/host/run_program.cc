#include "node-helper/host/run_program.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "common/unique_fd.h"

namespace symvirt::host {
namespace {

constexpr std::size_t kKept = 2048;

// noded blocks SIGTERM in its threads; a program must not inherit that.
struct Attributes {
  posix_spawnattr_t value;
  Attributes() {
    posix_spawnattr_init(&value);
    sigset_t none;
    sigemptyset(&none);
    posix_spawnattr_setsigmask(&value, &none);
    posix_spawnattr_setflags(&value, POSIX_SPAWN_SETSIGMASK);
  }
  ~Attributes() { posix_spawnattr_destroy(&value); }
};

struct Actions {
  posix_spawn_file_actions_t value;
  Actions() { posix_spawn_file_actions_init(&value); }
  ~Actions() { posix_spawn_file_actions_destroy(&value); }
};

}  // namespace

Status run_program(const std::vector<std::string>& argv, Deadline deadline) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0)
    return Error{Code::kInternal, fmt::format("pipe: {}", std::strerror(errno))};
  UniqueFd read_end(ends[0]), write_end(ends[1]);
  Actions actions;
  Attributes attributes;
  posix_spawn_file_actions_addopen(&actions.value, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions.value, 1, "/dev/null", O_WRONLY, 0);
  posix_spawn_file_actions_adddup2(&actions.value, write_end.get(), 2);
  std::vector<char*> args;
  for (const std::string& a : argv) args.push_back(const_cast<char*>(a.c_str()));
  args.push_back(nullptr);
  char path[] = "PATH=/usr/sbin:/usr/bin:/sbin:/bin", lang[] = "LC_ALL=C.UTF-8";
  char* environment[] = {path, lang, nullptr};
  pid_t pid = -1;
  const int rc =
      posix_spawn(&pid, args[0], &actions.value, &attributes.value, args.data(), environment);
  if (rc != 0) return Error{Code::kInternal, fmt::format("{}: {}", argv[0], std::strerror(rc))};
  write_end.reset();
  std::string text;
  bool in_time = true;
  for (;;) {
    pollfd p{read_end.get(), POLLIN, 0};
    const int ready = poll(&p, 1, static_cast<int>(deadline.left().count()));
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) {
      in_time = false;
      kill(pid, SIGKILL);
      break;
    }
    char buffer[512];
    const ssize_t n = read(read_end.get(), buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    text.append(buffer, static_cast<std::size_t>(n));
    if (text.size() > kKept) text.erase(0, text.size() - kKept);
  }
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
  if (!in_time) return Error{Code::kDeadline, fmt::format("{}: not done in time", argv[0])};
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return {};
  return Error{Code::kRefused, fmt::format("{}: {}", argv[0], text.empty() ? "failed" : text)};
}

}  // namespace symvirt::host
