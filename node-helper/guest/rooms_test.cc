// The small rooms: clock, request cache, port look-up, state file.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "node-helper/guest/channel.h"
#include "node-helper/guest/clock.h"
#include "node-helper/guest/request_cache.h"
#include "node-helper/guest/sockets.h"
#include "node-helper/guest/state.h"

namespace symvirt::guest {
namespace {

namespace fs = std::filesystem;

class Folder : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/guest-test-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    path = name;
  }
  void TearDown() override { fs::remove_all(path); }
  void write(const fs::path& file, const std::string& text) {
    fs::create_directories((path / file).parent_path());
    std::ofstream(path / file) << text;
  }
  fs::path path;
};

struct FakeWall {
  std::int64_t now = 1'790'000'000'000'000'000;
  int sets = 0, error = 0;
  WallClock clock() {
    return {[this] { return now; },
            [this](std::int64_t ns) {
              ++sets;
              if (error == 0) now = ns;
              return error;
            }};
  }
};

TEST(Clock, IsLeftAloneWithinATenthOfASecond) {
  FakeWall wall;
  for (const std::int64_t off : {0L, 100'000'000L, -100'000'000L})
    EXPECT_EQ(*set_clock(wall.clock(), wall.now + off), 0);
  EXPECT_EQ(wall.sets, 0);
}

TEST(Clock, IsSteppedBothWays) {
  FakeWall wall;
  EXPECT_EQ(*set_clock(wall.clock(), wall.now + 3'600'000'000'000), 3'600'000);
  EXPECT_EQ(*set_clock(wall.clock(), wall.now - 101'000'000), -101);
  EXPECT_EQ(wall.sets, 2);
  wall.error = 1;
  EXPECT_FALSE(set_clock(wall.clock(), wall.now + 1'000'000'000));
}

TEST(RequestCache, RunsAnIdOnce) {
  RequestCache cache;
  EXPECT_EQ(cache.begin("a"), RequestCache::Seen::kNew);
  EXPECT_EQ(cache.begin("a"), RequestCache::Seen::kRunning);
  cache.answered("a", "line\n");
  cache.answered("a", "other\n");
  EXPECT_EQ(cache.begin("a"), RequestCache::Seen::kAnswered);
  EXPECT_EQ(cache.answer("a"), "line\n");
  EXPECT_EQ(cache.answer("b"), "");
}

TEST(RequestCache, ForgetsTheOldestByCountAndBySize) {
  RequestCache cache(2, 100);
  for (const char* id : {"a", "b", "c"}) {
    cache.begin(id);
    cache.answered(id, "x");
  }
  EXPECT_EQ(cache.begin("a"), RequestCache::Seen::kNew);
  EXPECT_EQ(cache.begin("c"), RequestCache::Seen::kAnswered);
  cache.begin("big");
  cache.answered("big", std::string(1000, 'y'));
  EXPECT_EQ(cache.answer("big").size(), 1000u) << "the newest stays";
  EXPECT_EQ(cache.begin("c"), RequestCache::Seen::kNew);
}

using PortLookup = Folder;

TEST_F(PortLookup, TakesUdevsLinkOrTheDriversName) {
  const auto find = [&] {
    return find_virtio_port("org.symvirt.guest.0", path / "sys", path / "dev");
  };
  EXPECT_EQ(find().error().code, Code::kNotFound);
  write("sys/class/virtio-ports/vport1p1/name", "org.qemu.guest_agent.0\n");
  write("sys/class/virtio-ports/vport1p2/name", "org.symvirt.guest.0\n");
  EXPECT_EQ(*find(), path / "dev/vport1p2");
  write("dev/virtio-ports/org.symvirt.guest.0", "");
  EXPECT_EQ(*find(), path / "dev/virtio-ports/org.symvirt.guest.0");
}

using StateFile = Folder;

TEST_F(StateFile, ComesBackInTheSameBootOnly) {
  State state;
  state.boot_id = "this";
  state.node_started = true;
  state.configuration = {{"node", "v1"}, {"slots", Json::array()}};
  state.jobs = {{7, 9, 9, 2, true, 12345}};
  state.saved["hca0"].name = "eth0";
  state.saved["hca0"].mtu = 9000;
  const std::string file = path / "guestd.json";
  ASSERT_TRUE(store_state(state, file));
  const State same = load_state(file, "this"), next = load_state(file, "next");
  EXPECT_EQ(to_json(same), to_json(state));
  EXPECT_TRUE(next.jobs.empty() && next.saved.empty() && !next.node_started);
  EXPECT_EQ(next.boot_id, "next");
}

TEST_F(StateFile, EveryPrefixOfItIsSetAside) {
  State state;
  state.boot_id = "this";
  state.jobs = {{7, 9, 9, 2, true, 12345}};
  const std::string file = path / "guestd.json", text = to_text(to_json(state));
  for (std::size_t size = 0; size < text.size(); ++size) {
    write("guestd.json", text.substr(0, size));
    EXPECT_TRUE(load_state(file, "this").jobs.empty()) << size;
    EXPECT_TRUE(fs::exists(file + ".bad")) << size;
    fs::remove(file + ".bad");
  }
}

TEST_F(StateFile, ThatCannotBeWrittenIsAnError) {
  EXPECT_FALSE(store_state(State{}, path / "no" / "such"));
}

TEST(Sockets, OnlyUnacknowledgedSegmentsCount) {
  InetSocket s;
  EXPECT_TRUE(at_rest(s));
  s.send_queue = 100000;  // unsent, behind a closed window
  EXPECT_TRUE(at_rest(s));
  s.unacknowledged = 1;
  EXPECT_FALSE(at_rest(s));
}

}  // namespace
}  // namespace symvirt::guest
