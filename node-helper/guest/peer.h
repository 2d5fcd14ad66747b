// One connection that speaks the lines of message.h: asks, answers, and never blocks. Used for
// guestd.sock and, by Channel, for the virtio-serial port.
//
// Ownership: shared, because answers arrive later: whoever holds a Reply keeps a weak reference
// only, and an answer for a connection that is gone is dropped.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>

#include "common/line_buffer.h"
#include "common/unique_fd.h"
#include "node-helper/guest/event_loop.h"
#include "node-helper/guest/message.h"

namespace symvirt::guest {

using Reply = std::function<void(Result<Json>)>;  // to be called once; later calls are ignored
using Outcome = std::function<void(Result<Json>)>;

class Peer : public std::enable_shared_from_this<Peer> {
 public:
  struct Options {
    std::size_t max_line = kMaxLineBytes;
    std::size_t max_queued = 4 * kMaxLineBytes;  // unread answers; more: the peer is stuck, closed
  };
  struct Handlers {
    std::function<void(Peer&, Request, Reply)> request;
    std::function<void(Peer&, const std::string& why)> closed;  // not called for close()
  };

  // fd: a connected stream socket, non-blocking.
  static Result<std::shared_ptr<Peer>> create(EventLoop& loop, UniqueFd fd, Options options,
                                              Handlers handlers);
  ~Peer();

  // The outcome comes exactly once: the answer, kDeadline, or kUnavailable when the connection ends
  // first.
  void call(const std::string& method, const Json& params, Milliseconds timeout, Outcome outcome);
  void close(const std::string& why);
  bool open() const { return static_cast<bool>(fd_); }

 private:
  struct Pending {
    Outcome outcome;
    Handle timer;
  };
  Peer(EventLoop& loop, UniqueFd fd, Options options, Handlers handlers);
  void on_ready(std::uint32_t events);
  bool read_some();  // false: the connection has ended
  void on_line(const std::string& line);
  void send(std::string line);
  void flush();
  void end(const std::string& why);

  EventLoop& loop_;
  UniqueFd fd_;
  Options options_;
  Handlers handlers_;
  Handle watch_;
  LineBuffer lines_;
  std::string out_;
  std::uint64_t next_id_ = 1;
  std::unordered_map<std::string, Pending> pending_;
};

// Wraps a reply so that only the first call counts.
Reply once(Reply reply);

}  // namespace symvirt::guest
