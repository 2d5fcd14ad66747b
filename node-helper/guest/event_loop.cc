#include "node-helper/guest/event_loop.h"

#include <fmt/format.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <time.h>

#include <cstring>

namespace symvirt::guest {
namespace {

// What the sd_event_source points to. The callback is kept alive while it runs: it may drop the
// last handle to itself.
struct Subscription {
  sd_event_source* source = nullptr;
  std::shared_ptr<std::function<void(std::uint32_t)>> callback;

  explicit Subscription(std::function<void(std::uint32_t)> f)
      : callback(std::make_shared<std::function<void(std::uint32_t)>>(std::move(f))) {}
  ~Subscription() { sd_event_source_disable_unref(source); }
  Subscription(const Subscription&) = delete;
  Subscription& operator=(const Subscription&) = delete;

  static void call(void* self, std::uint32_t argument) {
    const auto keep = static_cast<Subscription*>(self)->callback;
    (*keep)(argument);
  }
};

int io_ready(sd_event_source*, int, std::uint32_t events, void* self) {
  Subscription::call(self, events);
  return 0;
}

int timer_fired(sd_event_source*, std::uint64_t, void* self) {
  Subscription::call(self, 0);
  return 0;
}

int child_ended(sd_event_source*, const siginfo_t* info, void* self) {
  // siginfo has status and kind apart; put them together as waitpid(2) does.
  const bool exited = info->si_code == CLD_EXITED;
  Subscription::call(self,
                     exited ? W_EXITCODE(info->si_status, 0) : W_EXITCODE(0, info->si_status));
  return 0;
}

Error failed(const char* what, int error) {
  return Error{Code::kInternal, fmt::format("event loop: {}: {}", what, std::strerror(-error))};
}

}  // namespace

Result<std::unique_ptr<EventLoop>> EventLoop::create() {
  // For on_child(): the signal is to wait until the loop looks.
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGCHLD);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  sd_event* event = nullptr;
  if (const int r = sd_event_new(&event); r < 0) return failed("sd_event_new", r);
  return std::unique_ptr<EventLoop>(new EventLoop(event));
}

EventLoop::~EventLoop() { sd_event_unref(event_); }

std::uint64_t EventLoop::now_ms() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1000 +
         static_cast<std::uint64_t>(now.tv_nsec) / 1000000;
}

Handle EventLoop::after(Milliseconds delay, std::function<void()> fire) {
  auto subscription = std::make_shared<Subscription>([f = std::move(fire)](std::uint32_t) { f(); });
  const std::uint64_t us =
      static_cast<std::uint64_t>(std::max<std::int64_t>(delay.count(), 0)) * 1000;
  // Accuracy 1 ms: the default of 250 ms would show in every pause.
  sd_event_add_time_relative(event_, &subscription->source, CLOCK_MONOTONIC, us, 1000, timer_fired,
                             subscription.get());
  return subscription;
}

Result<Handle> EventLoop::watch(int fd, std::uint32_t events,
                                std::function<void(std::uint32_t)> ready) {
  auto subscription = std::make_shared<Subscription>(std::move(ready));
  const int r =
      sd_event_add_io(event_, &subscription->source, fd, events, io_ready, subscription.get());
  if (r < 0) return failed("sd_event_add_io", r);
  return Handle(subscription);
}

Result<Handle> EventLoop::on_child(pid_t pid, std::function<void(int)> ended) {
  auto subscription = std::make_shared<Subscription>(
      [f = std::move(ended)](std::uint32_t status) { f(static_cast<int>(status)); });
  const int r = sd_event_add_child(event_, &subscription->source, pid, WEXITED, child_ended,
                                   subscription.get());
  if (r < 0) return failed("sd_event_add_child", r);
  return Handle(subscription);
}

Status EventLoop::exit_on(int signal) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, signal);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  const int r = sd_event_add_signal(event_, nullptr, signal, nullptr, nullptr);
  return r < 0 ? Status(failed("sd_event_add_signal", r)) : Status();
}

int EventLoop::run() { return sd_event_loop(event_); }
void EventLoop::quit(int code) { sd_event_exit(event_, code); }

void set_events(const Handle& handle, std::uint32_t events) {
  if (!handle) return;
  sd_event_source_set_io_events(static_cast<Subscription*>(handle.get())->source, events);
}

}  // namespace symvirt::guest
