// Logging interface. A library of its own would drag symbols into slurmstepd and the ranks, so this is only a sink:
// daemons install sd-journal (or stderr), the SPANK plugin installs slurm_info and friends, the rank library nothing.
//
// Threads: set_log_sink once at start, before threads; log() from any thread. A sink must not block for long.
// Never log credentials, keys or environment contents.
#pragma once

#include <string>
#include <string_view>

namespace symvirt {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

using LogSink = void (*)(LogLevel level, std::string_view message);

void set_log_sink(LogSink sink);          // nullptr: discard
void set_log_threshold(LogLevel lowest);  // default kInfo
void log(LogLevel level, std::string_view message);

inline void log_debug(std::string_view m) { log(LogLevel::kDebug, m); }
inline void log_info(std::string_view m) { log(LogLevel::kInfo, m); }
inline void log_warning(std::string_view m) { log(LogLevel::kWarning, m); }
inline void log_error(std::string_view m) { log(LogLevel::kError, m); }

// Sink for tools and for daemons in the foreground: "<3>message" lines on stderr when systemd reads it
// ($JOURNAL_STREAM set; sd-daemon(3) prefixes), "HH:MM:SS.mmm level message" otherwise.
void stderr_log_sink(LogLevel level, std::string_view message);

}  // namespace symvirt
