#include "spank-symvirt/cli/exit_codes.h"

#include <gtest/gtest.h>

namespace symvirt {
namespace {

// Scripts depend on the numbers.
TEST(ExitCodes, OfErrors) {
  const std::pair<Code, int> table[] = {
      {Code::kInvalidArgument, 1}, {Code::kUnavailable, 2},  {Code::kDeadline, 2},
      {Code::kNotFound, 3},        {Code::kPrecondition, 3}, {Code::kPermission, 3},
      {Code::kExhausted, 3},       {Code::kRefused, 3},      {Code::kCancelled, 3},
      {Code::kAlreadyExists, 3},   {Code::kInternal, 5}};
  for (const auto& [code, exit] : table)
    EXPECT_EQ(static_cast<int>(exit_of(Error{code, "x"})), exit) << code_name(code);
}

TEST(ExitCodes, OfTransactions) {
  const std::pair<const char*, int> table[] = {{"done", 0},    {"partial", 4}, {"restored", 4},
                                               {"refused", 4}, {"failed", 5},  {"running", 6}};
  for (const auto& [outcome, exit] : table)
    EXPECT_EQ(static_cast<int>(exit_of(nlohmann::json{{"outcome", outcome}})), exit) << outcome;
  EXPECT_EQ(exit_of(nlohmann::json::object()), Exit::kFailed);
  EXPECT_EQ(exit_of(nlohmann::json("done")), Exit::kFailed);
}

TEST(ExitCodes, HelpNamesThemAll) {
  const std::string help = kExitCodeHelp;
  for (int code = 0; code <= static_cast<int>(Exit::kUnhealthy); ++code)
    EXPECT_NE(help.find("\n  " + std::to_string(code) + "  "), std::string::npos) << code;
}

}  // namespace
}  // namespace symvirt
