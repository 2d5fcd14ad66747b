// The guest's end of the virtio-serial port on which symvirt-noded speaks (docs/protocols.md
// section 2).
//
// What makes it different from a socket: the port outlives every host. While nobody has it open on
// the host, read(2) returns 0, write(2) EAGAIN, and poll(2) says EPOLLHUP for as long as that
// lasts: a level-triggered loop would spin. So the descriptor is watched edge-triggered: the driver
// wakes its waiters when the host opens or closes the port and when bytes arrive, and that is all
// that is wanted. Only an unplugged port (ENODEV) is closed and looked for again. A request may be
// repeated after a migration: answers of the last ids are kept and sent again (RequestCache).
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "common/line_buffer.h"
#include "common/unique_fd.h"
#include "node-helper/guest/event_loop.h"
#include "node-helper/guest/peer.h"
#include "node-helper/guest/request_cache.h"

namespace symvirt::guest {

class Channel {
 public:
  struct Options {
    std::string port = "org.symvirt.guest.0";
    std::string
        path;  // instead of the port: a character device, or a Unix socket to connect to (tests)
  };
  // hello: the line (with its newline) that is sent when the host has opened the port.
  using Handler = std::function<void(const Request&, Reply)>;

  Channel(EventLoop& loop, Options options, std::function<std::string()> hello, Handler handler);
  ~Channel();

  void start();  // opens now or as soon as the port exists
  // True when the bytes being handled came after at least that long without any.
  bool silent_for(Milliseconds duration) const;
  // At most once a second: what comes sooner is said when the second is over.
  void say_hello();

 private:
  void try_open();
  void retry();
  void on_ready(std::uint32_t events);
  void host_connected(bool connected);
  bool read_all();
  void on_line(const std::string& line);
  void send(const std::string& line);
  void flush();
  void lost(const std::string& why);

  EventLoop& loop_;
  Options options_;
  std::function<std::string()> hello_;
  Handler handler_;
  UniqueFd fd_;
  bool is_socket_ = false;
  bool host_connected_ = false;
  Handle watch_;
  Handle retry_timer_;
  unsigned attempts_ = 0;
  LineBuffer lines_;
  std::string out_;
  RequestCache cache_;
  std::uint64_t last_heard_ms_ = 0;
  std::uint64_t silence_ms_ = 0;
  std::uint64_t next_hello_ms_ = 0;
  Handle hello_timer_;
};

// Path of the device of that virtio port: /dev/virtio-ports/NAME where udev makes such links, else
// by the name that the driver shows in sysfs. kNotFound. sys and dev are roots, for tests.
Result<std::string> find_virtio_port(const std::string& name, const std::string& sys = "/sys",
                                     const std::string& dev = "/dev");

}  // namespace symvirt::guest
