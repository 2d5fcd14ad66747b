#include <gtest/gtest.h>

#include "common/line_buffer.h"
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

}  // namespace
}  // namespace symvirt
