#include "node-helper/host/store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "tests/fakes/sync_log.h"

namespace symvirt::host {
namespace {

namespace fs = std::filesystem;

class StoreTest : public testing::Test {
 protected:
  StoreTest() {
    char name[] = "/tmp/symvirt-store-XXXXXX";
    folder_ = mkdtemp(name);
  }
  ~StoreTest() override { fs::remove_all(folder_); }
  std::string folder_;
};

Status fill(NodeState& s) {
  s.generation = 7;
  s.vms["v1"].slots = {{"ib0", "hca", "hca0", "52:54:00:00:00:01", "0000:06:00.0"}};
  s.vms["v1"].memory_bytes = 1 << 20;
  s.vms["v1"].overlays = {"/vms/v1"};
  s.vms["v1"].ended_here = true;
  s.vms["v1"].unplugs = {"ua-symvirt-ib0-0"};
  s.vms["v1"].lease = {42, {1, 2}, 5, 1, {0}};
  s.vms["nothing"] = {};
  return {};
}

TEST_F(StoreTest, GivesBackWhatWasWritten) {
  Store a(folder_);
  ASSERT_TRUE(a.load());
  ASSERT_TRUE(a.update(fill));
  Store b(folder_);
  ASSERT_TRUE(b.load());
  EXPECT_EQ(a.get(), b.get());
  EXPECT_EQ(b.vm("v1").lease.job_id, 42);
  EXPECT_EQ(b.get().vms.count("nothing"), 0u);
}

// Contents first, then (after the rename) the folder: a power cut leaves the old file or the new.
TEST_F(StoreTest, IsOnTheDiskWhenUpdateReturns) {
  Store a(folder_);
  ASSERT_TRUE(a.load());
  fakes::sync_log.take();
  ASSERT_TRUE(a.update(fill));
  EXPECT_THAT(fakes::sync_log.take(), testing::ElementsAre(folder_ + "/state.json.new", folder_));
}

TEST_F(StoreTest, AChangeThatFailsLeavesNoTrace) {
  Store a(folder_);
  ASSERT_TRUE(a.load());
  ASSERT_TRUE(a.update(fill));
  const NodeState before = a.get();
  EXPECT_FALSE(a.update([](NodeState& s) -> Status {
    s.generation = 9;
    return Error{Code::kExhausted, "no"};
  }));
  EXPECT_EQ(a.get(), before);
  fs::remove_all(folder_);  // cannot be written any more
  EXPECT_FALSE(a.update([](NodeState& s) -> Status {
    s.generation = 9;
    return {};
  }));
  EXPECT_EQ(a.get(), before);
}

TEST_F(StoreTest, AFileThatCannotBeReadIsSetAside) {
  for (const char* bad : {"", "{", "[]", "{\"schema_version\":2}"}) {
    std::ofstream(folder_ + "/state.json") << bad;
    Store a(folder_);
    EXPECT_TRUE(a.load()) << bad;
    EXPECT_EQ(a.get(), NodeState());
    EXPECT_FALSE(fs::exists(folder_ + "/state.json"));
  }
}

TEST_F(StoreTest, FieldsOfAWrongTypeAreAsIfMissing) {
  auto s = state_from_text(
      R"({"schema_version":1,"generation":"x","vms":{"v1":{"slots":3,"lease":{"job_id":"y"}},"v2":null}})");
  ASSERT_TRUE(s);
  EXPECT_EQ(s->generation, 0);
  EXPECT_TRUE(s->vms["v1"].slots.empty());
}

}  // namespace
}  // namespace symvirt::host
