#include "pmix-hooks/ranks/verbs/exchange.h"

#include <gtest/gtest.h>

#include "pmix-hooks/ranks/verbs/directory.h"

namespace symvirt::hooks::verbs {
namespace {

Gid gid_of(std::uint8_t last) {
  Gid gid{};
  gid[0] = 0xfe;
  gid[15] = last;
  return gid;
}

QpStatement qp(std::uint32_t known, std::uint32_t now, std::uint8_t peer,
               std::uint32_t peer_number) {
  QpStatement out;
  out.type = IBV_QPT_RC;
  out.virtual_number = known;
  out.real_number = now;
  out.flags = kQpConnected;
  out.sent = 1'000'000'000'000;
  out.peer = Address::by_gid(gid_of(peer));
  out.peer_number = peer_number;
  return out;
}

Statement example() {
  Statement s;
  s.stage = 11;
  s.ok = true;
  s.stays = true;
  s.ports.push_back({3, 4, 5, {{gid_of(1), gid_of(2)}}, {qp(0x11, 0x12, 9, 0x13)}});
  s.ports.push_back({0, 0, 3, {}, {}});
  s.ports[1].qps.push_back(qp(0xfffffe, 0x20, 0, 0));
  s.ports[1].qps[0].peer = Address::by_lid(7);
  s.keys = {{0x100, 0x200}, {0xffffffff, 0}};
  return s;
}

TEST(Exchange, ReadsWhatItWrites) {
  const auto read = parse_statement(encode(example()));
  ASSERT_TRUE(read) << read.error().message;
  EXPECT_EQ(*read, example());
}

TEST(Exchange, EveryTruncationAndEveryChangedByteIsReadOrRefusedButNeverCrashes) {
  const std::string text = encode(example());
  for (std::size_t i = 0; i < text.size(); ++i) {
    static_cast<void>(parse_statement(text.substr(0, i)));
    for (const char c : {'\n', ' ', '-', 'g', '\0', '9'}) {
      std::string changed = text;
      changed[i] = c;
      static_cast<void>(parse_statement(changed));
    }
  }
}

TEST(Exchange, RefusesWhatIsNoStatement) {
  for (const char* text : {"", "V1", "V1 1", "V1 1 1", "V1 1 2 0", "V1 1 1 2", "V1 1 1 0 0",
                           "V2 1 1 0", "V1 1 1 0\nX 1", "V1 1 1 0\nP 1 2", "V1 1 1 0\nP 10000 1 1",
                           "V1 1 1 0\nG 0 0", "V1 1 1 0\nK 1 100000000", "V1 1 1 0\nK 1 2 3",
                           "V1 1 1 0\nK  1 2", "V1 1 1 0\nP 1 1 1\nQ 2 1000000 1 1 0 0 0 - 1",
                           "V1 1 1 0\nQ 2 1 1 1 0 0 0 - 1", "V1 -1 1 0", "V1 1 1 0\nK 0x1 2"}) {
    EXPECT_FALSE(parse_statement(text)) << text;
  }
}

TEST(Exchange, RefusesWhatADirectoryWouldTakeAllMemoryFor) {
  Statement s;
  s.ports.push_back({0, 0, 5, {}, {}});
  s.ports[0].gids.assign(1u << 13, {gid_of(1), gid_of(2)});
  s.ports[0].qps.assign(1000, qp(0x11, 0x12, 9, 0x13));
  EXPECT_TRUE(parse_statement(encode(s)));
  s.ports[0].qps.assign(1024, qp(0x11, 0x12, 9, 0x13));
  EXPECT_FALSE(parse_statement(encode(s)));
  s.ports[0].qps.clear();
  s.keys.assign(1024, {1, 2});
  EXPECT_FALSE(parse_statement(encode(s)));
}

TEST(Directory, FindsTheQueuePairThatTalksBack) {
  // Two processes at one address call theirs 0x11 (one carried from elsewhere): the connection
  // tells.
  Statement a;
  a.ports.push_back({0, 0, 5, {{gid_of(1), gid_of(2)}}, {qp(0x11, 0x30, 9, 0x50)}});
  a.keys = {{1, 10}};
  Statement b = a;
  b.ports[0].qps = {qp(0x11, 0x31, 9, 0x51)};
  b.keys = {{1, 11}};
  const Directory directory({{"0", a}, {"1", b}});
  const auto first = directory.find(Address::by_gid(gid_of(1)), 0x11, 0x50);
  const auto second = directory.find(Address::by_gid(gid_of(1)), 0x11, 0x51);
  ASSERT_TRUE(first && second);
  EXPECT_EQ(first->qp->real_number, 0x30u);
  EXPECT_EQ((*first->rkeys)[1], 10u);
  EXPECT_EQ(second->qp->real_number, 0x31u);
  EXPECT_EQ((*second->rkeys)[1], 11u);
  EXPECT_FALSE(directory.find(Address::by_gid(gid_of(1)), 0x12, 0));
  EXPECT_FALSE(directory.find(Address::by_lid(0), 0x11, 0x50));
  const auto* place = directory.place(Address::by_gid(gid_of(1)));
  ASSERT_NE(place, nullptr);
  EXPECT_EQ(place->real_gid, gid_of(2));
  EXPECT_TRUE(place->numbers.contains(0x11));
}

}  // namespace
}  // namespace symvirt::hooks::verbs
