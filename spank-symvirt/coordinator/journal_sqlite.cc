#include "spank-symvirt/coordinator/journal_sqlite.h"

#include <fmt/format.h>
#include <sqlite3.h>
#include <sys/stat.h>

#include <vector>

#include "common/log.h"

namespace symvirt {
namespace {

struct Finalize {
  void operator()(sqlite3_stmt* s) const { sqlite3_finalize(s); }
};
using Statement = std::unique_ptr<sqlite3_stmt, Finalize>;

Statement prepare(sqlite3* db, const char* sql) {
  sqlite3_stmt* s = nullptr;
  if (sqlite3_prepare_v2(db, sql, -1, &s, nullptr) != SQLITE_OK) return nullptr;
  return Statement(s);
}

// EXCLUSIVE keeps the file locked for as long as the daemon lives.
constexpr const char* kSetUp =
    "PRAGMA locking_mode=EXCLUSIVE;"
    "PRAGMA journal_mode=WAL;"
    "PRAGMA synchronous=FULL;"
    "CREATE TABLE IF NOT EXISTS event (seq INTEGER PRIMARY KEY, time_ns INTEGER, tx INTEGER, type "
    "TEXT, body TEXT NOT NULL);"
    "CREATE TABLE IF NOT EXISTS aside (seq INTEGER PRIMARY KEY, body TEXT);"
    "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL);"
    "INSERT OR IGNORE INTO meta VALUES ('generation', 0);"
    "INSERT OR IGNORE INTO meta VALUES ('schema_version', 1);";

}  // namespace

Result<std::unique_ptr<SqliteJournal>> SqliteJournal::open(const std::string& path) {
  sqlite3* db = nullptr;
  const mode_t before = umask(0077);
  const int rc =
      sqlite3_open_v2(path.c_str(), &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, nullptr);
  umask(before);
  std::unique_ptr<SqliteJournal> journal(new SqliteJournal(db, path));
  if (rc != SQLITE_OK) return journal->error("cannot be opened");
  sqlite3_busy_timeout(db, 2000);
  if (sqlite3_exec(db, kSetUp, nullptr, nullptr, nullptr) != SQLITE_OK) {
    if (sqlite3_errcode(db) == SQLITE_BUSY) {
      return Error{Code::kPrecondition,
                   fmt::format("journal {}: another symvirtd holds it; stop that one first", path)};
    }
    return journal->error("cannot be set up");
  }
  return journal;
}

SqliteJournal::~SqliteJournal() { sqlite3_close(db_); }

Error SqliteJournal::error(const std::string& what) const {
  return Error{Code::kInternal,
               fmt::format("journal {}: {}: {}; check space and permissions", path_, what,
                           db_ != nullptr ? sqlite3_errmsg(db_) : "out of memory")};
}

Status SqliteJournal::execute(const char* sql) {
  if (sqlite3_exec(db_, sql, nullptr, nullptr, nullptr) == SQLITE_OK) return {};
  return error("cannot be written");
}

Status SqliteJournal::append(const nlohmann::json& event) {
  Statement s = prepare(db_, "INSERT INTO event (time_ns, tx, type, body) VALUES (?, ?, ?, ?)");
  if (!s) return error("cannot be written");
  const std::string type = event.value("type", "");
  const std::string body = event.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  sqlite3_bind_int64(s.get(), 1, event.value("time_ns", std::int64_t{0}));
  sqlite3_bind_int64(s.get(), 2, event.value("tx", std::int64_t{0}));
  sqlite3_bind_text(s.get(), 3, type.data(), static_cast<int>(type.size()), SQLITE_STATIC);
  sqlite3_bind_text(s.get(), 4, body.data(), static_cast<int>(body.size()), SQLITE_STATIC);
  if (sqlite3_step(s.get()) != SQLITE_DONE) return error("cannot be written");
  return {};
}

Status SqliteJournal::replay(const std::function<void(const nlohmann::json&)>& each) {
  std::vector<std::int64_t> unreadable;
  {
    Statement s = prepare(db_, "SELECT seq, body FROM event ORDER BY seq");
    if (!s) return error("cannot be read");
    int rc = SQLITE_ROW;
    while ((rc = sqlite3_step(s.get())) == SQLITE_ROW) {
      const auto* text = reinterpret_cast<const char*>(sqlite3_column_text(s.get(), 1));
      const std::string body(text != nullptr ? text : "",
                             static_cast<std::size_t>(sqlite3_column_bytes(s.get(), 1)));
      nlohmann::json record = nlohmann::json::parse(body, nullptr, false);
      if (record.is_discarded() || !record.is_object())
        unreadable.push_back(sqlite3_column_int64(s.get(), 0));
      else
        each(record);
    }
    if (rc != SQLITE_DONE) return error("cannot be read");
  }
  for (std::int64_t seq : unreadable) {
    log_error(fmt::format("journal {}: record {} is not JSON; moved to table aside", path_, seq));
    const std::string sql = fmt::format(
        "BEGIN; INSERT OR REPLACE INTO aside SELECT seq, body FROM event WHERE seq = {0}; DELETE "
        "FROM event "
        "WHERE seq = {0}; COMMIT;",
        seq);
    if (Status status = execute(sql.c_str()); !status) return status;
  }
  return {};
}

Result<std::int64_t> SqliteJournal::next_generation() {
  if (Status s = execute("UPDATE meta SET value = value + 1 WHERE name = 'generation'"); !s)
    return s.error();
  Statement s = prepare(db_, "SELECT value FROM meta WHERE name = 'generation'");
  if (!s || sqlite3_step(s.get()) != SQLITE_ROW) return error("has no generation");
  return sqlite3_column_int64(s.get(), 0);
}

}  // namespace symvirt
