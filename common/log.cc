#include "common/log.h"

#include <sys/time.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <ctime>

namespace symvirt {
namespace {

std::atomic<LogSink> g_sink{nullptr};
std::atomic<LogLevel> g_threshold{LogLevel::kInfo};

struct LevelText {
  const char* prefix;  // sd-daemon(3)
  const char* name;
};

LevelText level_text(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return {"<7>", "debug"};
    case LogLevel::kInfo:
      return {"<6>", "info"};
    case LogLevel::kWarning:
      return {"<4>", "warning"};
    case LogLevel::kError:
      return {"<3>", "error"};
  }
  return {"<3>", "error"};
}

}  // namespace

void set_log_sink(LogSink sink) { g_sink.store(sink); }
void set_log_threshold(LogLevel lowest) { g_threshold.store(lowest); }

void log(LogLevel level, std::string_view message) {
  if (level < g_threshold.load(std::memory_order_relaxed)) return;
  if (LogSink sink = g_sink.load(std::memory_order_acquire)) sink(level, message);
}

void stderr_log_sink(LogLevel level, std::string_view message) {
  const LevelText text = level_text(level);
  static const bool to_journal = std::getenv("JOURNAL_STREAM") != nullptr;
  if (to_journal) {
    std::fprintf(stderr, "%s%.*s\n", text.prefix, static_cast<int>(message.size()), message.data());
    return;
  }
  timeval now{};
  gettimeofday(&now, nullptr);
  tm local{};
  localtime_r(&now.tv_sec, &local);
  std::fprintf(stderr, "%02d:%02d:%02d.%03ld %-7s %.*s\n", local.tm_hour, local.tm_min, local.tm_sec,
               static_cast<long>(now.tv_usec / 1000), text.name, static_cast<int>(message.size()),
               message.data());
}

}  // namespace symvirt
