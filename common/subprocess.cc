#include "common/subprocess.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "common/unique_fd.h"

extern char** environ;

namespace symvirt {
namespace {

constexpr auto kForTheKill = std::chrono::seconds(1);

// Reads until every writer has gone or the deadline passes; false: the deadline.
bool read_all(int fd, std::string& output, Deadline deadline) {
  char buffer[4096];
  for (;;) {
    pollfd p{fd, POLLIN, 0};
    if (deadline.expired()) return false;
    if (poll(&p, 1, static_cast<int>(deadline.left().count())) <= 0) continue;
    const ssize_t n = read(fd, buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return true;
    const std::size_t room = kMostOutput - output.size();
    output.append(buffer, std::min(room, static_cast<std::size_t>(n)));
  }
}

// A program may close its output and live on.
bool wait_until(pid_t pid, int& status, Deadline deadline) {
  for (;;) {
    const pid_t done = waitpid(pid, &status, WNOHANG);
    if (done == pid || (done < 0 && errno != EINTR)) return true;
    if (deadline.expired()) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

Result<pid_t> start(const std::vector<std::string>& argv, int output) {
  std::vector<char*> words;
  for (const std::string& word : argv) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, output, 1);
  posix_spawn_file_actions_adddup2(&actions, output, 2);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none;  // the daemons block signals in their threads; a program must not inherit that
  sigemptyset(&none);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK);
  pid_t pid = 0;
  std::vector<char*> environment;
  for (char** e = environ; *e != nullptr; ++e) environment.push_back(*e);
  char path[] = "PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin";
  if (getenv("PATH") == nullptr) environment.push_back(path);
  environment.push_back(nullptr);
  const int error =
      posix_spawnp(&pid, words[0], &actions, &attributes, words.data(), environment.data());
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0)
    return Error{Code::kNotFound, fmt::format("{}: {}", argv[0], std::strerror(error))};
  return pid;
}

}  // namespace

std::string ProgramResult::why() const {
  constexpr std::size_t kKept = 500;
  std::string text = output.substr(output.size() > kKept ? output.size() - kKept : 0);
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back()))) text.pop_back();
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text.empty() ? fmt::format("exit code {}", exit_code) : text;
}

Result<ProgramResult> run_program(const std::vector<std::string>& argv, Deadline deadline) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0)
    return Error{Code::kInternal, fmt::format("{}: pipe: {}", argv[0], std::strerror(errno))};
  UniqueFd ours(ends[0]), theirs(ends[1]);
  auto pid = start(argv, theirs.get());
  if (!pid) return pid.error();
  theirs.reset();
  ProgramResult result;
  int status = 0;
  if (!read_all(ours.get(), result.output, deadline) || !wait_until(*pid, status, deadline)) {
    kill(-*pid, SIGKILL);
    // Not for ever: one that hangs in the kernel (a dead file system) cannot be killed, and has to
    // be told of all the same.
    wait_until(*pid, status, Deadline::after(kForTheKill));
    return Error{Code::kDeadline, fmt::format("{}: not done in time; killed", argv[0])};
  }
  result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return result;
}

}  // namespace symvirt
