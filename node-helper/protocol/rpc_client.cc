#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <cstring>

#include "node-helper/protocol/rpc.h"

namespace symvirt {

using nlohmann::json;

namespace {

struct FreeAddresses {
  void operator()(addrinfo* list) const { freeaddrinfo(list); }
};

Error unavailable(const std::string& host, int port, const std::string& why) {
  return Error{Code::kUnavailable, fmt::format("{}:{}: {}", host, port, why)};
}

}  // namespace

Status RpcClient::connect(Deadline deadline) {
  if (fd_) {
    // A server that went away while the connection rested: notice it now and not as a lost request.
    pollfd p{fd_.get(), POLLIN | POLLRDHUP, 0};
    if (poll(&p, 1, 0) == 0) return {};
    fd_.reset();
  }
  reader_ = FrameReader();
  const std::string& target = options_.address.empty() ? options_.host : options_.address;
  addrinfo hints{};
  hints.ai_family = AF_INET;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* list = nullptr;
  if (const int rc =
          getaddrinfo(target.c_str(), std::to_string(options_.port).c_str(), &hints, &list);
      rc != 0) {
    return unavailable(target, options_.port, gai_strerror(rc));
  }
  std::unique_ptr<addrinfo, FreeAddresses> owner(list);
  UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return unavailable(target, options_.port, std::strerror(errno));
  const int one = 1;
  setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  setsockopt(fd.get(), SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
  if (::connect(fd.get(), list->ai_addr, list->ai_addrlen) != 0) {
    if (errno != EINPROGRESS) return unavailable(target, options_.port, std::strerror(errno));
    pollfd p{fd.get(), POLLOUT, 0};
    if (poll(&p, 1, static_cast<int>(deadline.left().count())) <= 0)
      return unavailable(target, options_.port, "no connection in time");
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0) return unavailable(target, options_.port, std::strerror(error));
  }
  fd_ = std::move(fd);
  return {};
}

Status RpcClient::send_all(const std::string& bytes, Deadline deadline) {
  for (std::size_t sent = 0; sent < bytes.size();) {
    const ssize_t n = ::send(fd_.get(), bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
    if (n > 0) {
      sent += static_cast<std::size_t>(n);
      continue;
    }
    if (n < 0 && errno == EINTR) continue;
    if (n == 0 || errno != EAGAIN)
      return unavailable(options_.host, options_.port, "connection broke");
    pollfd p{fd_.get(), POLLOUT, 0};
    if (deadline.expired() || poll(&p, 1, static_cast<int>(deadline.left().count())) == 0) {
      return Error{Code::kDeadline,
                   fmt::format("{}:{}: request not taken in time", options_.host, options_.port)};
    }
  }
  return {};
}

Result<Frame> RpcClient::receive(Deadline deadline) {
  char buffer[65536];
  for (;;) {
    Result<std::optional<Frame>> frame = reader_.next();
    if (!frame) return frame.error().with(options_.host);
    if (*frame) return std::move(**frame);
    pollfd p{fd_.get(), POLLIN, 0};
    const int ready =
        deadline.expired() ? 0 : poll(&p, 1, static_cast<int>(deadline.left().count()));
    if (ready == 0)
      return Error{Code::kDeadline,
                   fmt::format("{}:{}: no answer in time", options_.host, options_.port)};
    if (ready < 0) continue;
    const ssize_t n = recv(fd_.get(), buffer, sizeof buffer, 0);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (n <= 0)
      return unavailable(options_.host, options_.port, "connection closed before the answer");
    reader_.append({buffer, static_cast<std::size_t>(n)});
  }
}

Result<json> RpcClient::call(const std::string& method, json params, Deadline deadline,
                             const RpcProgress& progress) {
  Result<json> result = transact(method, std::move(params), deadline, progress);
  shared_fd_ = -1;
  return result;
}

void RpcClient::interrupt() {
  if (const int fd = shared_fd_; fd >= 0) shutdown(fd, SHUT_RDWR);
}

Result<json> RpcClient::transact(const std::string& method, json params, Deadline deadline,
                                 const RpcProgress& progress) {
  if (Status status = connect(deadline); !status) return status.error();
  shared_fd_ = fd_.get();
  params["deadline_ms"] = deadline.left().count();
  const std::int64_t id = next_id_++;
  const Envelope envelope{"req", options_.host, new_nonce(), 0};
  const json body = {
      {"jsonrpc", "2.0"}, {"id", id}, {"method", method}, {"params", std::move(params)}};
  Result<Frame> frame =
      seal(credentials_, envelope, body.dump(-1, ' ', false, json::error_handler_t::replace));
  if (!frame) return frame.error();
  auto give_up = [&](Error error) {
    shared_fd_ = -1;
    fd_.reset();
    return error;
  };
  if (Status status = send_all(encode_frame(*frame), deadline); !status)
    return give_up(status.error());
  // The other side ends the call at the deadline; its answer still has to travel.
  const Deadline patience = Deadline::at(deadline.time() + std::chrono::milliseconds(500));
  for (std::int64_t sequence = 1;; ++sequence) {
    Result<Frame> reply = receive(patience);
    if (!reply) return give_up(reply.error());
    Result<Opened> opened = unseal(credentials_, *reply, "rep", options_.host);
    if (!opened) return give_up(opened.error().with(options_.host + ": answer"));
    if (!options_.replier_allowed(opened->uid)) {
      return give_up({Code::kPermission, fmt::format("{}: answer of uid {}, who is not trusted",
                                                     options_.host, opened->uid)});
    }
    const json& j = opened->body;
    const bool refused_unread =
        j.contains("error") && opened->envelope.nonce == std::string(32, '0');
    if (refused_unread) return give_up(error_from_json(j["error"]).with(options_.host));
    if (opened->envelope.nonce != envelope.nonce || opened->envelope.sequence != sequence) {
      return give_up(
          {Code::kPermission, fmt::format("{}: answer to another request", options_.host)});
    }
    if (j.contains("method") && j["method"] == "progress") {
      if (progress && j.contains("params")) progress(j["params"]);
      continue;
    }
    if (j.contains("error")) return error_from_json(j["error"]);
    if (j.contains("result")) return j["result"];
    return give_up({Code::kInternal, fmt::format("{}: answer without result", options_.host)});
  }
}

RpcPool::RpcPool(Options options, Credentials& credentials)
    : options_(std::move(options)), credentials_(credentials) {}

RpcPool::~RpcPool() {
  std::deque<Job> left;
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    left.swap(queue_);
    for (auto& [client, unused] : busy_) client->interrupt();
  }
  wake_.notify_all();
  for (Job& job : left) job.done(Error{Code::kUnavailable, "shutting down"});
  for (std::thread& t : threads_) t.join();
}

void RpcPool::call(const std::string& host, const std::string& method, json params,
                   std::chrono::milliseconds timeout, RpcProgress progress, Done done) {
  std::unique_lock lock(mutex_);
  if (stopping_) {
    lock.unlock();
    return done(Error{Code::kUnavailable, "shutting down"});
  }
  queue_.push_back({host, method, std::move(params), Deadline::after(timeout), std::move(progress),
                    std::move(done)});
  if (waiting_ < queue_.size() && threads_.size() < options_.max_threads)
    threads_.emplace_back([this] { work(); });
  wake_.notify_one();
}

std::unique_ptr<RpcClient> RpcPool::take_client(const std::string& host) {
  if (auto it = spare_.find(host); it != spare_.end()) {
    std::unique_ptr<RpcClient> client = std::move(it->second.back().client);
    spare_ages_.erase(it->second.back().age);
    it->second.pop_back();
    if (it->second.empty()) spare_.erase(it);
    return client;
  }
  RpcClient::Options options;
  options.host = host;
  if (auto it = options_.addresses.find(host); it != options_.addresses.end())
    options.address = it->second;
  options.port = options_.port;
  if (auto it = options_.ports.find(host); it != options_.ports.end()) options.port = it->second;
  options.replier_allowed = options_.replier_allowed;
  return std::make_unique<RpcClient>(std::move(options), credentials_);
}

std::unique_ptr<RpcClient> RpcPool::keep_client(const std::string& host,
                                                std::unique_ptr<RpcClient> client) {
  constexpr std::size_t kOfOneHost = 4;
  std::vector<Spare>& mine = spare_[host];
  if (mine.size() >= kOfOneHost || options_.max_spare == 0) return client;
  const std::uint64_t age = next_age_++;
  mine.push_back({age, std::move(client)});
  spare_ages_[age] = host;
  if (spare_ages_.size() <= options_.max_spare) return nullptr;
  const auto oldest = spare_.find(spare_ages_.begin()->second);
  spare_ages_.erase(spare_ages_.begin());
  std::unique_ptr<RpcClient> dropped = std::move(oldest->second.front().client);
  oldest->second.erase(oldest->second.begin());
  if (oldest->second.empty()) spare_.erase(oldest);
  return dropped;
}

void RpcPool::work() {
  for (;;) {
    std::unique_lock lock(mutex_);
    ++waiting_;
    wake_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
    --waiting_;
    if (stopping_) return;
    Job job = std::move(queue_.front());
    queue_.pop_front();
    std::unique_ptr<RpcClient> client = take_client(job.host);
    busy_[client.get()] = true;
    lock.unlock();
    Result<json> result =
        client->call(job.method, std::move(job.params), job.deadline, job.progress);
    job.done(std::move(result));
    lock.lock();
    busy_.erase(client.get());
    const std::unique_ptr<RpcClient> dropped = keep_client(job.host, std::move(client));
    lock.unlock();
  }
}

}  // namespace symvirt
