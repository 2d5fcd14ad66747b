#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <thread>

#include "common/unique_fd.h"
#include "slurm-conf/programs/local_call.h"
#include "slurm-conf/programs/own_node.h"

namespace symvirt {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

Deadline soon() { return Deadline::after(milliseconds(5000)); }

TEST(Node, StateAndReasonAsScontrolShowsThem) {
  auto node = parse_node(
      "NodeName=hv1 Arch=x86_64 State=IDLE+DRAIN ThreadsPerCore=1 Reason=NHC: disk is full "
      "[root@2026-11-23T02:00:00]\n");
  ASSERT_TRUE(node);
  EXPECT_EQ(node->state, "IDLE+DRAIN");
  EXPECT_EQ(node->reason, "NHC: disk is full");
  auto well = parse_node("NodeName=hv1 State=IDLE ThreadsPerCore=1\n");
  ASSERT_TRUE(well);
  EXPECT_EQ(well->reason, "");
  EXPECT_FALSE(parse_node("Node hv9 not found"));
}

TEST(Node, OutOfServiceIsNotPoweredDown) {
  for (const char* state :
       {"IDLE+DRAIN", "MIXED+DRAIN", "DOWN", "DOWN+NOT_RESPONDING", "IDLE+FAIL"})
    EXPECT_TRUE((NodeNow{state, ""}).out_of_service()) << state;
  for (const char* state : {"IDLE", "ALLOCATED", "IDLE+CLOUD+POWERED_DOWN", "IDLE+POWERING_DOWN"})
    EXPECT_FALSE((NodeNow{state, ""}).out_of_service()) << state;
}

// Listens, takes one connection, reads one line, sends `answer`, closes.
class FakeGuestd {
 public:
  explicit FakeGuestd(std::string answer) : path_("/tmp/symvirt-test-" + std::to_string(getpid())) {
    unlink(path_.c_str());
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path_.c_str(), path_.size() + 1);
    listener_.reset(socket(AF_UNIX, SOCK_STREAM, 0));
    EXPECT_EQ(bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(listen(listener_.get(), 1), 0);
    thread_ = std::thread([this, text = std::move(answer)] {
      UniqueFd peer(accept(listener_.get(), nullptr, nullptr));
      char c = 0;
      while (read(peer.get(), &c, 1) == 1 && c != '\n') asked_ += c;
      if (text == "hang") return std::this_thread::sleep_for(milliseconds(800));
      EXPECT_GE(send(peer.get(), text.data(), text.size(), MSG_NOSIGNAL), 0);
    });
  }
  ~FakeGuestd() {
    join();
    unlink(path_.c_str());
  }
  void join() {
    if (thread_.joinable()) thread_.join();
  }
  std::string path_, asked_;
  UniqueFd listener_;
  std::thread thread_;
};

TEST(LocalCall, FindsItsAnswerAmongOtherLines) {
  FakeGuestd guestd(
      "\nnot json\n[]\n{\"event\":\"hello\"}\n{\"id\":\"1\",\"method\":\"step.members\"}\n"
      "{\"id\":\"1\",\"result\":{\"healthy\":true}}\n");
  auto answer = local_call(guestd.path_, "node.check", {{"job", 7}}, soon());
  ASSERT_TRUE(answer) << answer.error().message;
  EXPECT_EQ((*answer)["healthy"], true);
  guestd.join();
  EXPECT_THAT(guestd.asked_, HasSubstr("\"method\":\"node.check\""));
  EXPECT_THAT(guestd.asked_, HasSubstr("\"job\":7"));
}

TEST(LocalCall, ErrorsAreTheirOwn) {
  FakeGuestd refuses("{\"id\":\"1\",\"error\":{\"code\":\"PERMISSION\",\"message\":\"no\"}}\n");
  auto answer = local_call(refuses.path_, "x", nlohmann::json::object(), soon());
  ASSERT_FALSE(answer);
  EXPECT_EQ(answer.error(), (Error{Code::kPermission, "no"}));
}

TEST(LocalCall, NobodyThereBrokenOffOrSilent) {
  const auto none = nlohmann::json::object();
  EXPECT_EQ(local_call("/tmp/symvirt-test-nobody", "x", none, soon()).error().code,
            Code::kUnavailable);
  {
    FakeGuestd closes("{\"id\":");
    EXPECT_EQ(local_call(closes.path_, "x", none, soon()).error().code, Code::kUnavailable);
  }
  FakeGuestd hangs("hang");
  EXPECT_EQ(local_call(hangs.path_, "x", none, Deadline::after(milliseconds(200))).error().code,
            Code::kDeadline);
}

}  // namespace
}  // namespace symvirt
