#include "spank-symvirt/cli/follow_events.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace symvirt {
namespace {

using nlohmann::json;

// symvirtd with a log of events, as processes that come and go; it ends each stream after what it
// has, and the test after `rounds` streams.
struct FakeDaemon {
  struct Life {
    std::int64_t generation;
    int events;           // numbered from 1
    bool breaks = false;  // the connection breaks behind the last one
  };
  std::vector<Life> lives;
  std::size_t life = 0;
  int away = 0;  // failing calls between two lives
  std::vector<std::string> seen, errors;
  std::vector<std::int64_t> asked_since;
  int sleeps = 0;

  FollowWorld world() {
    FollowWorld w;
    w.status = [this]() -> Result<json> {
      if (away > 0) {
        --away;
        return Error{Code::kUnavailable, "Connection refused"};
      }
      return json{{"generation", lives[life].generation}};
    };
    w.events = [this](std::int64_t since,
                      const std::function<void(const json&)>& sink) -> Result<json> {
      asked_since.push_back(since);
      const Life now = lives[life++];
      std::int64_t next = since == 0 ? 1 : since;
      for (; next <= now.events; ++next)
        sink({{"seq", next},
              {"message", std::to_string(now.generation) + "." + std::to_string(next)}});
      if (now.breaks) return Error{Code::kUnavailable, "connection closed"};
      return json{{"next", next}};
    };
    w.sleep = [this](int) { ++sleeps; };
    w.event = [this](const json& e) { seen.push_back(e["message"]); };
    w.err = [this](const std::string& text) { errors.push_back(text); };
    w.stop = [this] { return life >= lives.size(); };
    return w;
  }
};

using Strings = std::vector<std::string>;

TEST(Follow, GoesOnBehindTheLastEventOfTheSameProcess) {
  FakeDaemon d;
  d.lives = {{5, 2, true}, {5, 3}, {5, 4}};
  ASSERT_TRUE(follow_events(0, d.world()));
  EXPECT_EQ(d.seen, (Strings{"5.1", "5.2", "5.3", "5.4"}));
  EXPECT_EQ(d.asked_since, (std::vector<std::int64_t>{0, 3, 4}));
}

TEST(Follow, ANewProcessCountsFromOneAgain) {
  FakeDaemon d;
  d.lives = {{5, 40, true}, {6, 2}};
  ASSERT_TRUE(follow_events(39, d.world()));
  EXPECT_EQ(d.seen,
            (Strings{"5.39", "5.40", "symvirtd was restarted (generation 6)", "6.1", "6.2"}));
}

TEST(Follow, WaitsWhileItIsAway) {
  FakeDaemon d;
  d.lives = {{5, 1, true}, {6, 1}};
  FollowWorld w = d.world();
  auto events = w.events;
  w.events = [&](std::int64_t since, const std::function<void(const json&)>& sink) {
    auto result = events(since, sink);
    d.away = 4;
    return result;
  };
  ASSERT_TRUE(follow_events(0, w));
  EXPECT_EQ(d.sleeps, 5);
  EXPECT_EQ(d.errors.size(), 1u);  // one line, however many tries
  EXPECT_EQ(d.seen.back(), "6.1");
}

TEST(Follow, AServerThatNeverAnsweredIsAnError) {
  FakeDaemon d;
  d.lives = {{5, 1}};
  d.away = 1;
  Status status = follow_events(0, d.world());
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, Code::kUnavailable);
  EXPECT_EQ(d.sleeps, 0);
}

}  // namespace
}  // namespace symvirt
