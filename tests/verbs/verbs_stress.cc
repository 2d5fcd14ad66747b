// verbs_stress between processes, over whatever device libibverbs finds: ranks meet over TCP at
// rank 0.
//   verbs_stress --rank 0 --size 2 --port 7000 &  verbs_stress --rank 1 --size 2 --port 7000
//   --server ADDRESS
// Exit code 0: every byte and the order of every message was right.
#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <thread>

#include "tests/verbs/stress.h"

namespace {

using namespace symvirt::verbs_stress;

std::atomic<bool> stop{false};

bool write_all(int fd, const void* data, std::size_t size) {
  const char* at = static_cast<const char*>(data);
  while (size != 0) {
    const ssize_t n = send(fd, at, size, MSG_NOSIGNAL);
    if (n <= 0) return false;
    at += n;
    size -= static_cast<std::size_t>(n);
  }
  return true;
}

bool read_all(int fd, void* data, std::size_t size) {
  char* at = static_cast<char*>(data);
  while (size != 0) {
    const ssize_t n = recv(fd, at, size, 0);
    if (n <= 0) return false;
    at += n;
    size -= static_cast<std::size_t>(n);
  }
  return true;
}

bool write_text(int fd, const std::string& text) {
  const auto size = static_cast<std::uint32_t>(text.size());
  return write_all(fd, &size, sizeof(size)) && write_all(fd, text.data(), size);
}

bool read_text(int fd, std::string& text) {
  std::uint32_t size = 0;
  if (!read_all(fd, &size, sizeof(size)) || size > 64u << 20) return false;
  text.resize(size);
  return read_all(fd, text.data(), size);
}

class TcpWire final : public Wire {
 public:
  TcpWire(int rank, int size) : rank_(rank), size_(size) {}
  ~TcpWire() override {
    for (const int fd : peers_) close(fd);
  }
  int rank() const override { return rank_; }
  int size() const override { return size_; }

  bool serve(std::uint16_t port) {
    const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const int on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    if (bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 ||
        listen(listener, 16) != 0)
      return false;
    peers_.assign(static_cast<std::size_t>(size_), -1);
    for (int i = 1; i < size_; ++i) {
      const int fd = accept(listener, nullptr, nullptr);
      std::int32_t who = 0;
      if (fd < 0 || !read_all(fd, &who, sizeof(who)) || who < 1 || who >= size_) return false;
      peers_[static_cast<std::size_t>(who)] = fd;
    }
    close(listener);
    return true;
  }

  bool join(const std::string& server, std::uint16_t port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    if (inet_pton(AF_INET, server.c_str(), &address.sin_addr) != 1) return false;
    for (int tries = 0; tries < 600; ++tries) {
      const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
      if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) {
        peers_ = {fd};
        const std::int32_t who = rank_;
        return write_all(fd, &who, sizeof(who));
      }
      close(fd);
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
    return false;
  }

  std::vector<std::string> all_gather(const std::string& mine) override {
    std::vector<std::string> all(static_cast<std::size_t>(size_));
    all[static_cast<std::size_t>(rank_)] = mine;
    if (rank_ == 0) {
      for (std::size_t i = 1; i < all.size(); ++i)
        if (!read_text(peers_[i], all[i])) return {};
      for (std::size_t i = 1; i < all.size(); ++i)
        for (const std::string& text : all)
          if (!write_text(peers_[i], text)) return {};
      return all;
    }
    if (!write_text(peers_[0], mine)) return {};
    for (std::string& text : all)
      if (!read_text(peers_[0], text)) return {};
    return all;
  }

 private:
  int rank_;
  int size_;
  std::vector<int> peers_;
};

}  // namespace

int main(int argc, char** argv) {
  StressOptions options;
  int rank = 0;
  int size = 2;
  int seconds = 0;
  std::uint16_t port = 7000;
  std::string server = "127.0.0.1";
  std::string until;
  bool no_churn = false;
  CLI::App app("Everything of libibverbs at once, checked byte by byte");
  app.add_option("--rank", rank, "this process")->required();
  app.add_option("--size", size, "number of processes");
  app.add_option("--server", server, "address of rank 0");
  app.add_option("--port", port, "TCP port of rank 0");
  app.add_option("--device", options.device, "device name (default: the first)");
  app.add_option("--gid-index", options.gid_index, "GID of the device to use");
  app.add_option("--rc", options.rc, "RC links to each peer");
  app.add_option("--uc", options.uc, "UC links to each peer");
  app.add_option("--ud", options.ud, "UD links to each peer");
  app.add_option("--groups", options.groups, "pairs of threads");
  app.add_option("--messages", options.messages, "messages of each link");
  app.add_option("--seconds", seconds, "instead of --messages: until so long (same on all ranks)");
  app.add_option("--until", until, "instead of --messages: until this file is there");
  app.add_option("--max-bytes", options.max_bytes, "longest message");
  app.add_option("--seed", options.seed, "of everything random (same on all ranks)");
  app.add_option("--patience", options.patience_s, "seconds without progress before giving up");
  app.add_flag("--no-churn", no_churn, "no control calls beside the traffic");
  CLI11_PARSE(app, argc, argv);
  options.churn = !no_churn;
  options.stop = &stop;
  if (seconds != 0 || !until.empty()) options.messages = 0;

  TcpWire wire(rank, size);
  if (!(rank == 0 ? wire.serve(port) : wire.join(server, port))) {
    std::perror("verbs_stress: no connection between the ranks");
    return 1;
  }
  const auto begin = std::chrono::steady_clock::now();
  std::thread timer;
  if (options.messages == 0) {
    timer = std::thread([seconds, &until, begin] {
      const auto over = [&] {
        if (!until.empty() && access(until.c_str(), F_OK) == 0) return true;
        return seconds != 0 &&
               std::chrono::steady_clock::now() - begin >= std::chrono::seconds(seconds);
      };
      while (!over()) std::this_thread::sleep_for(std::chrono::milliseconds(100));
      stop = true;
    });
  }
  const StressResult result = run_stress(options, wire);
  if (timer.joinable()) timer.join();
  const double took =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  std::printf(
      "rank %d: %s: %llu messages, %llu bytes, %llu reads and atomics, %llu lost on "
      "unreliable links, %llu+%llu events, %llu rounds of control calls, %.1f s\n",
      rank, result.error.empty() ? "all right" : result.error.c_str(),
      static_cast<unsigned long long>(result.messages),
      static_cast<unsigned long long>(result.bytes),
      static_cast<unsigned long long>(result.one_sided),
      static_cast<unsigned long long>(result.lost), static_cast<unsigned long long>(result.events),
      static_cast<unsigned long long>(result.async_events),
      static_cast<unsigned long long>(result.churned), took);
  return result.error.empty() ? 0 : 1;
}
