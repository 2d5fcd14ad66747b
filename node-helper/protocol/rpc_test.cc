#include "node-helper/protocol/rpc.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <filesystem>
#include <future>

#include "tests/fakes/fake_credentials.h"

namespace symvirt {
namespace {

using fakes::FakeCredentials;
using nlohmann::json;
using std::chrono::milliseconds;

Deadline soon() { return Deadline::after(milliseconds(2000)); }

std::size_t open_files() {
  const std::filesystem::directory_iterator all("/proc/self/fd");
  return static_cast<std::size_t>(std::distance(begin(all), end(all)));
}

class Rpc : public testing::Test {
 protected:
  Rpc() : server_({.host = "hv1", .address = "127.0.0.1"}, server_credentials_) {
    auto root = [](uid_t uid) { return uid == 0; };
    server_.add("echo", {root, [](const RpcRequest& r) -> Result<json> { return r.params; }});
    server_.add("refuse", {root, [](const RpcRequest&) -> Result<json> {
                             return Error{Code::kExhausted, "no free device"};
                           }});
    server_.add("count", {root, [](const RpcRequest& r) -> Result<json> {
                            for (int i = 1; i <= 3; ++i) r.progress({{"n", i}});
                            return json{{"n", 4}};
                          }});
    server_.add("sleep", {root, [](const RpcRequest& r) -> Result<json> {
                            std::this_thread::sleep_for(milliseconds(r.params.value("ms", 0)));
                            return json::object();
                          }});
    server_.add("others", {[](uid_t uid) { return uid == 1000; },
                           [](const RpcRequest&) -> Result<json> { return json::object(); }});
    EXPECT_TRUE(server_.start());
  }
  RpcClient client(Credentials& credentials, const std::string& host = "hv1") {
    return RpcClient({.host = host, .address = "127.0.0.1", .port = server_.port()}, credentials);
  }
  FakeCredentials server_credentials_, client_credentials_;
  RpcServer server_;
};

TEST_F(Rpc, AnswersSeveralCallsOnOneConnection) {
  RpcClient c = client(client_credentials_);
  for (int i = 0; i < 3; ++i) {
    auto result = c.call("echo", {{"i", i}}, soon());
    ASSERT_TRUE(result) << result.error().message;
    EXPECT_EQ((*result)["i"], i);
  }
}

TEST_F(Rpc, ErrorsKeepCodeAndText) {
  auto result = client(client_credentials_).call("refuse", json::object(), soon());
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error(), (Error{Code::kExhausted, "no free device"}));
}

TEST_F(Rpc, ProgressComesInOrderBeforeTheResult) {
  std::vector<int> seen;
  auto result =
      client(client_credentials_).call("count", json::object(), soon(), [&](const json& p) {
        seen.push_back(p["n"]);
      });
  ASSERT_TRUE(result);
  EXPECT_EQ(seen, (std::vector<int>{1, 2, 3}));
  EXPECT_EQ((*result)["n"], 4);
}

TEST_F(Rpc, NoAnswerInTimeIsDeadline) {
  auto result =
      client(client_credentials_).call("sleep", {{"ms", 1500}}, Deadline::after(milliseconds(100)));
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, Code::kDeadline);
}

TEST_F(Rpc, NobodyThereIsUnavailable) {
  const int port = server_.port();
  server_.stop();
  RpcClient c({.host = "hv1", .address = "127.0.0.1", .port = port}, client_credentials_);
  auto result = c.call("echo", json::object(), soon());
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, Code::kUnavailable);
}

TEST_F(Rpc, WrongKeyHostAndUidAreRefused) {
  FakeCredentials other_key("stolen"), other_uid("key", 1001);
  EXPECT_EQ(client(other_key).call("echo", json::object(), soon()).error().code, Code::kPermission);
  EXPECT_EQ(client(client_credentials_, "hv2").call("echo", json::object(), soon()).error().code,
            Code::kPermission);
  EXPECT_EQ(client(other_uid).call("echo", json::object(), soon()).error().code, Code::kPermission);
  EXPECT_EQ(client(client_credentials_).call("others", json::object(), soon()).error().code,
            Code::kPermission);
}

TEST_F(Rpc, AnswersOfSomebodyElseAreNotBelieved) {
  RpcClient c({.host = "hv1",
               .address = "127.0.0.1",
               .port = server_.port(),
               .replier_allowed = [](uid_t uid) { return uid == 64030; }},
              client_credentials_);
  auto result = c.call("echo", json::object(), soon());
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, Code::kPermission);
}

