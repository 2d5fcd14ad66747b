#include "pmix-hooks/ranks/verbs/process_memory.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <vector>

#include "pmix-hooks/ranks/verbs/testing/distant_memory.h"

namespace symvirt::hooks::verbs {
namespace {

constexpr std::size_t kPage = 4096;

TEST(Mappings, LinesAreRead) {
  const auto all = parse_mappings(
      "1000-3000 r--p 00000000 08:01 42  /usr/lib/a file\n"
      "nonsense\n"
      "3000-2000 rw-p 0 0:0 0\n"
      "5000-6000 rw-p 00000000 00:00 0\n"
      "7fff00000000-7fff00001000 ---p 00000000 00:00 0");
  ASSERT_EQ(all.size(), 3u);
  EXPECT_EQ(all[0].begin, 0x1000u);
  EXPECT_EQ(all[0].end, 0x3000u);
  EXPECT_TRUE(all[0].readable);
  EXPECT_FALSE(all[0].writable);
  EXPECT_TRUE(all[1].writable);
  EXPECT_EQ(all[2].end, 0x7fff'0000'1000u);
  EXPECT_FALSE(all[2].readable);
  EXPECT_TRUE(parse_mappings("").empty());
  EXPECT_TRUE(parse_mappings("5000").empty());
  EXPECT_TRUE(parse_mappings("5000-6000 r").empty());
}

TEST(Mappings, ProtectionIsThatOfThePagesOfTheRange) {
  const std::vector<Mapping> all = {{0x1000, 0x2000, true, false}, {0x4000, 0x8000, true, true}};
  const auto check = [&all](std::uintptr_t begin, std::size_t length, bool writes) {
    return is_protected(all, reinterpret_cast<void*>(begin), length, writes);
  };
  EXPECT_TRUE(check(0x1800, 4, true));
  EXPECT_FALSE(check(0x1800, 4, false));
  EXPECT_FALSE(check(0x2000, 0x3000, true)) << "a hole, and pages that may be written";
  EXPECT_TRUE(check(0x1fff, 0x3000, true));
  EXPECT_FALSE(check(0x9000, 0x1000, true));
}

class Pages : public ::testing::Test {
 protected:
  // Three pages, of which the middle one may be gone.
  void SetUp() override {
    pages = testing::map_distant(3 * kPage);
    ASSERT_NE(pages, nullptr);
  }
  void TearDown() override {
    if (pages != nullptr) munmap(pages, 3 * kPage);
  }
  bool is_there(int page) const {
    return msync(pages + static_cast<std::size_t>(page) * kPage, kPage, MS_ASYNC) == 0;
  }
  char* pages = nullptr;
};

TEST_F(Pages, WhatIsThereIsNotTouched) {
  pages[0] = 7;
  const FilledHoles filled(pages + 100, 2 * kPage);
  EXPECT_FALSE(filled.any());
  EXPECT_EQ(pages[0], 7);
}

TEST_F(Pages, AHoleIsFilledForAWhile) {
  pages[0] = 7;
  pages[2 * kPage] = 8;
  munmap(pages + kPage, kPage);
  ASSERT_FALSE(is_there(1));
  {
    const FilledHoles filled(pages + 100, 2 * kPage);
    EXPECT_TRUE(filled.any());
    EXPECT_TRUE(is_there(1));
    pages[kPage] = 1;
    EXPECT_EQ(pages[0], 7);
    EXPECT_EQ(pages[2 * kPage], 8);
  }
  EXPECT_FALSE(is_there(1));
  EXPECT_TRUE(is_there(0));
  EXPECT_TRUE(is_there(2));
}

TEST_F(Pages, AllOfItMayBeGone) {
  munmap(pages, 3 * kPage);
  {
    const FilledHoles filled(pages, 3 * kPage);
    EXPECT_TRUE(filled.any());
    for (int i = 0; i < 3; ++i) EXPECT_TRUE(is_there(i));
  }
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(is_there(i));
}

}  // namespace
}  // namespace symvirt::hooks::verbs
