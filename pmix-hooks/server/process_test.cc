#include "pmix-hooks/server/process.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <thread>

namespace symvirt::hooks {
namespace {

using namespace std::chrono_literals;

// A child with one thread besides its main one, until killed.
struct Child {
  Child() : pid(fork()) {
    if (pid == 0) {
      std::thread([] { pause(); }).detach();
      while (true) pause();
    }
  }
  ~Child() {
    kill(pid, SIGKILL);
    waitpid(pid, nullptr, 0);
  }
  pid_t pid;
};

bool becomes(const Process& process, StopProgress wanted) {
  for (int i = 0; i < 1000; ++i) {
    if (process.stop_progress() == wanted) return true;
    std::this_thread::sleep_for(1ms);
  }
  return false;
}

TEST(Process, IsStoppedWhenAllItsThreadsAre) {
  const Child child;
  const Result<Process> process = Process::open(child.pid);
  ASSERT_TRUE(process);
  EXPECT_EQ(process->stop_progress(), StopProgress::kRunning);
  ASSERT_TRUE(process->signal(SIGSTOP));
  EXPECT_TRUE(becomes(*process, StopProgress::kStopped));
  ASSERT_TRUE(process->signal(SIGCONT));
  EXPECT_TRUE(becomes(*process, StopProgress::kRunning));
}

TEST(Process, EndIsSeenThroughTheDescriptor) {
  const Child child;
  const Result<Process> process = Process::open(child.pid);
  ASSERT_TRUE(process);
  pollfd fd{process->fd(), POLLIN, 0};
  EXPECT_EQ(poll(&fd, 1, 0), 0);
  kill(child.pid, SIGKILL);
  EXPECT_EQ(poll(&fd, 1, 5000), 1);
  EXPECT_TRUE(becomes(*process, StopProgress::kGone));
}

TEST(Process, BelongsToItsAncestorsAndItsUser) {
  const Child child;
  const Result<Process> process = Process::open(child.pid);
  ASSERT_TRUE(process);
  EXPECT_TRUE(process->belongs_to(getpid(), getuid()));
  EXPECT_FALSE(process->belongs_to(getpid(), getuid() + 1));
  const Child other;
  EXPECT_FALSE(process->belongs_to(other.pid, getuid()));
}

TEST(Process, ThatDoesNotExistIsNotFound) {
  pid_t pid = 0;
  {
    const Child child;
    pid = child.pid;
  }
  const Result<Process> process = Process::open(pid);
  ASSERT_FALSE(process);
  EXPECT_EQ(process.error().code, Code::kNotFound);
}

}  // namespace
}  // namespace symvirt::hooks
