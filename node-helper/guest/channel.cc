#include "node-helper/guest/channel.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "common/log.h"

namespace symvirt::guest {
namespace {

constexpr std::size_t kMostQueued = 4 * kMaxLineBytes;
constexpr Milliseconds kHelloEvery{1000};

Result<UniqueFd> connect_socket(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) {
    return Error{Code::kInvalidArgument, "port: path too long for a Unix socket: " + path};
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    return Error{Code::kUnavailable, fmt::format("port: {}: {}", path, std::strerror(errno))};
  }
  return fd;
}

}  // namespace

Result<std::string> find_virtio_port(const std::string& name, const std::string& sys,
                                     const std::string& dev) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  const fs::path link = fs::path(dev) / "virtio-ports" / name;
  if (fs::exists(link, ignored)) return link.string();
  // A tiny init has no udev: each port's directory is named after its device node, and holds the
  // port's name.
  for (fs::directory_iterator it(fs::path(sys) / "class/virtio-ports", ignored), end;
       !ignored && it != end; it.increment(ignored)) {
    std::string found;
    std::getline(std::ifstream(it->path() / "name"), found);
    if (found == name) return (fs::path(dev) / it->path().filename()).string();
  }
  return Error{Code::kNotFound, fmt::format("virtio port {}: no such port; add a <channel> of that "
                                            "name to the domain and load virtio_console",
                                            name)};
}

Channel::Channel(EventLoop& loop, Options options, std::function<std::string()> hello,
                 Handler handler)
    : loop_(loop),
      options_(std::move(options)),
      hello_(std::move(hello)),
      handler_(std::move(handler)) {}

Channel::~Channel() = default;

void Channel::start() { try_open(); }

void Channel::retry() {
  // The port appears within the first second of a boot; later it is worth no more than a look every
  // two seconds.
  const Milliseconds delay = attempts_ < 100 ? Milliseconds(50) : Milliseconds(2000);
  retry_timer_ = loop_.after(delay, [this] { try_open(); });
}

void Channel::try_open() {
  retry_timer_.reset();
  std::string path = options_.path;
  Error error{Code::kNotFound, ""};
  if (path.empty()) {
    if (auto found = find_virtio_port(options_.port); found) {
      path = *found;
    } else {
      error = found.error();
    }
  }
  struct stat st {};
  UniqueFd fd;
  if (!path.empty()) {
    if (::stat(path.c_str(), &st) == 0 && S_ISSOCK(st.st_mode)) {
      auto connected = connect_socket(path);
      if (connected) fd = std::move(*connected);
      if (!connected) error = connected.error();
    } else {
      fd.reset(::open(path.c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOCTTY));
      if (!fd) error.message = fmt::format("port: {}: {}", path, std::strerror(errno));
    }
  }
  if (!fd) {
    // Said once early (a missing port is a configuration mistake), not at every try.
    if (++attempts_ == 20) log_warning(error.message);
    return retry();
  }
  fd_ = std::move(fd);
  is_socket_ = S_ISSOCK(st.st_mode);
  lines_.clear();
  out_.clear();
  next_hello_ms_ = 0;
  hello_timer_.reset();
  auto watch = loop_.watch(fd_.get(), EPOLLIN | EPOLLOUT | EPOLLET,
                           [this](std::uint32_t events) { on_ready(events); });
  if (!watch) return lost(watch.error().message);
  watch_ = *watch;
  attempts_ = 0;
  log_info(fmt::format("channel to the host open: {}", path));
}

void Channel::on_ready(std::uint32_t events) {
  if ((events & EPOLLHUP) && is_socket_) {
    read_all();
    return lost("closed by the peer");
  }
  host_connected(!(events & EPOLLHUP));
  if (fd_ && (events & EPOLLOUT)) flush();
  if (fd_) read_all();
}

void Channel::host_connected(bool connected) {
  if (connected == host_connected_) return;
  host_connected_ = connected;
  log_debug(connected ? "host has opened the channel" : "host has closed the channel");
  // Whatever was half sent or half received belongs to a reader that is gone; answers are kept by
  // id and asked for again.
  out_.clear();
  if (!connected) lines_.clear();
  if (connected) say_hello();
}

bool Channel::read_all() {
  std::array<char, 32768> buffer;
  for (;;) {
    const ssize_t n = ::read(fd_.get(), buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return true;
    if (n == 0 && !is_socket_) return true;  // nobody has it open on the host
    if (n <= 0) {
      lost(n == 0 ? "closed by the peer" : std::strerror(errno));
      return false;
    }
    const std::uint64_t now = loop_.now_ms();
    silence_ms_ = now - std::exchange(last_heard_ms_, now);
    if (const Status s = lines_.append({buffer.data(), static_cast<std::size_t>(n)}); !s) {
      log_warning("channel: " + s.error().message + ": dropped");
    }
    while (const auto line = lines_.next()) {
      // An empty line is how a host begins. After a migration it is the only sign of a new one: the
      // port was open on the source and is open on the target, so the driver sees no change.
      host_connected_ = true;
      line->empty() ? say_hello() : on_line(*line);
      if (!fd_) return false;
    }
  }
}

void Channel::on_line(const std::string& line) {
  Result<Message> message = parse_message(line);
  if (!message) {
    log_debug("channel: line dropped: " + message.error().message);
    return;
  }
  const Request* request = std::get_if<Request>(&*message);
  if (!request) return;
  const std::string id = request->id;
  switch (cache_.begin(id)) {
    case RequestCache::Seen::kRunning:
      return;  // its answer will serve this asker, too
    case RequestCache::Seen::kAnswered:
      return send(cache_.answer(id));
    case RequestCache::Seen::kNew:
      break;
  }
  handler_(*request, once([this, id](Result<Json> result) {
    const std::string answer = format_answer(id, result);
    cache_.answered(id, answer);
    send(answer);
  }));
}

bool Channel::silent_for(Milliseconds duration) const {
  return silence_ms_ >= static_cast<std::uint64_t>(duration.count());
}

void Channel::say_hello() {
  const std::uint64_t now = loop_.now_ms();
  if (now < next_hello_ms_) {
    if (hello_timer_) return;
    hello_timer_ = loop_.after(Milliseconds(next_hello_ms_ - now), [this] {
      hello_timer_.reset();
      say_hello();
    });
    return;
  }
  next_hello_ms_ = now + static_cast<std::uint64_t>(kHelloEvery.count());
  // The newline first ends whatever a reader before may have left unfinished.
  send("\n" + hello_());
}

void Channel::send(const std::string& line) {
  if (!fd_ || !host_connected_) return;  // asked again by id, if anybody still wants it
  if (out_.size() > kMostQueued) {
    log_warning(fmt::format("channel: host does not read, {} bytes waiting: dropped", out_.size()));
    out_ = "\n";  // the first of them may be half sent
  }
  out_ += line;
  flush();
}

void Channel::flush() {
  while (fd_ && !out_.empty()) {
    const ssize_t n = ::write(fd_.get(), out_.data(), out_.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return;  // the edge comes when there is room
    if (n <= 0) return lost(std::strerror(errno));
    out_.erase(0, static_cast<std::size_t>(n));
  }
}

void Channel::lost(const std::string& why) {
  log_info("channel to the host lost: " + why);
  watch_.reset();
  fd_.reset();
  host_connected_ = false;
  retry();
}

}  // namespace symvirt::guest
