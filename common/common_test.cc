#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

#include "common/line_buffer.h"
#include "common/log_limit.h"
#include "common/result.h"

namespace symvirt {
namespace {

TEST(Result, EveryCodeSurvivesItsName) {
  for (int i = 0; i <= static_cast<int>(Code::kInternal); ++i) {
    const Code code = static_cast<Code>(i);
    EXPECT_EQ(code_from_name(code_name(code)), code);
  }
  EXPECT_EQ(code_from_name("NO_SUCH_CODE"), std::nullopt);
}

TEST(Result, OnlyUnansweredCallsHaveAnUnknownEffect) {
  EXPECT_TRUE((Error{Code::kDeadline, ""}).unknown_effect());
  EXPECT_TRUE((Error{Code::kUnavailable, ""}).unknown_effect());
  EXPECT_FALSE((Error{Code::kRefused, ""}).unknown_effect());
}

TEST(LineBuffer, PutsLinesTogetherFromPieces) {
  LineBuffer lines;
  ASSERT_TRUE(lines.append("{\"a\""));
  EXPECT_EQ(lines.next(), std::nullopt);
  ASSERT_TRUE(lines.append(":1}\r\n{}\n{"));
  EXPECT_EQ(lines.next(), "{\"a\":1}");
  EXPECT_EQ(lines.next(), "{}");
  EXPECT_EQ(lines.next(), std::nullopt);
}

TEST(LineBuffer, RefusesALineWithoutEndAndRecovers) {
  LineBuffer lines(8);
  ASSERT_TRUE(lines.append("12345678"));
  const Status status = lines.append("9");
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, Code::kExhausted);
  ASSERT_TRUE(lines.append("ok\n"));
  EXPECT_EQ(lines.next(), "ok");
}

std::vector<std::string> logged;

TEST(LogLimit, SaysSomeThenHowManyMoreThereWere) {
  set_log_sink([](LogLevel, std::string_view message) { logged.emplace_back(message); });
  LogLimit limit("refusals", 2, std::chrono::milliseconds(50));
  for (int i = 0; i < 1000; ++i) limit.warning("no " + std::to_string(i));
  EXPECT_EQ(logged, (std::vector<std::string>{
                        "no 0", "no 1", "refusals: too many; more are not logged for a while"}));
  logged.clear();
  std::this_thread::sleep_for(std::chrono::milliseconds(60));
  limit.warning("again");
  EXPECT_EQ(logged, (std::vector<std::string>{"refusals: 998 more not logged", "again"}));
  set_log_sink(nullptr);
}

}  // namespace
}  // namespace symvirt
