// JSON-RPC over sealed frames (docs/protocols.md section 1): server, blocking client, and the pool
// that many calls share.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "common/deadline.h"
#include "common/log_limit.h"
#include "common/result.h"
#include "common/unique_fd.h"
#include "node-helper/protocol/connection_room.h"
#include "node-helper/protocol/credentials.h"
#include "node-helper/protocol/frame.h"
#include "node-helper/protocol/seen_nonces.h"

namespace symvirt {

using RpcProgress = std::function<void(const nlohmann::json&)>;

// What a handler gets. `progress` waits until the caller has taken it, at most Options::send, and
// returns false when he is gone or did not. `offer` is for who holds a lock that others want: it
// never waits, and a caller who does not read just misses this one.
struct RpcRequest {
  std::string method;
  nlohmann::json params;
  uid_t uid;
  std::string peer;  // "10.77.0.10:40312", for logs
  Deadline deadline;
  std::function<bool(const nlohmann::json&)> progress;
  std::function<bool()> caller_gone;
  std::function<bool(const nlohmann::json&)> offer;
};

using RpcHandler = std::function<Result<nlohmann::json>(const RpcRequest&)>;

// Listens, checks, dispatches: a thread a connection, so a handler may block until its deadline.
// Handlers run concurrently.
class RpcServer {
 public:
  struct Method {
    std::function<bool(uid_t)> allowed;
    RpcHandler handler;
  };
  struct Options {
    std::string host;  // own short name: the destination requests must be made for
    std::string address = "0.0.0.0";
    int port = 0;
    // Whose calls the daemon is there for. Others, and who has not said yet who he is, have fewer
    // connections and shorter messages (ConnectionRoom, small_body).
    std::function<bool(uid_t)> trusted = [](uid_t) { return true; };
    ConnectionRoom::Limits room;
    std::size_t small_body = 64u << 10;
    std::chrono::milliseconds first_frame{10'000};  // from accept to the end of the first frame
    std::chrono::milliseconds frame{30'000};        // from the first byte of a frame to its last
    std::chrono::milliseconds send{20'000};         // a frame of ours that is not read: closed
    std::chrono::milliseconds idle{600'000}, idle_ordinary{60'000};  // between frames
    std::chrono::milliseconds longest_call{3'600'000};  // a deadline_ms beyond it is cut
  };

  RpcServer(Options options, Credentials& credentials)
      : options_(std::move(options)), credentials_(credentials), room_(options_.room) {}
  ~RpcServer();  // stop()

  void add(const std::string& method, Method m) { methods_[method] = std::move(m); }
  Status start();
  void stop();  // ends connections and waits for handlers
  int port() const { return port_; }

 private:
  struct Connection;
  void accept_loop();
  void make_room(const char* why);
  void admit(UniqueFd fd, const std::string& peer, std::uint32_t address);
  void serve(std::shared_ptr<Connection> connection);
  Deadline patience(const Connection& connection);
  bool take_frames(Connection& connection);
  Status vouch(Connection& connection, const std::string& credential);
  bool answer_one(Connection& connection, const Frame& frame);
  bool refuse(Connection& connection, const Error& error);
  bool send(Connection& connection, const Envelope& request, std::int64_t sequence,
            const nlohmann::json& body);

  Options options_;
  Credentials& credentials_;
  std::map<std::string, Method> methods_;
  UniqueFd listener_;
  UniqueFd stop_event_;
  int port_ = 0;
  std::thread acceptor_;
  LogLimit refusals_{"refused requests and connections"};
  SeenNonces nonces_;
  std::mutex mutex_;
  std::condition_variable idle_;
  ConnectionRoom room_;
  ConnectionRoom::Id next_id_ = 1;
  std::map<ConnectionRoom::Id, std::shared_ptr<Connection>> connections_;
};

// One connection, one call at a time, blocking. Threads: one at a time.
class RpcClient {
 public:
  struct Options {
    std::string host;     // name in the envelope
    std::string address;  // where to connect; empty: host
    int port = 0;
    std::function<bool(uid_t)> replier_allowed = [](uid_t uid) { return uid == 0; };
  };
  RpcClient(Options options, Credentials& credentials)
      : options_(std::move(options)), credentials_(credentials) {}

  // Connects when it has to. kUnavailable: not connected, or the connection broke before the
  // answer; kDeadline: no answer in time. After either the connection is closed and the next call
  // makes a new one.
  Result<nlohmann::json> call(const std::string& method, nlohmann::json params, Deadline deadline,
                              const RpcProgress& progress = {});
  void close() { fd_.reset(); }
  // Makes a call() that waits on another thread end with kUnavailable.
  void interrupt();

 private:
  Status connect(Deadline deadline);
  Status send_all(const std::string& bytes, Deadline deadline);
  Result<Frame> receive(Deadline deadline);
  Result<nlohmann::json> transact(const std::string& method, nlohmann::json params,
                                  Deadline deadline, const RpcProgress& progress);

  Options options_;
  Credentials& credentials_;
  UniqueFd fd_;
  FrameReader reader_;
  std::atomic<int> shared_fd_{-1};
  std::int64_t next_id_ = 1;
};

// Many calls to many hosts at once. A call that waits holds a thread of the pool (256 KiB of stack)
// and a connection; connections are kept for the next call to that host, the longest unused one is
// closed when there are too many. `done` runs on the pool's threads, exactly once a call, also when
// the pool is destroyed.
class RpcPool {
 public:
  using Done = std::function<void(Result<nlohmann::json>)>;
  struct Options {
    int port = 0;
    std::map<std::string, std::string>
        addresses;                     // host -> address, where the name does not resolve
    std::map<std::string, int> ports;  // host -> port, where it is not `port` (simulations)
    std::function<bool(uid_t)> replier_allowed = [](uid_t uid) { return uid == 0; };
    std::size_t max_threads = 512;
    std::size_t max_spare = 4096;  // connections kept that nobody uses
  };
  RpcPool(Options options, Credentials& credentials);
  ~RpcPool();

  void call(const std::string& host, const std::string& method, nlohmann::json params,
            std::chrono::milliseconds timeout, RpcProgress progress, Done done);

 private:
  struct Job {
    std::string host, method;
    nlohmann::json params;
    Deadline deadline;
    RpcProgress progress;
    Done done;
  };
  void work();
  std::unique_ptr<RpcClient> take_client(const std::string& host);
  // What has to be closed for it, for the caller to do without the lock.
  std::unique_ptr<RpcClient> keep_client(const std::string& host,
                                         std::unique_ptr<RpcClient> client);

  Options options_;
  Credentials& credentials_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Job> queue_;
  struct Spare {
    std::uint64_t age;
    std::unique_ptr<RpcClient> client;
  };
  std::map<std::string, std::vector<Spare>> spare_;  // the last used one at the end
  std::map<std::uint64_t, std::string> spare_ages_;  // smaller: unused for longer
  std::uint64_t next_age_ = 1;
  std::map<RpcClient*, bool> busy_;
  std::vector<std::thread> threads_;
  std::size_t waiting_ = 0;
  bool stopping_ = false;
};

// Errors on the wire.
nlohmann::json error_to_json(const Error& error);
Error error_from_json(const nlohmann::json& j);

}  // namespace symvirt
