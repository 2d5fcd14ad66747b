#include "pmix-hooks/server/step_agent.h"

#include <poll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <utility>

#include "common/log.h"

namespace symvirt::hooks {
namespace {

constexpr std::chrono::milliseconds kStopPoll{
    1};  // a stop takes effect within microseconds; there is no event for it
constexpr std::chrono::milliseconds kIdle{60'000};

std::string member_text(std::uint32_t rank, std::int32_t pid) {
  return "rank " + std::to_string(rank) + " (pid " + std::to_string(pid) + ")";
}

}  // namespace

StepAgent::StepAgent(std::string guestd_socket, StepIdentity step)
    : step_(std::move(step)), nspace_(step_.nspace), link_(std::move(guestd_socket)) {}

Status StepAgent::start() {
  wake_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_)
    return Error{Code::kInternal,
                 std::string("step agent not started: eventfd: ") + std::strerror(errno)};
  // Here and not in the thread: the tasks wait for slurmstepd's signal to exec, so that no HELLO
  // can come earlier.
  const Status opened = events_.open([this](RankEvent event) {
    const std::lock_guard lock(mutex_);
    queue_.push_back(std::move(event));
    eventfd_write(wake_.get(), 1);
  });
  // A step without PMIx has no members; guestd still has to know the step.
  if (!opened) log_info("step " + std::to_string(step_.step) + ": " + opened.error().message);
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  const int error = pthread_create(&thread_, nullptr, &StepAgent::run_thread, this);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (error != 0) {
    events_.close();
    return Error{Code::kInternal,
                 std::string("step agent not started: thread: ") + std::strerror(error)};
  }
  running_ = true;
  pthread_setname_np(thread_, "symvirt");
  return {};
}

void StepAgent::stop() {
  if (!std::exchange(running_, false)) return;
  {
    const std::lock_guard lock(mutex_);
    stop_requested_ = true;
  }
  eventfd_write(wake_.get(), 1);
  pthread_join(thread_, nullptr);
  events_.close();
}

void* StepAgent::run_thread(void* self) {
  auto* const agent = static_cast<StepAgent*>(self);
  try {
    agent->run();
  } catch (...) {  // out of memory
    log_error("step agent ended by an exception; this step cannot be moved any more");
  }
  try {
    agent->leave();
  } catch (...) {
  }
  return nullptr;
}

// Nobody stays stopped without us, and guestd sees by the closed connection that we are gone.
void StepAgent::leave() {
  link_.close();
  for (const auto& [pid, process] : processes_) {
    if (process.stop_progress() == StopProgress::kStopped) {
      static_cast<void>(process.signal(SIGCONT));
    }
  }
}

void StepAgent::run() {
  std::vector<RankEvent> events;
  while (take_rank_events(events)) {
    for (const RankEvent& event : events) serve_rank(event);
    if (link_.connect_if_due()) register_step();
    for (GuestMessage& message : link_.receive()) serve_guest(std::move(message));
    check_processes();
    check_deadlines();
    wait_for_work();
  }
}

bool StepAgent::take_rank_events(std::vector<RankEvent>& events) {
  events.clear();
  eventfd_t count = 0;
  eventfd_read(wake_.get(), &count);
  const std::lock_guard lock(mutex_);
  events.swap(queue_);
  return !stop_requested_;
}

int StepAgent::timeout_ms() const {
  Deadline next = Deadline::after(kIdle);
  if (!link_.connected()) next = next.earlier(link_.retry_at());
  for (const auto& [pid, look_at] : stopping_) next = next.earlier(look_at);
  for (const auto& [id, request] : requests_) next = next.earlier(request.deadline);
  return static_cast<int>(next.left().count());
}

void StepAgent::wait_for_work() {
  std::vector<pollfd> fds;
  fds.push_back({wake_.get(), POLLIN, 0});
  if (link_.connected()) {
    fds.push_back(
        {link_.fd(), static_cast<short>(POLLIN | (link_.wants_write() ? POLLOUT : 0)), 0});
  }
  for (const auto& [pid, process] : processes_) fds.push_back({process.fd(), POLLIN, 0});
  poll(fds.data(), fds.size(), timeout_ms());
  link_.flush();
}

void StepAgent::check_processes() {
  std::vector<std::int32_t> ended;
  for (const auto& [pid, process] : processes_) {
    pollfd fd{process.fd(), POLLIN, 0};
    if (poll(&fd, 1, 0) == 1) ended.push_back(pid);
  }
  for (std::int32_t pid : ended) {
    processes_.erase(pid);
    stopping_.erase(pid);
    perform(core_.gone(pid));
  }
  std::vector<std::int32_t> stopped;
  for (auto& [pid, look_at] : stopping_) {
    const auto process = processes_.find(pid);
    if (process == processes_.end()) continue;
    if (process->second.stop_progress() == StopProgress::kStopped) {
      stopped.push_back(pid);
    } else {
      look_at = Deadline::after(kStopPoll);
    }
  }
  for (std::int32_t pid : stopped) {
    stopping_.erase(pid);
    perform(core_.stopped(pid));
  }
}

void StepAgent::check_deadlines() {
  std::vector<std::string> late;
  for (const auto& [id, request] : requests_) {
    if (request.deadline.expired()) late.push_back(id);
  }
  for (const std::string& id : late) {
    perform(core_.deadline(id));
    requests_.erase(id);
  }
}

void StepAgent::welcome(const RankEvent& event, std::int32_t pid) {
  Result<Process> process = Process::open(pid);
  // The pid is the rank's own claim: it must be a process of this step, or it could have somebody
  // else's stopped.
  if (!process || !process->belongs_to(step_.pid, step_.uid)) {
    log_warning("HELLO refused: " + member_text(event.rank, pid) +
                ": not a process of this step; it is not held in a migration, which is refused if "
                "it uses the device");
    return;
  }
  set_nodelay_on_loopback();
  nspace_ = event.nspace;
  stopping_.erase(pid);
  processes_.insert_or_assign(pid, std::move(*process));
  perform(core_.hello(event.rank, pid));
}

void StepAgent::serve_rank(const RankEvent& event) {
  if (event.code == kEventAnswer) {
    const Result<Answer> answer = parse_answer(event.message);
    if (!answer) {
      log_warning("answer of rank " + std::to_string(event.rank) +
                  " dropped: " + answer.error().message);
    } else if (core_.rank_of(answer->pid) == event.rank) {
      perform(core_.answer(*answer));
    }
    return;
  }
  const Result<Presence> presence = parse_presence(event.message);
  if (!presence) {
    log_warning("message of rank " + std::to_string(event.rank) +
                " dropped: " + presence.error().message);
    return;
  }
  const std::int32_t pid = presence->pid;
  const bool known = core_.rank_of(pid) == event.rank;
  if (event.code == kEventHello) {
    // With a reason it may come in the middle of a life, and changes nothing else.
    if (!known || presence->immovable.empty()) welcome(event, pid);
    if (core_.rank_of(pid) == event.rank) core_.immovable(pid, presence->immovable);
  } else if (known) {
    perform(core_.bye(pid));
    processes_.erase(pid);
    stopping_.erase(pid);
  }
}

void StepAgent::register_step() {
  link_.send(encode_register("register-" + std::to_string(++registrations_), step_,
                             core_.epoch_at_rest()));
}

void StepAgent::serve_guest(GuestMessage message) {
  if (auto* bad = std::get_if<BadRequest>(&message)) {
    link_.send(encode_error(bad->id, bad->error));
  } else if (auto* reply = std::get_if<GuestReply>(&message)) {
    const Result<Registered> registered = parse_registered(*reply);
    if (!registered) {
      log_warning("step not registered: symvirt-guestd: " + registered.error().message);
    } else {
      perform(core_.registered(registered->peers));
      if (registered->at_rest) perform(core_.rest_expected(registered->epoch));
    }
  } else {
    auto& request = std::get<GuestRequest>(message);
    if (request.kind == RequestKind::kMembers) {
      link_.send(encode_members(request.round.id, core_.members(), step_.tasks));
      return;
    }
    requests_[request.round.id] = {request.kind,
                                   Deadline::after(std::chrono::milliseconds(request.timeout_ms))};
    perform(request.kind == RequestKind::kQuiesce ? core_.quiesce(std::move(request.round))
                                                  : core_.resume(std::move(request.round)));
  }
}

void StepAgent::perform(Effects effects) {
  for (const Effect& effect : effects) {
    std::visit([this](const auto& one) { perform_one(one); }, effect);
  }
}

void StepAgent::perform_one(const SendCommand& effect) {
  const Status sent =
      events_.send(effect.code, nspace_, effect.recipients, encode_command(effect.command));
  if (!sent)
    log_warning(sent.error().message);  // the ranks' answers stay out, and the deadline says whose
}

void StepAgent::perform_one(const StopProcess& effect) {
  const auto process = processes_.find(effect.pid);
  if (process == processes_.end()) return;  // ended: check_processes tells the core
  const Status stopped = process->second.signal(SIGSTOP);
  if (!stopped && stopped.error().code != Code::kNotFound) log_error(stopped.error().message);
  stopping_.insert_or_assign(effect.pid, Deadline::after(std::chrono::milliseconds(0)));
}

void StepAgent::perform_one(const ContinueProcess& effect) {
  stopping_.erase(effect.pid);
  const auto process = processes_.find(effect.pid);
  if (process != processes_.end()) static_cast<void>(process->second.signal(SIGCONT));
}

void StepAgent::perform_one(const Reply& effect) {
  const auto request = requests_.find(effect.id);
  if (request == requests_.end()) return;
  link_.send(encode_reply(effect, request->second.kind));
  requests_.erase(request);
}

}  // namespace symvirt::hooks
