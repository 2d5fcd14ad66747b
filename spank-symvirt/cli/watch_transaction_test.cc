#include "spank-symvirt/cli/watch_transaction.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace symvirt {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::Not;

json tx_in(const std::string& phase, std::vector<std::string> phases,
           const std::string& outcome = "running", const std::string& parked = "") {
  json times = json::array();
  for (const std::string& p : phases) times.push_back({{"name", p}, {"begin_s", 1.0}});
  return {
      {"schema_version", 1}, {"id", 12},           {"kind", "evacuate"},
      {"phase", phase},      {"outcome", outcome}, {"phases", times},
      {"parked", parked},    {"begun_s", 1000.0},  {"vms", {{{"vm", "v1"}, {"step", "working"}}}}};
}

struct FakeServer {
  std::vector<Result<json>> answers;  // the last one repeats
  std::size_t asked = 0;
  double now = 1000;
  bool stopped = false;
  std::string out, err;

  WatchWorld world() {
    WatchWorld w;
    w.show = [this](std::int64_t id) -> Result<json> {
      EXPECT_EQ(id, 12);
      return answers[std::min(asked++, answers.size() - 1)];
    };
    w.sleep = [this] { now += 0.25; };
    w.stop = [this] { return stopped; };
    w.now_s = [this] { return now; };
    w.out = [this](const std::string& text) { out += text; };
    w.err = [this](const std::string& text) { err += text + "\n"; };
    return w;
  }
};

const json kFirst = tx_in("plan", {"plan"});
const Result<json> kDone = tx_in("end", {"plan", "acquire", "migrate"}, "done");
const Error kAway{Code::kUnavailable, "ctl:6820: Connection refused"};

std::size_t count(const std::string& text, const std::string& what) {
  std::size_t n = 0;
  for (std::size_t pos = 0; (pos = text.find(what, pos)) != std::string::npos; pos += what.size())
    ++n;
  return n;
}

TEST(Watch, PlainLinesOneAPhaseAndTheTable) {
  FakeServer s;
  s.answers = {kFirst, kFirst, tx_in("acquire", {"plan", "acquire"}, "running", "no free host"),
               tx_in("acquire", {"plan", "acquire"}, "running", "no free host"), kDone};
  EXPECT_EQ(watch_transaction(kFirst, {}, s.world()), Exit::kDone);
  EXPECT_EQ(count(s.out, " plan: v1\n"), 1u) << s.out;
  EXPECT_EQ(count(s.out, " acquire: v1\n"), 1u) << s.out;
  EXPECT_EQ(count(s.out, "waits: no free host\n"), 1u) << s.out;
  // Missed between two looks, told all the same.
  EXPECT_THAT(s.out, HasSubstr(" migrate"));
  EXPECT_THAT(s.out, HasSubstr("evacuate 12: done"));
  EXPECT_THAT(s.out, Not(HasSubstr("\r")));
  EXPECT_EQ(s.err, "");
}

TEST(Watch, OneRefreshingLineOnATerminal) {
  FakeServer s;
  s.answers = {kFirst, kDone};
  WatchOptions options;
  options.terminal_width = 80;
  EXPECT_EQ(watch_transaction(kFirst, options, s.world()), Exit::kDone);
  EXPECT_THAT(s.out, HasSubstr("\revacuate 12 [0 s] plan: v1\033[K"));
  const std::string before_table = s.out.substr(0, s.out.find("\r\033[K\nevacuate 12: done"));
  EXPECT_THAT(before_table, Not(HasSubstr("\n")));
  EXPECT_LT(before_table.size(), s.out.size());
}

TEST(Watch, JsonHasAnObjectALineForEachPhase) {
  FakeServer s;
  s.answers = {kFirst, tx_in("acquire", {"plan", "acquire"}), kDone};
  WatchOptions options;
  options.json = true;
  EXPECT_EQ(watch_transaction(kFirst, options, s.world()), Exit::kDone);
  std::stringstream lines(s.out);
  std::vector<std::string> phases;
  for (std::string line; std::getline(lines, line);) {
    const json j = json::parse(line, nullptr, false);
    ASSERT_TRUE(j.is_object()) << line;
    EXPECT_EQ(j["schema_version"], 1);
    phases.push_back(j["phase"]);
  }
  EXPECT_EQ(phases, (std::vector<std::string>{"plan", "acquire", "end"}));
}

TEST(Watch, OutcomeIsTheExitCode) {
  for (const auto& [outcome, exit] :
       {std::pair{"restored", Exit::kNotAsAsked}, std::pair{"failed", Exit::kFailed}}) {
    FakeServer s;
    s.answers = {tx_in("end", {}, outcome)};
    EXPECT_EQ(watch_transaction(kFirst, {}, s.world()), exit);
  }
}

TEST(Watch, ARestartOfTheDaemonIsWaitedFor) {
  FakeServer s;
  s.answers = {kAway, kAway, Error{Code::kDeadline, "no answer"}, kFirst, kDone};
  EXPECT_EQ(watch_transaction(kFirst, {}, s.world()), Exit::kDone);
  EXPECT_EQ(count(s.err, "Connection refused"), 1u);
  EXPECT_THAT(s.err, HasSubstr("answers again"));
}

TEST(Watch, ADaemonThatStaysAwayIsGivenUp) {
  FakeServer s;
  s.answers = {kAway};
  EXPECT_EQ(watch_transaction(kFirst, {}, s.world()), Exit::kUnreachable);
  EXPECT_NEAR(s.now, 1120, 2);
}

TEST(Watch, InterruptSaysThatTheTransactionGoesOn) {
  FakeServer s;
  s.answers = {kFirst};
  s.stopped = true;
  EXPECT_EQ(watch_transaction(kFirst, {}, s.world()), Exit::kNotWatched);
  EXPECT_EQ(s.asked, 0u);
  EXPECT_THAT(s.err, HasSubstr("goes on"));
  EXPECT_THAT(s.err, HasSubstr("symvirtctl cancel 12"));
}

TEST(Watch, TimeoutEndsTheWatching) {
  FakeServer s;
  s.answers = {kFirst};
  WatchOptions options;
  options.timeout_s = 30;
  EXPECT_EQ(watch_transaction(kFirst, options, s.world()), Exit::kNotWatched);
  EXPECT_NEAR(s.now, 1030, 1);
}

TEST(Watch, AForgottenTransactionEndsIt) {
  FakeServer s;
  s.answers = {Error{Code::kNotFound, "transaction 12: not known"}};
  EXPECT_EQ(watch_transaction(kFirst, {}, s.world()), Exit::kRefused);
  EXPECT_THAT(s.err, HasSubstr("not known"));
}

}  // namespace
}  // namespace symvirt
