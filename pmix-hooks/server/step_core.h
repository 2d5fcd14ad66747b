// Who the members of a step on this node are, and where each stands in a quiesce or resume: pure
// state, no I/O.
//
// Inputs are what happened (a rank said HELLO, a process ended, guestd asks); outputs are effects
// the agent has to perform, and replies for guestd. docs/protocols.md sections 3 and 4 say what
// each message means.
//
//   running --QUIESCE sent--> asked --"more"--> answered      (next round: asked again)
//                               `---"rest"--> holding --all threads stopped--> held
//   any --RESUME sent (continued first)--> resuming --"more"--> resuming' --"done"--> running
//   any --BYE or process gone--> no member; counts as answer "left" in the round under way
//
// Threads: one (the step's agent). Times: the agent's; the core only gets told that a deadline
// passed.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "common/result.h"
#include "pmix-hooks/message.h"

namespace symvirt::hooks {

// Effects, to be performed in order.
struct SendCommand {
  int code = 0;  // kEventQuiesce, kEventResume or kEventPeers
  std::vector<Recipient> recipients;
  Command command;
  bool operator==(const SendCommand&) const = default;
};
struct StopProcess {  // SIGSTOP, then stopped(pid) once all its threads are
  std::int32_t pid = 0;
  bool operator==(const StopProcess&) const = default;
};
struct ContinueProcess {
  std::int32_t pid = 0;
  bool operator==(const ContinueProcess&) const = default;
};

struct RoundAnswer {
  std::uint32_t rank = 0;
  std::int32_t pid = 0;
  std::string state;  // more, rest, left; done at resume
  std::string payload;
  std::string why{};  // state more: what it waits for, as it says
  bool operator==(const RoundAnswer&) const = default;
};
struct RoundResult {
  std::vector<RoundAnswer> answers;
  std::uint32_t held = 0;
};
// The answer to a request of guestd, or why there is none.
struct Reply {
  std::string id;
  Result<RoundResult> result;
};
using Effect = std::variant<SendCommand, StopProcess, ContinueProcess, Reply>;
using Effects = std::vector<Effect>;

struct RoundRequest {
  std::string id;
  std::uint64_t epoch = 0;
  std::uint32_t round = 0;
  Payloads payloads;
  bool device_leaves = true;  // step.quiesce
};

struct MemberInfo {
  std::uint32_t rank = 0;
  std::int32_t pid = 0;
  std::string immovable;  // why it cannot be brought to rest; or empty
};

class StepCore {
 public:
  // --- guestd ---
  // The step is registered. peers: what the job's processes said at the end of the last resume,
  // before this step; members are told so.
  Effects registered(Payloads peers);
  // guestd said at registration that the job is at rest (or a transaction is bringing it there):
  // members that come from now on are quiesced at once, and those that are here already, too.
  Effects rest_expected(std::uint64_t epoch);
  Effects quiesce(RoundRequest request);
  Effects resume(RoundRequest request);
  // The deadline of the request under way has passed: it fails, naming who is missing. Members keep
  // their state.
  Effects deadline(const std::string& id);

  // --- ranks; the agent has checked that the process belongs to the step ---
  Effects hello(std::uint32_t rank, std::int32_t pid);
  // A member says why it cannot be brought to rest.
  void immovable(std::int32_t pid, const std::string& why);
  Effects bye(std::int32_t pid);
  Effects answer(const Answer& answer);

  // --- processes ---
  Effects stopped(std::int32_t pid);  // all threads of a process that was told to stop are stopped
  Effects gone(std::int32_t pid);

  std::vector<MemberInfo> members() const;
  std::optional<std::uint32_t> rank_of(std::int32_t pid) const;
  std::uint32_t held() const;
  // The epoch whose quiesce has begun and whose resume has not ended; for step.register.
  std::optional<std::uint64_t> epoch_at_rest() const;

 private:
  enum class MemberState { kRunning, kAsked, kAnswered, kHolding, kHeld, kResuming };
  struct Member {
    std::uint32_t rank = 0;
    MemberState state = MemberState::kRunning;
    std::uint32_t answered_round = 0;  // last round (of the phase we are in) it gave its answer for
    std::string payload;               // of that answer
    std::string why;                   // the same
    std::string immovable;
    bool more = false;   // resume: wants another round
    bool spoke = false;  // resume: had something to say, so it hears of its peers in the rounds
    bool told = false;   // what peers said
  };
  enum class Phase { kNone, kQuiesce, kResume };
  // The request under way; several ids when guestd repeated it.
  struct Pending {
    Phase phase = Phase::kNone;
    std::vector<std::string> ids;
  };

  static bool waits_for(Phase phase, const Member& member);
  Effects fail_pending(Code code, const std::string& message);
  void ask(Effects& effects, const std::vector<std::int32_t>& pids, int code,
           const Payloads& payloads);
  void remove(std::int32_t pid);
  void remember_peers(const Payloads& payloads);
  void tell_peers(Effects& effects);
  void finish_if_complete(Effects& effects);
  RoundResult result() const;
  std::string missing() const;

  std::map<std::int32_t, Member> members_;  // by pid: two clients of one rank are two members
  Phase phase_ = Phase::kNone;
  std::uint64_t epoch_ = 0;
  std::uint32_t round_ = 0;
  // Of the round under way, for members that come late.
  Payloads payloads_;
  // What each process of the job said last in the last resume; nothing before guestd has answered
  // the registration.
  std::optional<Payloads> peers_;
  std::uint64_t peers_epoch_ = 0;
  bool device_leaves_ = true;
  std::vector<RoundAnswer> left_;
  std::optional<Pending> pending_;
};

}  // namespace symvirt::hooks
