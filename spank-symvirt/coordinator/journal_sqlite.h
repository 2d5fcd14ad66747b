// The journal in SQLite: WAL, synchronous=FULL (an append that returned is on disk), one writer.
// Table `event`: seq, time, transaction, type for people with sqlite3(1); `body` is what counts.
// `aside` holds records that could not be read. Threads: one.
#pragma once

#include <memory>
#include <string>

#include "spank-symvirt/coordinator/interfaces.h"

struct sqlite3;

namespace symvirt {

class SqliteJournal : public Journal {
 public:
  // Creates the file (0600) when it is missing. kPrecondition when another process holds it: two
  // coordinators must not be.
  static Result<std::unique_ptr<SqliteJournal>> open(const std::string& path);
  ~SqliteJournal() override;

  Status append(const nlohmann::json& event) override;
  Status replay(const std::function<void(const nlohmann::json&)>& each) override;
  Result<std::int64_t> next_generation() override;

 private:
  explicit SqliteJournal(sqlite3* db, std::string path) : db_(db), path_(std::move(path)) {}
  Error error(const std::string& what) const;
  Status execute(const char* sql);

  sqlite3* db_;
  std::string path_;
};

}  // namespace symvirt
