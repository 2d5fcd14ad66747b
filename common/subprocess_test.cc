#include "common/subprocess.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

namespace symvirt {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

Deadline soon() { return Deadline::after(milliseconds(20'000)); }

TEST(Program, ExitCodeAndOutput) {
  auto done = run_program({"sh", "-c", "echo out; echo err >&2; exit 3"}, soon());
  ASSERT_TRUE(done) << done.error().message;
  EXPECT_EQ(done->exit_code, 3);
  EXPECT_THAT(done->output, HasSubstr("out\n"));
  EXPECT_THAT(done->output, HasSubstr("err\n"));
  auto killed = run_program({"sh", "-c", "kill -9 $$"}, soon());
  ASSERT_TRUE(killed);
  EXPECT_EQ(killed->exit_code, 128 + 9);
  EXPECT_EQ(run_program({"/no/such/program"}, soon()).error().code, Code::kNotFound);
}

TEST(Program, WordsAreNotForAShell) {
  auto done = run_program({"printf", "%s", "$HOME; `id` 'x'"}, soon());
  ASSERT_TRUE(done);
  EXPECT_EQ(done->output, "$HOME; `id` 'x'");
}

TEST(Program, IsOverAtItsDeadlineWithItsChildren) {
  const auto begin = std::chrono::steady_clock::now();
  auto hung =
      run_program({"sh", "-c", "sleep 100 & sleep 100"}, Deadline::after(milliseconds(300)));
  ASSERT_FALSE(hung);
  EXPECT_EQ(hung.error().code, Code::kDeadline);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(5));
}

TEST(Program, AFloodIsCutAndDoesNotHang) {
  auto done = run_program({"sh", "-c", "head -c 1000000 /dev/zero"}, soon());
  ASSERT_TRUE(done);
  EXPECT_EQ(done->output.size(), kMostOutput);
}

TEST(Program, SaysWhyInOneLine) {
  auto failed = run_program({"sh", "-c", "echo no power; echo supply; exit 1"}, soon());
  ASSERT_TRUE(failed);
  EXPECT_FALSE(failed->ok());
  EXPECT_EQ(failed->why(), "no power supply");
  EXPECT_EQ(run_program({"sh", "-c", "exit 4"}, soon())->why(), "exit code 4");
}

TEST(Program, BlockedSignalsAreNotInherited) {
  sigset_t term, before;
  sigemptyset(&term);
  sigaddset(&term, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &term, &before);
  auto done = run_program({"sh", "-c", "kill -TERM $$; exit 0"}, soon());
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  ASSERT_TRUE(done);
  EXPECT_EQ(done->exit_code, 128 + SIGTERM);
}

}  // namespace
}  // namespace symvirt
