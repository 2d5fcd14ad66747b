#include "node-helper/protocol/operation_log.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <thread>

namespace symvirt {
namespace {

using nlohmann::json;
using std::chrono::milliseconds;

Deadline soon() { return Deadline::after(milliseconds(2000)); }

TEST(OperationLog, ASuccessIsRecordedAndAFailureIsNot) {
  OperationLog log;
  int runs = 0;
  auto work = [&](const OperationLog::Progress&) -> Result<json> {
    if (++runs == 1) return Error{Code::kRefused, "no"};
    return json{{"n", runs}};
  };
  EXPECT_FALSE(log.run("a", soon(), {}, work));
  EXPECT_EQ((*log.run("a", soon(), {}, work))["n"], 2);
  EXPECT_EQ((*log.run("a", soon(), {}, work))["n"], 2);
  EXPECT_EQ((*log.run("", soon(), {}, work))["n"], 3) << "without a name there is nothing to join";
}

TEST(OperationLog, SecondCallersJoinAndHearProgress) {
  OperationLog log;
  std::promise<void> begun, go;
  auto go_future = go.get_future();
  std::atomic<int> heard_first{0}, heard_second{0}, runs{0};
  auto work = [&](const OperationLog::Progress& tell) -> Result<json> {
    ++runs;
    tell({{"n", 1}});
    begun.set_value();
    go_future.wait();
    tell({{"n", 2}});
    return json::object();
  };
  auto first = std::async(std::launch::async, [&] {
    return log.run(
        "a", soon(), [&](const json&) { ++heard_first; }, work);
  });
  begun.get_future().wait();
  EXPECT_EQ(log.run("a", Deadline::after(milliseconds(20)), {}, work).error().code,
            Code::kDeadline);
  auto second = std::async(std::launch::async, [&] {
    return log.run(
        "a", soon(), [&](const json&) { ++heard_second; }, work);
  });
  std::this_thread::sleep_for(milliseconds(50));
  go.set_value();
  EXPECT_TRUE(first.get());
  EXPECT_TRUE(second.get());
  EXPECT_EQ(runs, 1);
  EXPECT_EQ(heard_first, 2);
  EXPECT_EQ(heard_second, 1);
}

// A caller who does not read what he is told must not keep the others waiting.
TEST(OperationLog, AListenerThatBlocksHoldsNoLock) {
  OperationLog log;
  std::promise<void> begun, told, go;
  std::atomic<bool> is_told{false}, over{false};
  auto go_future = go.get_future().share();
  auto work = [&](const OperationLog::Progress& tell) -> Result<json> {
    begun.set_value();
    while (!over) {
      tell(json::object());
      std::this_thread::sleep_for(milliseconds(1));
    }
    return json::object();
  };
  auto first = std::async(std::launch::async, [&] { return log.run("a", soon(), {}, work); });
  begun.get_future().wait();
  auto blocked = std::async(std::launch::async, [&] {
    return log.run(
        "a", Deadline::after(std::chrono::seconds(60)),
        [&](const json&) {
          if (!is_told.exchange(true)) told.set_value();
          go_future.wait();
        },
        work);
  });
  told.get_future().wait();
  auto others = std::async(std::launch::async, [&] {
    EXPECT_EQ(log.run("a", Deadline::after(milliseconds(20)), {}, work).error().code,
              Code::kDeadline);
    EXPECT_TRUE(log.run("b", soon(), {}, [](const auto&) -> Result<json> { return json(); }));
  });
  EXPECT_EQ(others.wait_for(std::chrono::seconds(10)), std::future_status::ready);
  over = true;
  go.set_value();
  EXPECT_TRUE(first.get());
  EXPECT_TRUE(blocked.get());
}

// What a listener refers to is on its caller's stack.
TEST(OperationLog, WhoLeavesIsNotToldAnyMore) {
  OperationLog log;
  std::promise<void> begun, told, go;
  auto go_future = go.get_future().share();
  auto work = [&](const OperationLog::Progress& tell) -> Result<json> {
    begun.set_value();
    while (go_future.wait_for(milliseconds(1)) != std::future_status::ready) tell(json::object());
    return json::object();
  };
  auto first = std::async(std::launch::async, [&] { return log.run("a", soon(), {}, work); });
  begun.get_future().wait();
  for (int i = 0; i < 20; ++i) {
    std::atomic<bool> here{true}, told_after{false};
    auto joined = log.run(
        "a", Deadline::after(milliseconds(5)),
        [&](const json&) {
          std::this_thread::sleep_for(milliseconds(3));
          if (!here) told_after = true;
        },
        work);
    here = false;
    EXPECT_EQ(joined.error().code, Code::kDeadline);
    std::this_thread::sleep_for(milliseconds(4));
    EXPECT_FALSE(told_after);
  }
  go.set_value();
  EXPECT_TRUE(first.get());
}

TEST(OperationLog, KeepsTheLast) {
  OperationLog log(2);
  int runs = 0;
  auto work = [&](const OperationLog::Progress&) -> Result<json> { return json(++runs); };
  for (const char* op : {"a", "b", "c"}) (void)log.run(op, soon(), {}, work);
  (void)log.run("c", soon(), {}, work);
  (void)log.run("b", soon(), {}, work);
  EXPECT_EQ(runs, 3);
  (void)log.run("a", soon(), {}, work);
  EXPECT_EQ(runs, 4);
}

}  // namespace
}  // namespace symvirt
