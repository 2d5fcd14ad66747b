// The daemon's one thread: descriptors, timers, signals and children of sd-event behind handles
// that end a subscription when they are destroyed. Callbacks may destroy their own handle.
//
// Threads: everything here belongs to the thread that calls run().
#pragma once

#include <sys/types.h>
#include <systemd/sd-event.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>

#include "common/result.h"

namespace symvirt::guest {

using Handle = std::shared_ptr<void>;  // dropping it ends the subscription
using Milliseconds = std::chrono::milliseconds;

// The seam between the transaction logic and time: EventLoop in the daemon, a clock turned by hand
// in the unit tests.
class Timers {
 public:
  virtual ~Timers() = default;
  // CLOCK_MONOTONIC. It stands still while the VM is saved, as a lease should.
  virtual std::uint64_t now_ms() = 0;
  [[nodiscard]] virtual Handle after(Milliseconds delay, std::function<void()> fire) = 0;
};

class EventLoop : public Timers {
 public:
  static Result<std::unique_ptr<EventLoop>> create();
  ~EventLoop() override;
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  std::uint64_t now_ms() override;
  Handle after(Milliseconds delay, std::function<void()> fire) override;
  // events: EPOLLIN and friends. kInternal when the descriptor cannot be polled.
  Result<Handle> watch(int fd, std::uint32_t events, std::function<void(std::uint32_t)> ready);
  // wait_status: as of waitpid(2). The child is reaped.
  Result<Handle> on_child(pid_t pid, std::function<void(int wait_status)> ended);
  // The signal must not be blocked yet; it is from here on.
  Status exit_on(int signal);

  int run();  // until quit(); the exit code
  void quit(int code);

 private:
  explicit EventLoop(sd_event* event) : event_(event) {}
  sd_event* event_;
};

// Changes what a handle from watch() waits for.
void set_events(const Handle& handle, std::uint32_t events);

}  // namespace symvirt::guest
