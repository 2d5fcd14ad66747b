#include "node-helper/host/detached_calls.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>

namespace symvirt::host {
namespace {

using std::chrono::milliseconds;

TEST(DetachedCalls, SoManyMayHangAndNoMore) {
  DetachedCalls calls(4, 3);
  auto go = std::make_shared<std::promise<void>>();
  auto hung = std::make_shared<std::atomic<int>>(0);
  const std::function<Result<int>()> hang = [f = go->get_future().share(), hung]() -> Result<int> {
    ++*hung;
    f.wait();
    return 1;
  };
  for (int i = 0; i < 3; ++i) {
    auto r = calls.run<int>("look", "v1", Deadline::after(milliseconds(20)), hang);
    ASSERT_FALSE(r);
    EXPECT_EQ(r.error().code, Code::kDeadline);
  }
  auto of_one = calls.run<int>("look", "v1", Deadline::after(milliseconds(20)), hang);
  ASSERT_FALSE(of_one);
  EXPECT_EQ(of_one.error().code, Code::kUnavailable);
  EXPECT_THAT(of_one.error().message, testing::HasSubstr("does its QEMU hang"));
  auto other = [](int n) { return [n] { return Result<int>(n); }; };
  EXPECT_TRUE(calls.run<int>("look", "v2", Deadline::after(milliseconds(5000)), other(1)))
      << "another VM is not kept waiting";
  EXPECT_EQ(calls.run<int>("list", "", Deadline::after(milliseconds(20)), hang).error().code,
            Code::kDeadline);
  for (int i = 0; i < 10; ++i) {
    auto r = calls.run<int>("look", "v2", Deadline::after(milliseconds(20)), hang);
    ASSERT_FALSE(r);
    EXPECT_EQ(r.error().code, Code::kUnavailable);
    EXPECT_THAT(r.error().message, testing::HasSubstr("4 calls to libvirt have not come back"));
  }
  EXPECT_EQ(*hung, 4);
  go->set_value();  // libvirtd is there again
  const Deadline end = Deadline::after(milliseconds(5000));
  Result<int> r = Error{Code::kInternal, ""};
  while (!r && !end.expired()) r = calls.run<int>("look", "v1", end, other(7));
  ASSERT_TRUE(r) << r.error().message;
  EXPECT_EQ(*r, 7);
}

TEST(DetachedCalls, OnesThatComeBackAreNotCounted) {
  DetachedCalls calls(2, 2);
  for (int i = 0; i < 200; ++i)
    EXPECT_TRUE(calls.run<int>("look", i % 2 ? "v1" : "", Deadline::after(milliseconds(5000)),
                               [i] { return Result<int>(i); }));
}

}  // namespace
}  // namespace symvirt::host