TEST_F(Rpc, UnknownMethodAndMissingDeadlineAreInvalid) {
  EXPECT_EQ(client(client_credentials_).call("no.such", json::object(), soon()).error().code,
            Code::kInvalidArgument);
}

TEST_F(Rpc, GarbageClosesTheConnectionAndNothingElse) {
  UniqueFd fd(socket(AF_INET, SOCK_STREAM, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(server_.port()));
  inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
  ASSERT_EQ(connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  const std::string garbage(64, '\xff');
  ASSERT_EQ(send(fd.get(), garbage.data(), garbage.size(), 0), 64);
  char byte;
  EXPECT_LE(recv(fd.get(), &byte, 1, 0), 0);
  EXPECT_TRUE(client(client_credentials_).call("echo", json::object(), soon()));
}

TEST_F(Rpc, PoolAnswersEveryCallOnce) {
  std::atomic<int> good{0}, bad{0};
  {
    RpcPool pool({.addresses = {{"hv1", "127.0.0.1"}, {"gone", "127.0.0.1"}},
                  .ports = {{"hv1", server_.port()}, {"gone", 1}},
                  .max_threads = 8},
                 client_credentials_);
    std::promise<void> all;
    std::atomic<int> left{200};
    for (int i = 0; i < 200; ++i) {
      pool.call(i % 2 ? "hv1" : "gone", "echo", {{"i", i}}, milliseconds(5000), {},
                [&](Result<json> r) {
                  (r ? good : bad)++;
                  if (--left == 0) all.set_value();
                });
    }
    ASSERT_EQ(all.get_future().wait_for(std::chrono::seconds(10)), std::future_status::ready);
  }
  EXPECT_EQ(good, 100);
  EXPECT_EQ(bad, 100);
}

TEST_F(Rpc, PoolKeepsTheLastUsedConnections) {
  const std::size_t before = open_files();
  std::map<std::string, std::string> addresses;
  std::map<std::string, int> ports;
  std::vector<std::unique_ptr<RpcServer>> servers;
  FakeCredentials there;
  for (int i = 0; i < 6; ++i) {
    const std::string host = "h" + std::to_string(i);
    servers.push_back(std::make_unique<RpcServer>(
        RpcServer::Options{.host = host, .address = "127.0.0.1"}, there));
    servers.back()->add("peer", {[](uid_t) { return true; },
                                 [](const RpcRequest& r) -> Result<json> { return json(r.peer); }});
    ASSERT_TRUE(servers.back()->start());
    addresses[host] = "127.0.0.1";
    ports[host] = servers.back()->port();
  }
  const std::size_t listening = open_files();
  RpcPool pool({.addresses = addresses, .ports = ports, .max_threads = 1, .max_spare = 2},
               client_credentials_);
  auto peer_of = [&](int host) {
    std::promise<std::string> said;
    pool.call("h" + std::to_string(host), "peer", json::object(), milliseconds(5000), {},
              [&](Result<json> r) { said.set_value(r ? r->get<std::string>() : "failed"); });
    return said.get_future().get();
  };
  std::map<int, std::string> first;
  for (int i = 0; i < 6; ++i) first[i] = peer_of(i);
  EXPECT_EQ(peer_of(4), first[4]) << "still connected";
  EXPECT_EQ(peer_of(5), first[5]);
  EXPECT_NE(peer_of(0), first[0]) << "was closed";
  EXPECT_EQ(peer_of(5), first[5]);
  EXPECT_NE(peer_of(4), first[4]) << "was the longest unused one";
  // Both ends of three at most: two kept, one that its server has not seen closed yet.
  for (int i = 0; i < 500 && open_files() > listening + 6; ++i)
    std::this_thread::sleep_for(milliseconds(10));
  EXPECT_LE(open_files(), listening + 6);
  EXPECT_LT(before, listening);
}

TEST_F(Rpc, PoolThatIsDestroyedEndsItsCalls) {
  std::atomic<int> ended{0};
  {
    RpcPool pool(
        {.addresses = {{"hv1", "127.0.0.1"}}, .ports = {{"hv1", server_.port()}}, .max_threads = 2},
        client_credentials_);
    for (int i = 0; i < 6; ++i)
      pool.call("hv1", "sleep", {{"ms", 300}}, milliseconds(5000), {},
                [&](Result<json>) { ++ended; });
    std::this_thread::sleep_for(milliseconds(50));
  }
  EXPECT_EQ(ended, 6);
}

}  // namespace
}  // namespace symvirt
