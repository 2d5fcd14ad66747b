#include "node-helper/host/out_queue.h"

#include <gtest/gtest.h>

namespace symvirt::host {
namespace {

TEST(OutQueue, GivesBackWhatWasPutIn) {
  OutQueue queue(100 << 20);
  std::string in, out;
  for (int i = 0; i < 200; ++i) {
    const std::string line = std::string(static_cast<std::size_t>(i) * 997, static_cast<char>(i));
    in += line;
    ASSERT_TRUE(queue.push(line));
    const std::string_view some = queue.front(70'000);
    out += some;
    queue.pop(some.size());
  }
  while (!queue.empty()) {
    const std::string_view some = queue.front(256 << 10);
    out += some;
    queue.pop(some.size());
  }
  EXPECT_EQ(in, out);
}

TEST(OutQueue, ForAGuestThatDoesNotReadItEnds) {
  OutQueue queue(1000);
  int taken = 0;
  for (int i = 0; i < 1000; ++i) taken += queue.push(std::string(300, 'x')) ? 1 : 0;
  EXPECT_EQ(taken, 3);
  EXPECT_EQ(queue.size(), 900u) << "only whole messages are dropped";
  queue.pop(900);
  EXPECT_TRUE(queue.push(std::string(5000, 'y'))) << "a long one goes by itself";
  EXPECT_FALSE(queue.push("z"));
}

}  // namespace
}  // namespace symvirt::host
