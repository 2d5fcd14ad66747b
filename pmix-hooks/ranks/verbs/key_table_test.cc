#include "pmix-hooks/ranks/verbs/key_table.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace symvirt::hooks::verbs {
namespace {

TEST(KeyTable, KnowsWhatWasPutAndNothingElse) {
  std::mt19937 random(1);
  KeyTable table;
  std::map<std::uint32_t, std::uint32_t> model;
  for (int i = 0; i < 20'000; ++i) {
    const std::uint32_t from =
        random() % 3 == 0 ? static_cast<std::uint32_t>(random()) : (random() % 5000) << 8;
    const auto to = static_cast<std::uint32_t>(random());
    table.put(from, to);
    model[from] = to;
  }
  EXPECT_EQ(table.size(), model.size());
  for (const auto& [from, to] : model) EXPECT_EQ(table[from], to);
  for (std::uint32_t other = 1; other < 100'000; other += 7) {
    if (model.contains(other)) continue;
    EXPECT_EQ(table[other], other);
    EXPECT_FALSE(table.contains(other));
  }
  EXPECT_EQ(KeyTable()[0], 0u);
  EXPECT_FALSE(KeyTable().contains(0));
}

}  // namespace
}  // namespace symvirt::hooks::verbs
