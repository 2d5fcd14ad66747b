// The connection of one step to symvirt-guestd: non-blocking, reconnecting with back-off. For one
// thread with poll(2).
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "common/deadline.h"
#include "common/line_buffer.h"
#include "common/result.h"
#include "common/unique_fd.h"
#include "pmix-hooks/server/guest_protocol.h"

namespace symvirt::hooks {

// A connected stream socket, or why not. kUnavailable: nobody listens (no such socket, refused).
Result<UniqueFd> connect_guestd(const std::string& path);

// One question, one answer, on a connection of its own; for the short-lived callers (node.check,
// task.enter). Blocks until the deadline. kUnavailable when guestd cannot be reached or closes the
// connection.
Result<GuestReply> ask_guestd(const std::string& path, const std::string& line, Deadline deadline);

class GuestLink {
 public:
  explicit GuestLink(std::string path) : path_(std::move(path)) {}

  bool connected() const { return static_cast<bool>(fd_); }
  int fd() const { return fd_.get(); }
  bool wants_write() const { return !out_.empty(); }
  Deadline retry_at() const { return retry_at_; }

  // Tries to connect when it is time to. True: connected just now.
  bool connect_if_due();
  // Queues a line and writes what the socket takes. Dropped when not connected: guestd asks again.
  void send(const std::string& line);
  void flush();
  void close() { fd_.reset(); }
  // Reads what is there; the whole messages in it. Lines that do not parse are logged and dropped.
  std::vector<GuestMessage> receive();

 private:
  void disconnect();

  std::string path_;
  UniqueFd fd_;
  LineBuffer in_;
  std::string out_;
  std::chrono::milliseconds backoff_{100};
  Deadline retry_at_ = Deadline::after(std::chrono::milliseconds(0));
};

}  // namespace symvirt::hooks
