#include "spank-symvirt/plugin/stepd.h"

#include <dlfcn.h>
#include <unistd.h>

#include <chrono>

#include "common/log.h"
#include "pmix-hooks/server/guest_link.h"

namespace symvirt::plugin {
namespace {

constexpr std::chrono::milliseconds kRetryPause{200};
constexpr std::chrono::seconds kSocketGrace{2};
constexpr std::chrono::seconds kGuestdRestart{
    10};  // longest time guestd may be away before it counts as gone

// Asks until there is an answer: guestd may be restarted at any time. Gives up on an unreachable
// guestd after kGuestdRestart without one connection, on a silent one at the deadline.
Result<hooks::GuestReply> ask_patiently(const std::string& socket, const std::string& line,
                                        Deadline deadline) {
  Deadline unreachable = Deadline::after(kGuestdRestart).earlier(deadline);
  while (true) {
    const auto began = Deadline::Clock::now();
    Result<hooks::GuestReply> reply = hooks::ask_guestd(socket, line, deadline);
    if (reply || reply.error().code != Code::kUnavailable) return reply;
    // It answered the connect and went away later: a restart in the middle.
    if (Deadline::Clock::now() - began > kRetryPause)
      unreachable = Deadline::after(kGuestdRestart).earlier(deadline);
    if (unreachable.expired()) return reply;
    usleep(std::chrono::microseconds(kRetryPause).count());
  }
}

// A guestd that is being restarted has no socket for a moment; a bare host has none for ever.
bool appears(const std::string& socket) {
  const Deadline deadline = Deadline::after(kSocketGrace);
  while (access(socket.c_str(), F_OK) != 0) {
    if (deadline.expired()) return false;
    usleep(std::chrono::microseconds(kRetryPause).count());
  }
  return true;
}

}  // namespace

std::string hooks_beside_plugin() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<void*>(&hooks_beside_plugin), &info) == 0 ||
      info.dli_fname == nullptr)
    return {};
  const std::string path = info.dli_fname;
  return path.substr(0, path.rfind('/') + 1) + "libsymvirt_hooks.so";
}

Status StepdPart::admit(std::uint32_t task) {
  if (!appears(config_.guestd_socket)) {
    return Error{
        Code::kRefused,
        "this node is not a SymVirt VM (no " + config_.guestd_socket +
            "), and a --symvirt job runs only in one; submit it to a partition of VM nodes"};
  }
  const std::string library = task_environment().hooks;
  if (access(library.c_str(), R_OK) != 0) {
    return Error{Code::kRefused,
                 "the VM image lacks " + library + "; install the guest package in it"};
  }
  if (const Status entered = enter(task); !entered) return entered;
  return check_node();
}

Status StepdPart::check_node() {
  const Deadline deadline = Deadline::after(std::chrono::seconds(config_.check_timeout_s));
  Result<hooks::GuestReply> reply =
      ask_patiently(config_.guestd_socket, hooks::encode_node_check("check", step_.job), deadline);
  if (!reply) return Error{Code::kRefused, "the VM cannot be checked: " + reply.error().message};
  Result<hooks::NodeCheck> check = hooks::parse_node_check(*reply);
  if (!check) return Error{Code::kRefused, "the VM cannot be checked: " + check.error().message};
  check_ = std::move(*check);
  if (check_.healthy) return {};
  return Error{Code::kRefused, "this VM is not healthy: " +
                                   (check_.reason.empty() ? "no reason given" : check_.reason)};
}

Status StepdPart::enter(std::uint32_t task) const {
  const Deadline deadline = Deadline::after(std::chrono::seconds(config_.enter_timeout_s));
  Result<hooks::GuestReply> reply =
      ask_patiently(config_.guestd_socket,
                    hooks::encode_task_enter("enter", step_.job, step_.step, task), deadline);
  if (reply && !reply->error) return {};
  const Error& error = reply ? *reply->error : reply.error();
  if (error.code == Code::kDeadline) {
    return Error{Code::kDeadline, "the job is being moved, and the step could not start within " +
                                      std::to_string(config_.enter_timeout_s) + " s"};
  }
  return error.with("the step may not start");
}

TaskEnvironment StepdPart::task_environment() const {
  TaskEnvironment environment;
  environment.hooks = config_.hooks.empty() ? hooks_beside_plugin() : config_.hooks;
  environment.networks = check_.networks;
  if (!config_.network.empty()) environment.networks = {config_.network};
  environment.quiesce = check_.quiesce;
  environment.defaults = config_.environment;
  environment.rdma = check_.rdma;
  environment.soft_roce = check_.soft_roce;
  return environment;
}

void StepdPart::start_agent() {
  if (agent_ || step_.step >= kFirstSpecialStep) return;
  auto agent = std::make_unique<hooks::StepAgent>(config_.guestd_socket, step_);
  const Status started = agent->start();
  if (started) {
    agent_ = std::move(agent);
  } else {
    log_error(started.error().message);
  }
}

}  // namespace symvirt::plugin
