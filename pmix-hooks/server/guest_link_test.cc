#include "pmix-hooks/server/guest_link.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <thread>

namespace symvirt::hooks {
namespace {

using namespace std::chrono_literals;

struct GuestLinkTest : testing::Test {
  std::string path = "/tmp/symvirt-link-test-" + std::to_string(getpid());
  UniqueFd listener;

  void TearDown() override { unlink(path.c_str()); }
  void listen_there() {
    unlink(path.c_str());
    listener.reset(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path.c_str(), sizeof address.sun_path - 1);
    ASSERT_EQ(bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    ASSERT_EQ(listen(listener.get(), 5), 0);
  }
  static std::vector<GuestMessage> wait_for_messages(GuestLink& link) {
    pollfd fd{link.fd(), POLLIN, 0};
    poll(&fd, 1, 5000);
    return link.receive();
  }
};

TEST_F(GuestLinkTest, TriesAgainLaterWhenNobodyListens) {
  GuestLink link(path);
  EXPECT_FALSE(link.connect_if_due());
  EXPECT_FALSE(link.retry_at().expired());
  listen_there();
  EXPECT_FALSE(link.connect_if_due());  // not due yet
  std::this_thread::sleep_for(link.retry_at().left());
  EXPECT_TRUE(link.connect_if_due());
}

TEST_F(GuestLinkTest, ReadsLinesInPiecesAndDropsBrokenOnes) {
  listen_there();
  GuestLink link(path);
  ASSERT_TRUE(link.connect_if_due());
  const UniqueFd peer(accept(listener.get(), nullptr, nullptr));
  const std::string text = "garbage\n\n{\"id\":\"1\",\"method\":\"step.members\"}\n{\"id\":";
  ASSERT_EQ(write(peer.get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
  EXPECT_EQ(wait_for_messages(link).size(), 1u);
  ASSERT_EQ(write(peer.get(), "\"2\",\"result\":{}}\n", 17), 17);
  EXPECT_EQ(wait_for_messages(link).size(), 1u);
}

TEST_F(GuestLinkTest, ReconnectsAfterThePeerWentAway) {
  listen_there();
  GuestLink link(path);
  ASSERT_TRUE(link.connect_if_due());
  { const UniqueFd peer(accept(listener.get(), nullptr, nullptr)); }
  wait_for_messages(link);
  EXPECT_FALSE(link.connected());
  link.send("lost");  // no crash, no SIGPIPE
  std::this_thread::sleep_for(link.retry_at().left());
  EXPECT_TRUE(link.connect_if_due());
}

TEST_F(GuestLinkTest, LargeMessagesAreWrittenAsTheSocketTakesThem) {
  listen_there();
  GuestLink link(path);
  ASSERT_TRUE(link.connect_if_due());
  const UniqueFd peer(accept(listener.get(), nullptr, nullptr));
  const std::string line(4u << 20, 'x');
  link.send(line);
  EXPECT_TRUE(link.wants_write());
  std::size_t received = 0;
  std::thread reader([&] {
    std::vector<char> buffer(1u << 16);
    while (received < line.size() + 1) {
      const ssize_t size = read(peer.get(), buffer.data(), buffer.size());
      if (size <= 0) return;
      received += static_cast<std::size_t>(size);
    }
  });
  while (link.wants_write()) {
    pollfd fd{link.fd(), POLLOUT, 0};
    ASSERT_EQ(poll(&fd, 1, 5000), 1);
    link.flush();
  }
  reader.join();
  EXPECT_EQ(received, line.size() + 1);
}

TEST_F(GuestLinkTest, AskTellsUnreachableFromSilentFromClosed) {
  const auto ask = [this](std::chrono::milliseconds patience = 20s) {
    return ask_guestd(path, "{}", Deadline::after(patience));
  };
  EXPECT_EQ(ask(200ms).error().code, Code::kUnavailable);
  listen_there();
  EXPECT_EQ(ask(200ms).error().code, Code::kDeadline);
  { const UniqueFd abandoned(accept(listener.get(), nullptr, nullptr)); }
  std::thread closing([this] { const UniqueFd peer(accept(listener.get(), nullptr, nullptr)); });
  EXPECT_EQ(ask().error().code, Code::kUnavailable);
  closing.join();
  std::thread answering([this] {
    const UniqueFd peer(accept(listener.get(), nullptr, nullptr));
    const std::string text = "{\"id\":\"1\",\"result\":{}}\n";
    EXPECT_EQ(write(peer.get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
    usleep(50'000);
  });
  EXPECT_TRUE(ask());
  answering.join();
}

TEST_F(GuestLinkTest, PathTooLongIsAnError) {
  EXPECT_EQ(connect_guestd(std::string(200, 'x')).error().code, Code::kUnavailable);
}

}  // namespace
}  // namespace symvirt::hooks
