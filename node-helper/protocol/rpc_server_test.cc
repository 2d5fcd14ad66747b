// Peers that mean no good, or are broken: silent, slow, too many, too long.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <atomic>
#include <utility>

#include "node-helper/protocol/rpc.h"
#include "tests/fakes/fake_credentials.h"

namespace symvirt {
namespace {

using fakes::FakeCredentials;
using nlohmann::json;
using std::chrono::milliseconds;
using testing::HasSubstr;

Deadline soon() { return Deadline::after(milliseconds(5000)); }

// A connection without a client behind it.
class Raw {
 public:
  explicit Raw(int port) : Raw(port, UniqueFd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0))) {}
  Raw(int port, UniqueFd fd) : fd_(std::move(fd)) {
    const int small = 16'384;  // a peer that does not read is noticed sooner
    setsockopt(fd_.get(), SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
    EXPECT_EQ(connect(fd_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  }
  bool send(const std::string& bytes) {
    return ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL) ==
           static_cast<ssize_t>(bytes.size());
  }
  // What comes until the other side closes; nothing when it does not within `ms`.
  std::optional<std::string> until_closed(int ms) {
    const Deadline end = Deadline::after(milliseconds(ms));
    std::string all;
    char buffer[4096];
    while (!end.expired()) {
      pollfd p{fd_.get(), POLLIN, 0};
      if (poll(&p, 1, static_cast<int>(end.left().count())) <= 0) continue;
      const ssize_t n = recv(fd_.get(), buffer, sizeof buffer, 0);
      if (n <= 0) return all;
      all.append(buffer, static_cast<std::size_t>(n));
    }
    return std::nullopt;
  }
  int fd() const { return fd_.get(); }

 private:
  UniqueFd fd_;
};

// A munged that can be restarted: then it knows no credential that it has seen.
class RestartedMunged : public Credentials {
 public:
  Result<std::string> encode(std::string_view payload) override { return now_->encode(payload); }
  Result<Identity> decode(std::string_view credential) override { return now_->decode(credential); }
  void restart() { now_ = std::make_unique<FakeCredentials>(); }

 private:
  std::unique_ptr<FakeCredentials> now_ = std::make_unique<FakeCredentials>();
};

class RpcServerTest : public testing::Test {
 protected:
  void start(RpcServer::Options options) {
    options.host = "hv1";
    options.address = "127.0.0.1";
    options.trusted = [](uid_t uid) { return uid == 0; };
    server_ = std::make_unique<RpcServer>(std::move(options), server_credentials_);
    auto anybody = [](uid_t) { return true; };
    server_->add("size", {anybody, [](const RpcRequest& r) -> Result<json> {
                            return json{{"bytes", r.params.dump().size()}};
                          }});
    // Talks until nobody listens; tells how long one word took at most.
    auto talker = [this](auto say) {
      return [this, say](const RpcRequest& r) -> Result<json> {
        const json news = {{"x", std::string(4096, 'x')}};
        const int enough = say == &RpcRequest::progress ? 1 : 20;
        for (const Deadline end = Deadline::after(milliseconds(20'000));
             missed_ < enough && !end.expired();) {
          const auto begun = Deadline::Clock::now();
          if (!(r.*say)(news)) ++missed_;
          longest_ms_ = std::max<std::int64_t>(
              longest_ms_,
              std::chrono::duration_cast<milliseconds>(Deadline::Clock::now() - begun).count());
        }
        ended_ = true;
        return json::object();
      };
    };
    server_->add("talk", {anybody, talker(&RpcRequest::progress)});
    server_->add("offer", {anybody, talker(&RpcRequest::offer)});
    ASSERT_TRUE(server_->start());
  }
  RpcClient client(Credentials& credentials) {
    return RpcClient({.host = "hv1",
                      .address = "127.0.0.1",
                      .port = server_->port(),
                      .replier_allowed = [](uid_t) { return true; }},
                     credentials);
  }
  std::string request(Credentials& credentials, const json& params = {{"deadline_ms", 1000}},
                      const char* method = "size") {
    const json body = {{"jsonrpc", "2.0"}, {"id", 1}, {"method", method}, {"params", params}};
    return encode_frame(*seal(credentials, Envelope{"req", "hv1", new_nonce(), 0}, body.dump()));
  }
  static std::string header(std::uint32_t credential, std::uint32_t body) {
    std::string bytes;
    for (std::uint32_t v : {credential, body}) {
      for (int s = 24; s >= 0; s -= 8) bytes.push_back(static_cast<char>(v >> s & 0xff));
    }
    return bytes;
  }

  void ends() {
    for (int i = 0; i < 3000 && !ended_; ++i) std::this_thread::sleep_for(milliseconds(10));
    EXPECT_TRUE(ended_);
  }

  std::atomic<bool> ended_{false};
  std::atomic<int> missed_{0};
  std::atomic<std::int64_t> longest_ms_{0};
  RestartedMunged server_credentials_;
  FakeCredentials root_, user_{"key", 1000};
  std::unique_ptr<RpcServer> server_;
};

TEST_F(RpcServerTest, SilentConnectionsKeepNobodyOut) {
  start({.room = {.unknown = 8, .unknown_per_address = 4}});
  RpcClient early = client(root_);
  ASSERT_TRUE(early.call("size", json::object(), soon()));
  std::vector<std::unique_ptr<Raw>> silent;
  for (int i = 0; i < 40; ++i) silent.push_back(std::make_unique<Raw>(server_->port()));
  auto result = client(root_).call("size", json::object(), soon());
  EXPECT_TRUE(result) << result.error().message;
  EXPECT_TRUE(early.call("size", json::object(), soon()));
  EXPECT_TRUE(silent.front()->until_closed(2000)) << "the longest silent made place";
}

TEST_F(RpcServerTest, WhoDoesNotSayWhoHeIsInTimeIsClosed) {
  start({.first_frame = milliseconds(300)});
  Raw silent(server_->port()), dripping(server_->port());
  const std::string frame = request(root_);
  bool open = true;
  for (std::size_t i = 0; open && i < frame.size() && i < 40; ++i) {
    open = dripping.send(frame.substr(i, 1));
    std::this_thread::sleep_for(milliseconds(25));
  }
  EXPECT_TRUE(silent.until_closed(5000));
  EXPECT_TRUE(dripping.until_closed(5000)) << "a byte now and then is no frame";
}

TEST_F(RpcServerTest, AFrameOnceBegunMustEnd) {
  start({.frame = milliseconds(300)});
  Raw peer(server_->port());
  ASSERT_TRUE(peer.send(request(root_)));  // somebody we know
  const std::string frame = request(root_);
  for (std::size_t i = 0; i < 20 && peer.send(frame.substr(i, 1)); ++i)
    std::this_thread::sleep_for(milliseconds(25));
  EXPECT_TRUE(peer.until_closed(5000));
}

TEST_F(RpcServerTest, UsersWhoMayOnlyReadAreLetGoOfSooner) {
  start({.idle_ordinary = milliseconds(100)});
  Raw user(server_->port()), root(server_->port());
  ASSERT_TRUE(user.send(request(user_)) && root.send(request(root_)));
  EXPECT_TRUE(user.until_closed(2000));
  EXPECT_FALSE(root.until_closed(300));
}

// The credential goes first in a frame: what belongs to a bad one is not even read.
TEST_F(RpcServerTest, LongBodiesAreTakenOnlyFromTheTrusted) {
  start({});
  Raw nobody(server_->port());
  ASSERT_TRUE(nobody.send(header(7, 1 << 20) + "garbage"));
  const auto refusal = nobody.until_closed(2000);
  ASSERT_TRUE(refusal);
  EXPECT_THAT(*refusal, HasSubstr("PERMISSION"));

  Raw user(server_->port());
  const std::string frame =
      request(user_, {{"deadline_ms", 1000}, {"x", std::string(1 << 20, 'x')}});
  ASSERT_TRUE(user.send(frame.substr(0, frame.size() - (1 << 19))));
  const auto too_long = user.until_closed(2000);
  ASSERT_TRUE(too_long);
  EXPECT_THAT(*too_long, HasSubstr("uid 1000 may not send more"));

  const auto bytes = client(root_).call("size", {{"x", std::string(1 << 20, 'x')}}, soon());
  ASSERT_TRUE(bytes) << bytes.error().message;
  EXPECT_GT((*bytes)["bytes"], 1 << 20);
  EXPECT_TRUE(client(user_).call("size", {{"x", std::string(1 << 10, 'x')}}, soon()));
}

TEST_F(RpcServerTest, ARestartOfMungedMakesNoRequestGoodAgain) {
  start({});
  const std::string frame = request(root_);
  Raw first(server_->port());
  ASSERT_TRUE(first.send(frame));
  ASSERT_FALSE(first.until_closed(200)) << "answered, and left open";
  server_credentials_.restart();
  Raw again(server_->port());
  ASSERT_TRUE(again.send(frame));
  const auto refusal = again.until_closed(2000);
  ASSERT_TRUE(refusal);
  EXPECT_THAT(*refusal, HasSubstr("has been here before"));
  EXPECT_TRUE(client(root_).call("size", json::object(), soon()));
}

TEST(SeenNonces, AreForgottenWhenTheirCredentialsAreTooOld) {
  SeenNonces nonces(std::chrono::seconds(10), 3);
  const auto begun = SeenNonces::Clock::now();
  EXPECT_TRUE(nonces.is_new("a", begun));
  EXPECT_FALSE(nonces.is_new("a", begun + std::chrono::seconds(10)));
  EXPECT_TRUE(nonces.is_new("a", begun + std::chrono::seconds(11)));
  for (const char* n : {"b", "c", "d"}) EXPECT_TRUE(nonces.is_new(n, begun));
  EXPECT_FALSE(nonces.is_new("d", begun));
  EXPECT_TRUE(nonces.is_new("a", begun)) << "the oldest goes when there are too many";
}

double cpu_seconds() {
  rusage u{};
  getrusage(RUSAGE_SELF, &u);
  auto s = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) / 1e6;
  };
  return s(u.ru_utime) + s(u.ru_stime);
}

// The connection that cannot be accepted stays readable: without a rest, that is a processor.
TEST_F(RpcServerTest, WithoutDescriptorsItRestsAndRecovers) {
  start({});
  // Once all the way: UBSan's first look at a type needs descriptors of its own.
  ASSERT_TRUE(client(root_).call("size", json::object(), soon()));
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  UniqueFd waiting(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  rlimit none = before;
  {
    const UniqueFd next(dup(waiting.get()));
    none.rlim_cur = static_cast<rlim_t>(next.get());
  }
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  Raw peer(server_->port(), std::move(waiting));
  const double cpu = cpu_seconds();
  std::this_thread::sleep_for(milliseconds(500));
  const double used = cpu_seconds() - cpu;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_LT(used, 0.1);
  ASSERT_TRUE(peer.send(request(root_)));
  pollfd p{peer.fd(), POLLIN, 0};
  EXPECT_EQ(poll(&p, 1, 5000), 1) << "no answer when there are descriptors again";
}

TEST_F(RpcServerTest, WhoDoesNotReadIsDropped) {
  start({.send = milliseconds(200)});
  Raw peer(server_->port());
  ASSERT_TRUE(peer.send(request(root_, {{"deadline_ms", 60'000}}, "talk")));
  ends();
  EXPECT_EQ(missed_, 1);
  EXPECT_GE(longest_ms_, 150);
  EXPECT_TRUE(peer.until_closed(2000));
  EXPECT_TRUE(client(root_).call("size", json::object(), soon()));
}

TEST_F(RpcServerTest, WhoHoldsALockDoesNotWaitForAReader) {
  start({.send = milliseconds(60'000)});
  Raw peer(server_->port());
  ASSERT_TRUE(peer.send(request(root_, {{"deadline_ms", 60'000}}, "offer")));
  ends();
  EXPECT_GT(missed_, 0);
  EXPECT_LT(longest_ms_, 20'000);
  // Every frame that did go is whole, and the answer is the last of them.
  FrameReader reader;
  std::int64_t frames = 0;
  json last;
  char buffer[65536];
  while (!last.contains("result")) {
    const ssize_t n = recv(peer.fd(), buffer, sizeof buffer, 0);
    ASSERT_GT(n, 0);
    reader.append({buffer, static_cast<std::size_t>(n)});
    for (auto frame = reader.next(); frame && *frame; frame = reader.next()) {
      auto opened = unseal(root_, **frame, "rep", "hv1");
      ASSERT_TRUE(opened) << opened.error().message;
      EXPECT_EQ(opened->envelope.sequence, ++frames);
      last = opened->body;
    }
  }
}

}  // namespace
}  // namespace symvirt
