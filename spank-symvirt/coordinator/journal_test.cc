#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "spank-symvirt/coordinator/journal_sqlite.h"
#include "spank-symvirt/coordinator/transaction.h"
#include "tests/fakes/sync_log.h"

namespace symvirt {
namespace {

using nlohmann::json;

class JournalFile : public testing::Test {
 protected:
  JournalFile()
      : folder_(testing::TempDir() + "symvirt-journal-" + std::to_string(getpid())),
        path_(folder_ + "/j.db") {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  ~JournalFile() override { std::filesystem::remove_all(folder_); }
  std::vector<json> all(SqliteJournal& journal) {
    std::vector<json> records;
    EXPECT_TRUE(journal.replay([&](const json& j) { records.push_back(j); }));
    return records;
  }
  std::string folder_, path_;
};

TEST_F(JournalFile, GivesBackWhatWasAppendedInOrder) {
  {
    auto journal = SqliteJournal::open(path_);
    ASSERT_TRUE(journal) << journal.error().message;
    for (int i = 0; i < 10; ++i)
      ASSERT_TRUE(
          (*journal)->append({{"type", "x"}, {"tx", i}, {"text", "'; DROP TABLE event; --"}}));
  }
  auto journal = SqliteJournal::open(path_);
  ASSERT_TRUE(journal);
  auto records = all(**journal);
  ASSERT_EQ(records.size(), 10u);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(records[static_cast<std::size_t>(i)]["tx"], i);
}

TEST_F(JournalFile, EveryRecordIsOnTheDiskWhenAppendReturns) {
  auto journal = SqliteJournal::open(path_);
  ASSERT_TRUE(journal);
  for (int i = 0; i < 3; ++i) {
    fakes::sync_log.take();
    ASSERT_TRUE((*journal)->append({{"type", "x"}, {"tx", i}}));
    EXPECT_THAT(fakes::sync_log.take(), testing::Contains(path_ + "-wal")) << i;
  }
}

TEST_F(JournalFile, GenerationGrowsWithEveryOpening) {
  for (std::int64_t expected = 1; expected < 4; ++expected) {
    auto journal = SqliteJournal::open(path_);
    ASSERT_TRUE(journal);
    EXPECT_EQ((*journal)->next_generation().value(), expected);
  }
}

TEST_F(JournalFile, BelongsToOneCoordinator) {
  auto first = SqliteJournal::open(path_);
  ASSERT_TRUE(first);
  auto second = SqliteJournal::open(path_);
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, Code::kPrecondition);
}

TEST_F(JournalFile, IsNotReadableByOthers) {
  auto journal = SqliteJournal::open(path_);
  ASSERT_TRUE(journal);
  struct stat info {};
  ASSERT_EQ(stat(path_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 077, 0u);
}

TEST_F(JournalFile, RecordThatCannotBeReadIsSetAside) {
  {
    auto journal = SqliteJournal::open(path_);
    ASSERT_TRUE((*journal)->append({{"type", "a"}}));
    ASSERT_TRUE((*journal)->append({{"type", "b"}}));
  }
  sqlite3* db = nullptr;
  ASSERT_EQ(sqlite3_open(path_.c_str(), &db), SQLITE_OK);
  ASSERT_EQ(sqlite3_exec(db, "UPDATE event SET body = '{\"type\":' WHERE seq = 1", nullptr, nullptr,
                         nullptr),
            SQLITE_OK);
  sqlite3_close(db);
  for (int opened = 0; opened < 2; ++opened) {
    auto journal = SqliteJournal::open(path_);
    ASSERT_TRUE(journal);
    auto records = all(**journal);
    ASSERT_EQ(records.size(), 1u);
    EXPECT_EQ(records[0]["type"], "b");
  }
}

TEST_F(JournalFile, FileThatIsNoDatabaseIsAnErrorThatNamesIt) {
  FILE* f = fopen(path_.c_str(), "w");
  fputs(
      "this is not a database, and it is long enough to be taken for a header of one by nobody at "
      "all ...........",
      f);
  fclose(f);
  auto journal = SqliteJournal::open(path_);
  ASSERT_FALSE(journal);
  EXPECT_NE(journal.error().message.find(path_), std::string::npos);
}

// --- the records themselves

Transaction full_transaction() {
  Transaction tx;
  tx.id = 12;
  tx.cause = "drain of hv1";
  VmPart vm;
  vm.vm = "v1";
  vm.jobs = {7, 8};
  vm.at = Where::kSource;
  vm.failure = Error{Code::kRefused, "no"};
  tx.vms.push_back(vm);
  tx.times.push_back({Phase::kPlan, 1, 2});
  return tx;
}

TEST(Record, TransactionComesBackEqual) {
  const Transaction tx = full_transaction();
  auto read = transaction_from_json(to_json(tx));
  ASSERT_TRUE(read) << read.error().message;
  EXPECT_EQ(to_json(*read), to_json(tx));
}

TEST(Record, EveryFieldOfAWrongTypeIsRefusedByName) {
  const json good = to_json(full_transaction());
  for (const auto& [key, value] : good.items()) {
    if (key == "payloads") continue;  // opaque
    json bad = good;
    bad[key] = value.is_object() ? json(5) : json::object({{"wrong", 1}});
    if (key == "policy" || key == "vms" || key == "times") bad[key] = 5;
    auto read = transaction_from_json(bad);
    ASSERT_FALSE(read) << key;
    EXPECT_NE(read.error().message.find(key), std::string::npos);
  }
  for (const auto& [key, value] : good["vms"][0].items()) {
    json bad = good;
    bad["vms"][0][key] = json::array({json::object()});
    EXPECT_FALSE(transaction_from_json(bad)) << key;
  }
}

TEST(Record, MissingFieldsOfOlderJournalsHaveDefaultsButIdAndKind) {
  const json good = to_json(full_transaction());
  for (const auto& [key, value] : good.items()) {
    json older = good;
    older.erase(key);
    EXPECT_EQ(transaction_from_json(older).has_value(), key != "id" && key != "kind") << key;
  }
  EXPECT_FALSE(transaction_from_json(json::array()));
  EXPECT_FALSE(event_from_json({{"type", "begun"}, {"tx", 1}}));
  EXPECT_FALSE(event_from_json({{"type", "no such"}, {"tx", 1}}));
  EXPECT_FALSE(event_from_json({{"tx", 1}}));
}

TEST(Record, NumbersOutOfRangeAreRefused) {
  json bad = to_json(full_transaction());
  bad["vms"][0]["from_job"] = -1;
  EXPECT_FALSE(transaction_from_json(bad));
  bad["vms"][0]["from_job"] = 1ll << 40;
  EXPECT_FALSE(transaction_from_json(bad));
}

}  // namespace
}  // namespace symvirt
