#include "node-helper/protocol/connection_room.h"

#include <gtest/gtest.h>

namespace symvirt {
namespace {

using Id = ConnectionRoom::Id;
using Standing = ConnectionRoom::Standing;

constexpr std::uint32_t kHost = 1, kStranger = 2;

ConnectionRoom::Limits small() {
  return {.unknown = 4,
          .unknown_per_address = 2,
          .ordinary = 3,
          .ordinary_per_address = 2,
          .trusted = 2};
}

TEST(ConnectionRoom, TheLongestSilentOfAnAddressMakesPlaceForItsNext) {
  ConnectionRoom room(small());
  EXPECT_FALSE(room.admit(1, kStranger).evicted);
  EXPECT_FALSE(room.admit(2, kStranger).evicted);
  const auto third = room.admit(3, kStranger);
  EXPECT_TRUE(third.admitted);
  EXPECT_EQ(third.evicted, Id{1});
  EXPECT_FALSE(room.is_in(1));
  EXPECT_FALSE(room.admit(4, kHost).evicted) << "another address has places of its own";
}

TEST(ConnectionRoom, WhoseFrameIsLookedAtIsNotEvicted) {
  ConnectionRoom room(small());
  room.admit(1, kStranger);
  room.admit(2, kStranger);
  room.heard(1);
  EXPECT_EQ(room.admit(3, kStranger).evicted, Id{2});
  room.heard(3);
  EXPECT_FALSE(room.admit(4, kStranger).admitted);
  room.leave(1);
  EXPECT_TRUE(room.admit(5, kStranger).admitted);
}

TEST(ConnectionRoom, StrangersFromEverywhereDoNotKeepAKnownHostOut) {
  ConnectionRoom room(small());
  room.admit(1, kHost);
  ASSERT_TRUE(room.promote(1, Standing::kTrusted));
  for (Id id = 10; id < 100; ++id)
    EXPECT_TRUE(room.admit(id, 100 + static_cast<std::uint32_t>(id)).admitted);
  EXPECT_TRUE(room.is_in(1));
  const auto second = room.admit(200, kHost);
  EXPECT_TRUE(second.admitted);
  for (Id id = 201; id < 300; ++id) room.admit(id, 100 + static_cast<std::uint32_t>(id));
  EXPECT_TRUE(room.is_in(200)) << "its address is known: others go first";
  EXPECT_TRUE(room.promote(200, Standing::kTrusted));
}

TEST(ConnectionRoom, UsersWhoMayOnlyReadHaveTheirOwnPlaces) {
  ConnectionRoom room(small());
  Id id = 0;
  for (std::uint32_t address : {10, 10, 11}) {
    room.admit(++id, address);
    EXPECT_TRUE(room.promote(id, Standing::kOrdinary));
  }
  room.admit(++id, 10);
  EXPECT_FALSE(room.promote(id, Standing::kOrdinary)) << "two of one address";
  room.leave(id);
  room.admit(++id, 12);
  EXPECT_FALSE(room.promote(id, Standing::kOrdinary)) << "three in all";
  EXPECT_TRUE(room.promote(id, Standing::kTrusted));
  EXPECT_TRUE(room.promote(id, Standing::kOrdinary)) << "it keeps its place";
  EXPECT_FALSE(room.promote(999, Standing::kTrusted)) << "evicted meanwhile";
}

}  // namespace
}  // namespace symvirt
