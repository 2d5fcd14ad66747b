// What slurmstepd and the ranks tell each other through PMIx events: docs/protocols.md section 4.
//
// Shared by libsymvirt_hooks.so and the server side in the SPANK plugin. Threads: plain values and
// pure functions.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "common/result.h"

namespace symvirt::hooks {

// Event codes. All below PMIX_EXTERNAL_ERR_BASE (-3000): PMIx treats everything above as its own.
inline constexpr int kEventQuiesce = -5310;
inline constexpr int kEventResume = -5311;
inline constexpr int kEventPeers = -5312;
inline constexpr int kEventHello = -5320;
inline constexpr int kEventAnswer = -5321;
inline constexpr int kEventBye = -5322;

inline constexpr char kMessageKey[] = "symvirt.msg";  // the one info of an event that is ours
inline constexpr std::size_t kMaxMessageBytes = 16u << 20;

// Opaque strings of the transport layer, by the process that said it: "JOB.STEP.RANK.PID". Nobody
// between two transports looks into either.
using Payloads = std::map<std::string, std::string>;
inline constexpr std::size_t kMaxPayloadKeyBytes = 64;

// A rank may be several processes (a task that is a script and starts two verbs programs at once):
// PMIx lets all of them be the same rank, and the pid says which one is meant.
struct Recipient {
  std::uint32_t rank = 0;
  std::int32_t pid = 0;
  bool operator==(const Recipient&) const = default;
};

enum class AnswerState {
  kMore,  // not at rest yet (or, at resume, not running yet): needs another round
  kRest,  // at rest: hold me
  kDone,  // resume only: running again
};

std::string_view state_name(AnswerState state);

// Server to rank: QUIESCE and RESUME. Also PEERS, which is not answered: what the job's processes
// said at the end of the last resume (maybe nothing), for one that had no part in it.
struct Command {
  std::uint64_t epoch = 0;
  std::uint32_t round = 0;
  Payloads payloads;
  bool device_leaves = true;  // quiesce: the VM's device may be taken away; not: only others' are
  bool operator==(const Command&) const = default;
};

// Rank to server: HELLO and BYE. HELLO comes again when a rank finds that it cannot be brought to
// rest.
struct Presence {
  std::int32_t pid = 0;
  std::string immovable;  // why not; or empty
};

// Rank to server, to each command.
struct Answer {
  std::uint64_t epoch = 0;
  std::uint32_t round = 0;
  std::int32_t pid = 0;
  AnswerState state = AnswerState::kMore;
  std::string payload;
  std::string why{};  // state more: what this process waits for; or empty
  bool operator==(const Answer&) const = default;
};

std::string encode_command(const Command& command);
std::string encode_answer(const Answer& answer);
std::string encode_presence(std::int32_t pid, const std::string& immovable = {});

// kInvalidArgument names the field that is missing, mistyped or out of range.
Result<Command> parse_command(std::string_view text);
Result<Answer> parse_answer(std::string_view text);
Result<Presence> parse_presence(std::string_view text);

}  // namespace symvirt::hooks
