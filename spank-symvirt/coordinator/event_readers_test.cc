#include "spank-symvirt/coordinator/event_readers.h"

#include <gtest/gtest.h>

namespace symvirt {
namespace {

TEST(EventReaders, OneUserDoesNotTakeThePlacesOfAll) {
  EventReaders readers({.of_one_user = 2, .of_all_users = 3});
  EXPECT_TRUE(readers.enter(1000, false));
  EXPECT_TRUE(readers.enter(1000, false));
  const Status third = readers.enter(1000, false);
  ASSERT_FALSE(third);
  EXPECT_EQ(third.error().code, Code::kExhausted);
  EXPECT_TRUE(readers.enter(1001, false));
  EXPECT_FALSE(readers.enter(1002, false)) << "three in all";
  for (int i = 0; i < 100; ++i) EXPECT_TRUE(readers.enter(0, true)) << "admins are not kept out";
  readers.leave(0, true);
  EXPECT_FALSE(readers.enter(1002, false)) << "nor do they give back what is not theirs";
  readers.leave(1000, false);
  EXPECT_TRUE(readers.enter(1002, false));
}

}  // namespace
}  // namespace symvirt
