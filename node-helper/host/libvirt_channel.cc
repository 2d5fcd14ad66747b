// A virtio-serial port as a byte stream, on libvirt's event loop.
#include <fmt/format.h>

#include <thread>

#include "common/line_buffer.h"
#include "common/log.h"
#include "node-helper/host/libvirt_internal.h"
#include "node-helper/host/out_queue.h"

namespace symvirt::host {
namespace {

constexpr std::size_t kMostQueued = 2 * kMaxLineBytes;
constexpr int kRead = VIR_STREAM_EVENT_READABLE | VIR_STREAM_EVENT_HANGUP | VIR_STREAM_EVENT_ERROR;

struct Port {
  std::mutex mutex;  // not held while libvirt calls back, nor while we do
  Stream stream;
  OutQueue out{kMostQueued};
  bool closed = false;
  std::function<void(std::string_view)> on_data;
  std::function<void()> on_close;
};

// Sends what the stream takes. False: broken.
bool flush(Port& port, virStreamPtr stream) {
  std::lock_guard lock(port.mutex);
  while (!port.out.empty()) {
    const std::string_view chunk = port.out.front(256 * 1024);
    const int n = virStreamSend(stream, chunk.data(), chunk.size());
    if (n == -2) return true;
    if (n < 0) return false;
    port.out.pop(static_cast<std::size_t>(n));
  }
  virStreamEventUpdateCallback(stream, kRead);
  return true;
}

bool drain(Port& port, virStreamPtr stream) {
  char buffer[64 * 1024];
  for (;;) {
    const int n = virStreamRecv(stream, buffer, sizeof buffer);
    if (n == -2) return true;
    if (n <= 0) return false;
    std::unique_lock lock(port.mutex);
    if (port.closed) return true;
    auto on_data = port.on_data;
    lock.unlock();
    on_data({buffer, static_cast<std::size_t>(n)});
  }
}

void on_event(virStreamPtr stream, int events, void* opaque) {
  std::shared_ptr<Port> port = *static_cast<std::shared_ptr<Port>*>(opaque);
  {
    std::lock_guard lock(port->mutex);
    if (port->closed) return;
  }
  bool good = true;
  if (events & VIR_STREAM_EVENT_READABLE) good = drain(*port, stream);
  if (good && (events & VIR_STREAM_EVENT_WRITABLE)) good = flush(*port, stream);
  if (good && !(events & (VIR_STREAM_EVENT_HANGUP | VIR_STREAM_EVENT_ERROR))) return;
  virStreamEventRemoveCallback(stream);
  std::unique_lock lock(port->mutex);
  if (std::exchange(port->closed, true)) return;
  auto on_close = std::move(port->on_close);
  lock.unlock();
  if (on_close) on_close();
}

class LibvirtChannel : public ByteChannel {
 public:
  explicit LibvirtChannel(std::shared_ptr<Port> port) : port_(std::move(port)) {}
  ~LibvirtChannel() override {
    {
      std::lock_guard lock(port_->mutex);
      if (std::exchange(port_->closed, true)) return;
    }
    // Aborting is a call to libvirtd, which may hang.
    std::thread([port = port_] {
      virStreamEventRemoveCallback(port->stream.get());
      virStreamAbort(port->stream.get());
    }).detach();
  }
  void send(const std::string& bytes) override {
    std::lock_guard lock(port_->mutex);
    if (port_->closed) return;
    if (!port_->out.push(bytes)) {
      log_debug(fmt::format("guest port: {} bytes are not read; {} dropped", port_->out.size(),
                            bytes.size()));
      return;
    }
    virStreamEventUpdateCallback(port_->stream.get(), kRead | VIR_STREAM_EVENT_WRITABLE);
  }

 private:
  std::shared_ptr<Port> port_;
};

}  // namespace

Result<std::unique_ptr<ByteChannel>> Libvirt::open_channel(
    const std::string& vm, const std::string& port_name,
    std::function<void(std::string_view)> on_data, std::function<void()> on_close,
    Deadline deadline) {
  auto port = std::make_shared<Port>();
  port->on_data = std::move(on_data);
  port->on_close = std::move(on_close);
  const std::string what = fmt::format("{}: port {}", vm, port_name);
  auto opened =
      call<int>(what, vm, deadline, [port, vm, port_name, what](virConnectPtr conn) -> Result<int> {
        Domain domain(virDomainLookupByName(conn, vm.c_str()));
        if (!domain) return libvirt_error(what);
        port->stream.reset(virStreamNew(conn, VIR_STREAM_NONBLOCK));
        if (!port->stream) return libvirt_error(what);
        // FORCE: takes the port from a noded that is gone but whose connection libvirtd still
        // holds.
        if (virDomainOpenChannel(domain.get(), port_name.c_str(), port->stream.get(),
                                 VIR_DOMAIN_CHANNEL_FORCE) != 0)
          return libvirt_error(what);
        auto* reference = new std::shared_ptr<Port>(port);
        if (virStreamEventAddCallback(port->stream.get(), kRead, on_event, reference, [](void* p) {
              delete static_cast<std::shared_ptr<Port>*>(p);
            }) != 0) {
          delete reference;
          return libvirt_error(what);
        }
        std::lock_guard lock(port->mutex);
        if (!port->closed) return 0;
        virStreamEventRemoveCallback(port->stream.get());  // nobody waits for it any more
        virStreamAbort(port->stream.get());
        return Error{Code::kDeadline, what};
      });
  if (!opened) {
    std::lock_guard lock(port->mutex);
    port->closed = true;
    return opened.error();
  }
  return std::unique_ptr<ByteChannel>(std::make_unique<LibvirtChannel>(std::move(port)));
}

}  // namespace symvirt::host
