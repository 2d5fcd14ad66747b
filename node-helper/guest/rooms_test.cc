// The small rooms: clock, request cache, port look-up, state file.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "node-helper/guest/channel.h"
#include "node-helper/guest/clock.h"
#include "node-helper/guest/holders.h"
#include "node-helper/guest/rdma.h"
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

class Rdma : public Folder {
 protected:
  void port(const std::string& device, int port, const std::string& state, const std::string& layer,
            const std::string& lid) {
    const std::string at = "sys/class/infiniband/" + device + "/ports/" + std::to_string(port);
    write(at + "/state", state + "\n");
    write(at + "/link_layer", layer + "\n");
    write(at + "/lid", lid + "\n");
  }
  std::string port_of(const std::string& netdev) {
    const RdmaPort found = rdma_port_of(netdev, path / "sys");
    return found.device.empty() ? "none" : found.device + ":" + std::to_string(found.port);
  }
  std::string not_ready(const RdmaPort& port, const std::vector<std::string>& texts) {
    std::vector<Address> addresses;
    for (const std::string& text : texts) addresses.push_back(*parse_address(text));
    return rdma_not_ready(port, addresses, path / "sys");
  }
};

TEST_F(Rdma, APortBelongsToItsInterface) {
  EXPECT_EQ(port_of("eth0"), "none");
  write("sys/class/infiniband/rxe_eth1/parent", "eth1\n");
  fs::create_directories(path / "sys/devices/pci0/function0");
  fs::create_directories(path / "sys/devices/pci0/function1");
  for (const auto& [netdev, function, dev_port] : {std::tuple("eth0", "function0", "0"),
                                                   {"ib0", "function1", "0"},
                                                   {"ib1", "function1", "1"}}) {
    write(std::string("sys/class/net/") + netdev + "/dev_port", std::string(dev_port) + "\n");
    fs::create_symlink(path / "sys/devices/pci0" / function,
                       path / "sys/class/net" / netdev / "device");
  }
  port("mlx4_0", 1, "4: ACTIVE", "InfiniBand", "0x3");
  port("mlx4_0", 2, "1: DOWN", "InfiniBand", "0x0");
  fs::create_symlink(path / "sys/devices/pci0/function1",
                     path / "sys/class/infiniband/mlx4_0/device");
  EXPECT_EQ(port_of("eth0"), "none");
  EXPECT_EQ(port_of("eth1"), "rxe_eth1:1");
  EXPECT_EQ(port_of("ib0"), "mlx4_0:1");
  EXPECT_EQ(port_of("ib1"), "mlx4_0:2");
}

TEST_F(Rdma, APortIsReadyWhenActiveWithItsNumbers) {
  EXPECT_EQ(not_ready({"mlx5_0", 1}, {}), "mlx5_0 port 1 is gone");
  port("mlx5_0", 1, "2: INIT", "InfiniBand", "0x0");
  EXPECT_EQ(not_ready({"mlx5_0", 1}, {}), "mlx5_0 port 1 is in state 2: INIT");
  port("mlx5_0", 1, "4: ACTIVE", "InfiniBand", "0x0");
  EXPECT_NE(not_ready({"mlx5_0", 1}, {}).find("no LID"), std::string::npos);
  port("mlx5_0", 1, "4: ACTIVE", "InfiniBand", "0x11");
  EXPECT_EQ(not_ready({"mlx5_0", 1}, {"10.30.1.1"}), "") << "IPoIB's addresses are no GIDs";
  port("rxe_eth0", 1, "4: ACTIVE", "Ethernet", "0x0");
  const std::string gids = "sys/class/infiniband/rxe_eth0/ports/1/gids/";
  write(gids + "0", "fe80:0000:0000:0000:5054:00ff:fe78:0001\n");
  EXPECT_EQ(not_ready({"rxe_eth0", 1}, {"10.78.0.101"}),
            "rxe_eth0 port 1 has no GID for 10.78.0.101 yet");
  write(gids + "1", "0000:0000:0000:0000:0000:ffff:0a4e:0065\n");
  EXPECT_EQ(not_ready({"rxe_eth0", 1}, {"10.78.0.101", "fe80::5054:ff:fe78:1"}), "");
}

TEST_F(Rdma, WhoHasAContextHasItsFileOpenOrMapped) {
  write("sys/class/infiniband_verbs/uverbs0/ibdev", "mlx5_0\n");
  write("sys/class/infiniband_verbs/uverbs1/ibdev", "rxe_eth0\n");
  EXPECT_EQ(verbs_file_of("rxe_eth0", path / "sys"), "/dev/infiniband/uverbs1");
  EXPECT_EQ(verbs_file_of("rxe_eth1", path / "sys"), "");
  for (const char* pid : {"11", "12", "13", "self"}) {
    write(std::string("proc/") + pid + "/comm", std::string("program") + pid + "\n");
    fs::create_directories(path / "proc" / pid / "fd");
  }
  fs::create_symlink("/dev/infiniband/uverbs1", path / "proc/11/fd/3");
  fs::create_symlink("/dev/infiniband/uverbs0", path / "proc/12/fd/3");
  write("proc/12/maps", "7f00-7f01 rw-s 00001000 00:05 90      /dev/infiniband/uverbs10\n");
  write("proc/13/maps",
        "7f00-7f01 r-xp 00000000 fe:00 7      /lib/libibverbs.so.1\n"
        "7f02-7f03 rw-s 00001000 00:05 91      /dev/infiniband/uverbs1\n");
  const auto found = list_verbs_holders({{"/dev/infiniband/uverbs1", "rxe_eth0"}}, path / "proc");
  ASSERT_TRUE(found);
  std::map<std::int32_t, std::string> who;
  for (const Holder& holder : *found) who[holder.pid] = holder.name + ": " + holder.what;
  EXPECT_EQ(who,
            (std::map<std::int32_t, std::string>{{11, "program11: a verbs context of rxe_eth0"},
                                                 {13, "program13: a verbs context of rxe_eth0"}}));
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
