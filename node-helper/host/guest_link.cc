#include "node-helper/host/guest_link.h"

#include <fmt/format.h>

#include "common/json_nesting.h"
#include "common/line_buffer.h"
#include "common/log.h"
#include "node-helper/protocol/rpc.h"

namespace symvirt::host {

using nlohmann::json;
using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

namespace {

constexpr milliseconds kRepeatAfter{3'000};   // a line without answer is sent again
constexpr milliseconds kResendAfter{200};     // at most so often for a guest that says hello
constexpr milliseconds kOpenAgainAfter{200};  // a port that could not be opened
constexpr milliseconds kOpenWithin{5'000};

}  // namespace

struct GuestLink::Port {
  std::mutex mutex;
  std::condition_variable changed;
  std::unique_ptr<ByteChannel> channel;
  std::uint64_t opened = 0;  // callbacks of an earlier opening are not listened to
  bool opening = false;
  bool left = false;
  bool heard = false;  // of guestd, since the port was opened
  bool resend = false;
  Clock::time_point next_open{};
  Clock::time_point last_sent{};
  LineBuffer input;
  std::map<std::string, Line> lines;

  // end: ends whatever half line was there before. An empty one asks for a hello, so that it must
  // not be what answers a hello.
  void send_pending(const char* end = "\n") {
    resend = false;
    if (!channel) return;
    std::string all;
    for (const auto& [id, line] : lines) {
      if (!line.answer) all += line.text + "\n";
    }
    last_sent = Clock::now();
    if (!all.empty()) channel->send(end + all);
  }

  // A guest is not believed to be new as often as it says so.
  bool may_resend() const { return resend && Clock::now() - last_sent >= kResendAfter; }

  void on_line(const std::string& text) {
    if (nested_too_deeply(text)) return;
    const json message = json::parse(text, nullptr, false);
    if (!message.is_object()) return;
    heard = true;
    if (message.contains("event")) {
      // guestd is new here: it knows nothing of what the one before it was asked.
      resend |= message["event"] == "hello";
      if (may_resend()) send_pending(" \n");
      return;
    }
    auto id = message.find("id");
    if (id == message.end() || !id->is_string()) return;
    auto line = lines.find(id->get<std::string>());
    if (line == lines.end() || line->second.answer) return;
    if (message.contains("error"))
      line->second.answer = error_from_json(message["error"]);
    else
      line->second.answer = message.value("result", json::object());
    changed.notify_all();
  }

  void on_data(std::uint64_t opening_number, std::string_view bytes) {
    std::lock_guard lock(mutex);
    if (opening_number != opened) return;
    if (Status s = input.append(bytes); !s) {
      log_warning(fmt::format("guest port: {}", s.error().message));
      input.clear();
      return;
    }
    while (auto text = input.next()) on_line(*text);
  }

  // The channel is handed out, to be destroyed without the lock.
  std::unique_ptr<ByteChannel> close() {
    heard = false;
    input.clear();
    ++opened;
    changed.notify_all();
    return std::move(channel);
  }
};

GuestLink::PortPtr GuestLink::port_of(const std::string& vm) {
  std::lock_guard lock(mutex_);
  PortPtr& port = ports_[vm];
  if (!port) port = std::make_shared<Port>();
  return port;
}

bool GuestLink::heard_of(const std::string& vm) const {
  PortPtr port;
  {
    std::lock_guard lock(mutex_);
    auto it = ports_.find(vm);
    if (it == ports_.end()) return false;
    port = it->second;
  }
  std::lock_guard lock(port->mutex);
  return port->channel && port->heard;
}

void GuestLink::vm_left(const std::string& vm) {
  PortPtr port;
  {
    std::lock_guard lock(mutex_);
    auto it = ports_.find(vm);
    if (it == ports_.end()) return;
    port = std::move(it->second);
    ports_.erase(it);
  }
  std::unique_ptr<ByteChannel> old;
  std::lock_guard lock(port->mutex);
  port->left = true;
  old = port->close();
}

void GuestLink::reopen_all() {
  std::map<std::string, PortPtr> ports;
  {
    std::lock_guard lock(mutex_);
    ports = ports_;
  }
  for (auto& [vm, port] : ports) {
    std::unique_ptr<ByteChannel> old;
    {
      std::lock_guard lock(port->mutex);
      old = port->close();
    }
  }
}

Status GuestLink::open(const std::string& vm, const PortPtr& port, Deadline deadline) {
  std::uint64_t number = 0;
  {
    std::lock_guard lock(port->mutex);
    number = ++port->opened;
  }
  std::weak_ptr<Port> weak = port;
  auto channel = hypervisor_.open_channel(
      vm, kGuestPort,
      [weak, number](std::string_view bytes) {
        if (auto p = weak.lock()) p->on_data(number, bytes);
      },
      [weak, number] {
        std::unique_ptr<ByteChannel> old;
        if (auto p = weak.lock()) {
          std::lock_guard lock(p->mutex);
          if (p->opened == number) old = p->close();
        }
      },
      deadline.earlier(Deadline::after(kOpenWithin)));
  std::unique_ptr<ByteChannel> unwanted;
  std::lock_guard lock(port->mutex);
  port->opening = false;
  port->changed.notify_all();
  if (!channel) {
    port->next_open = Clock::now() + kOpenAgainAfter;
    return channel.error();
  }
  if (port->opened != number) {  // closed again meanwhile
    unwanted = std::move(*channel);
    return {};
  }
  port->channel = std::move(*channel);
  port->send_pending();
  return {};
}

// Once round: opens the port when it is shut, repeats what was not answered, then waits a little.
Status GuestLink::wait_step(const std::string& vm, const PortPtr& port, Line& line,
                            Deadline deadline) {
  std::unique_lock lock(port->mutex);
  if (line.answer || port->left) return {};
  const bool should_open = !port->channel && !port->opening && Clock::now() >= port->next_open;
  if (port->may_resend()) port->send_pending(" \n");
  const bool should_repeat = port->channel && Clock::now() - port->last_sent >= kRepeatAfter;
  if (should_open) port->opening = true;
  if (should_open || should_repeat) {
    lock.unlock();
    // Also what notices that libvirtd is another one by now.
    auto look = hypervisor_.look(vm, deadline.earlier(Deadline::after(kOpenWithin)));
    Status status;
    const bool here = look && look->state != VmState::kAbsent && look->state != VmState::kShutoff;
    if (!look)
      status = look.error();
    else if (!here)
      status = Error{Code::kNotFound, fmt::format("{}: is not on this host", vm)};
    else if (!look->domain.has_guest_port)
      status = Error{Code::kPrecondition,
                     fmt::format("{}: has no port {}; add the <channel> to its class's domain XML",
                                 vm, kGuestPort)};
    else if (should_open && look->state != VmState::kIncoming)
      return open(vm, port, deadline);
    lock.lock();
    if (should_open) {
      port->opening = false;
      port->next_open = Clock::now() + kOpenAgainAfter;
    } else if (status) {
      port->send_pending();
    }
    const bool hopeless = !status && !status.error().unknown_effect();
    if (hopeless) return status;
  }
  const auto until = std::min(deadline.time(), Clock::now() + milliseconds(200));
  port->changed.wait_until(lock, until, [&] { return line.answer.has_value() || port->left; });
  return {};
}

Result<json> GuestLink::call(const std::string& vm, const std::string& id,
                             const std::string& method, const json& params, Deadline deadline,
                             const std::function<bool()>& given_up) {
  PortPtr port = port_of(vm);
  Line* line = nullptr;
  {
    std::lock_guard lock(port->mutex);
    line = &port->lines[id];
    if (line->waiters++ == 0) {
      const json message = {{"id", id}, {"method", method}, {"params", params}};
      line->text = message.dump(-1, ' ', false, json::error_handler_t::replace);
      if (port->channel) port->channel->send(line->text + "\n");
      if (port->lines.size() == 1) port->last_sent = Clock::now();
    }
  }
  Result<json> result = Error{Code::kUnavailable, fmt::format("{}: guestd does not answer", vm)};
  for (;;) {
    Status status = wait_step(vm, port, *line, deadline);
    std::lock_guard lock(port->mutex);
    if (line->answer) {
      result = *line->answer;
    } else if (port->left) {
      result = Error{Code::kUnavailable, fmt::format("{}: has left this host", vm)};
    } else if (!status && !status.error().unknown_effect()) {
      result = status.error();
    } else if (deadline.expired()) {
      result = port->heard
                   ? Error{Code::kDeadline, fmt::format("{}: no answer to {} in time", vm, method)}
                   : Error{Code::kUnavailable,
                           fmt::format("{}: no symvirt-guestd has been heard of; does it run "
                                       "in the guest?",
                                       vm)};
      if (!status) result = result.error().with(status.error().message);
    } else if (given_up && given_up()) {
      result = Error{Code::kCancelled, fmt::format("{}: caller of {} has gone", vm, method)};
    } else {
      continue;
    }
    if (--line->waiters == 0) port->lines.erase(id);
    return result;
  }
}

}  // namespace symvirt::host
