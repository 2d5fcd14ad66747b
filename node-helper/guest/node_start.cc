#include "node-helper/guest/node_start.h"

#include <fmt/format.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include "common/log.h"

namespace symvirt::guest {
namespace {

constexpr Milliseconds kPatience{2000};

Result<pid_t> spawn(std::vector<std::string> command) {
  std::vector<char*> argv;
  for (std::string& word : command) argv.push_back(word.data());
  argv.push_back(nullptr);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none, all;
  sigemptyset(&none);
  sigfillset(&all);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &all);
  // A session of its own: what it starts must not end with guestd.
  posix_spawnattr_setflags(&attributes,
                           POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", 0, 0);
  pid_t pid = -1;
  const int error = posix_spawn(&pid, argv[0], &files, &attributes, argv.data(), environ);
  posix_spawn_file_actions_destroy(&files);
  posix_spawnattr_destroy(&attributes);
  if (error != 0) {
    return Error{Code::kRefused,
                 fmt::format("guest.start_node: {}: {}; correct start_command in guestd.toml",
                             argv[0], std::strerror(error))};
  }
  return pid;
}

}  // namespace

NodeStart::NodeStart(EventLoop& loop, std::vector<std::string> command, bool started,
                     std::function<void()> changed)
    : loop_(loop), command_(std::move(command)), started_(started), changed_(std::move(changed)) {}

void NodeStart::start(Reply reply) {
  if (started_ && waiting_.empty()) return reply(Json{{"started", false}});
  waiting_.push_back(std::move(reply));
  if (waiting_.size() > 1) return;
  if (command_.empty()) {
    return answer(
        Error{Code::kPrecondition, "guest.start_node: no start_command; set it in guestd.toml"});
  }
  const auto pid = spawn(command_);
  if (!pid) return answer(pid.error());
  log_info(fmt::format("node started: {} (pid {})", command_[0], *pid));
  // Stored before it is known to have worked: a guestd killed here must not start a second one.
  started_ = true;
  changed_();
  auto child = loop_.on_child(*pid, [this](int status) { ended(status); });
  if (!child) return answer(child.error());
  child_ = *child;
  patience_ = loop_.after(kPatience, [this] { answer(Json{{"started", true}}); });
}

void NodeStart::ended(int status) {
  child_.reset();
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return answer(Json{{"started", true}});
  const std::string how = WIFEXITED(status) ? fmt::format("exit code {}", WEXITSTATUS(status))
                                            : fmt::format("signal {}", WTERMSIG(status));
  const Error error{
      Code::kRefused,
      fmt::format("guest.start_node: {}: {}; see its log in the guest", command_[0], how)};
  log_error(error.message);
  started_ = false;
  changed_();
  answer(error);
}

void NodeStart::answer(Result<Json> result) {
  patience_.reset();
  for (const Reply& reply : std::exchange(waiting_, {})) reply(result);
}

}  // namespace symvirt::guest
