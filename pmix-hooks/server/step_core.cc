#include "pmix-hooks/server/step_core.h"

#include <utility>

namespace symvirt::hooks {
namespace {

std::string epoch_text(std::uint64_t epoch) { return "epoch " + std::to_string(epoch); }

}  // namespace

Effects StepCore::rest_expected(std::uint64_t epoch) {
  Effects effects;
  // Known already (guestd was restarted and heard it from us), or older than what we know: nothing
  // new.
  if (phase_ != Phase::kNone || epoch < epoch_) return effects;
  phase_ = Phase::kQuiesce;
  epoch_ = epoch;
  round_ = 1;
  payloads_.clear();
  device_leaves_ = true;  // not known: then every process is ready for it
  std::vector<std::int32_t> all;
  for (const auto& [pid, member] : members_) all.push_back(pid);
  ask(effects, all, kEventQuiesce, payloads_);
  return effects;
}

// Who the request under way is still waiting for.
bool StepCore::waits_for(Phase phase, const Member& member) {
  switch (member.state) {
    case MemberState::kAsked:
    case MemberState::kHolding:
      return phase == Phase::kQuiesce;
    case MemberState::kResuming:
      return phase == Phase::kResume;
    case MemberState::kRunning:
    case MemberState::kAnswered:
    case MemberState::kHeld:
      return false;
  }
  return false;
}

void StepCore::ask(Effects& effects, const std::vector<std::int32_t>& pids, int code,
                   const Payloads& payloads) {
  if (pids.empty()) return;
  SendCommand send{code, {}, Command{epoch_, round_, payloads, device_leaves_}};
  for (std::int32_t pid : pids) {
    Member& member = members_.at(pid);
    member.state = code == kEventQuiesce ? MemberState::kAsked : MemberState::kResuming;
    send.recipients.push_back({member.rank, pid});
  }
  effects.emplace_back(std::move(send));
}

Effects StepCore::quiesce(RoundRequest request) {
  Effects effects;
  if (request.epoch < epoch_) {
    effects.emplace_back(
        Reply{std::move(request.id),
              Error{Code::kPrecondition, "step.quiesce refused: " + epoch_text(request.epoch) +
                                             ": " + epoch_text(epoch_) + " has been seen"}});
    return effects;
  }
  const bool same_epoch = phase_ == Phase::kQuiesce && epoch_ == request.epoch;
  if (same_epoch && request.round < round_) {
    effects.emplace_back(
        Reply{std::move(request.id),
              Error{Code::kPrecondition, "step.quiesce refused: round " +
                                             std::to_string(request.round) + " is over, round " +
                                             std::to_string(round_) + " has begun"}});
    return effects;
  }
  const bool same_round = same_epoch && round_ == request.round;
  if (pending_ && same_round) {
    pending_->ids.push_back(std::move(request.id));
    return effects;
  }
  if (pending_)
    effects = fail_pending(Code::kCancelled, "another request of guestd has taken its place");
  if (!same_round) left_.clear();
  phase_ = Phase::kQuiesce;
  epoch_ = request.epoch;
  round_ = request.round;
  payloads_ = std::move(request.payloads);
  device_leaves_ = request.device_leaves;
  pending_ = Pending{Phase::kQuiesce, {std::move(request.id)}};

  std::vector<std::int32_t> to_ask;
  for (auto& [pid, member] : members_) {
    if (!same_epoch) member.answered_round = 0;
    if (member.state == MemberState::kHeld || member.state == MemberState::kHolding) {
      // At rest since an earlier round. Stopping again is harmless, and finds out whether somebody
      // continued it.
      member.state = MemberState::kHolding;
      member.answered_round = round_;
      effects.emplace_back(StopProcess{pid});
    } else if (member.state != MemberState::kAnswered || member.answered_round < round_) {
      to_ask.push_back(pid);
    }
  }
  ask(effects, to_ask, kEventQuiesce, payloads_);
  finish_if_complete(effects);
  return effects;
}

Effects StepCore::resume(RoundRequest request) {
  Effects effects;
  if (phase_ == Phase::kNone || epoch_ != request.epoch) {
    // Not at rest (any more): what was asked for is so already. Others of the job may go on, and
    // say where they are now.
    if (epoch_ == request.epoch && !request.payloads.empty()) {
      remember_peers(request.payloads);
      for (auto& [pid, member] : members_) member.told = false;
      tell_peers(effects);
    }
    effects.emplace_back(Reply{std::move(request.id), RoundResult{}});
    return effects;
  }
  const bool first = phase_ == Phase::kQuiesce;
  if (pending_ && !first && round_ == request.round) {
    pending_->ids.push_back(std::move(request.id));
    return effects;
  }
  if (pending_) effects = fail_pending(Code::kCancelled, "the job is resumed");
  if (first || round_ != request.round) left_.clear();
  const bool next_round = !first && request.round > round_;
  phase_ = Phase::kResume;
  round_ = request.round;
  remember_peers(request.payloads);
  payloads_ = std::move(request.payloads);
  device_leaves_ = true;
  pending_ = Pending{Phase::kResume, {std::move(request.id)}};

  std::vector<std::int32_t> to_ask;
  for (auto& [pid, member] : members_) {
    if (member.state == MemberState::kHeld || member.state == MemberState::kHolding) {
      effects.emplace_back(ContinueProcess{pid});
    }
    // First round: everybody who has heard of the quiesce. A later one, or the same again after a
    // deadline: who wants more, or has not answered.
    const bool concerned =
        first ? member.state != MemberState::kRunning
              : (member.state == MemberState::kResuming || (next_round && member.more));
    if (first) {
      member.answered_round = 0;
      member.payload.clear();
      member.why.clear();
      member.more = member.spoke = member.told = false;
    }
    if (concerned) to_ask.push_back(pid);
  }
  ask(effects, to_ask, kEventResume, payloads_);
  finish_if_complete(effects);
  return effects;
}

Effects StepCore::registered(Payloads peers) {
  Effects effects;
  if (!peers_) peers_ = std::move(peers);
  tell_peers(effects);
  return effects;
}

void StepCore::remember_peers(const Payloads& payloads) {
  if (!peers_ || peers_epoch_ != epoch_) peers_.emplace();
  peers_epoch_ = epoch_;
  for (const auto& [process, payload] : payloads) {
    if (!payload.empty()) peers_->insert_or_assign(process, payload);
  }
}

// In the middle of a rest it is not known yet: told then, a process could open a device before it
// hears of the quiesce.
void StepCore::tell_peers(Effects& effects) {
  if (!peers_ || phase_ != Phase::kNone) return;
  SendCommand send{kEventPeers, {}, Command{peers_epoch_, 1, *peers_}};
  for (auto& [pid, member] : members_) {
    if (!member.spoke && !std::exchange(member.told, true))
      send.recipients.push_back({member.rank, pid});
  }
  if (!send.recipients.empty()) effects.emplace_back(std::move(send));
}

Effects StepCore::hello(std::uint32_t rank, std::int32_t pid) {
  Effects effects;
  members_[pid] = Member{rank};
  tell_peers(effects);
  if (phase_ == Phase::kQuiesce) ask(effects, {pid}, kEventQuiesce, payloads_);
  return effects;
}

void StepCore::immovable(std::int32_t pid, const std::string& why) {
  const auto found = members_.find(pid);
  if (found != members_.end()) found->second.immovable = why;
}

Effects StepCore::bye(std::int32_t pid) {
  Effects effects;
  const auto found = members_.find(pid);
  if (found == members_.end()) return effects;
  // It went to finalize before the stop reached it: it is nobody's to hold any more.
  const MemberState state = found->second.state;
  if (state == MemberState::kHolding || state == MemberState::kHeld)
    effects.emplace_back(ContinueProcess{pid});
  remove(pid);
  finish_if_complete(effects);
  return effects;
}

Effects StepCore::gone(std::int32_t pid) {
  Effects effects;
  remove(pid);
  finish_if_complete(effects);
  return effects;
}

void StepCore::remove(std::int32_t pid) {
  const auto found = members_.find(pid);
  if (found == members_.end()) return;
  if (phase_ != Phase::kNone) left_.push_back({found->second.rank, pid, "left", {}});
  members_.erase(found);
}

Effects StepCore::answer(const Answer& answer) {
  Effects effects;
  const auto found = members_.find(answer.pid);
  if (found == members_.end() || answer.epoch != epoch_ || answer.round != round_) return effects;
  Member& member = found->second;
  if (phase_ == Phase::kQuiesce && member.state == MemberState::kAsked &&
      answer.state != AnswerState::kDone) {
    const bool rest = answer.state == AnswerState::kRest;
    member.state = rest ? MemberState::kHolding : MemberState::kAnswered;
    if (rest) effects.emplace_back(StopProcess{answer.pid});
  } else if (phase_ == Phase::kResume && member.state == MemberState::kResuming &&
             answer.state != AnswerState::kRest) {
    member.more = answer.state == AnswerState::kMore;
    member.state = MemberState::kRunning;
  } else {
    return effects;  // of another phase, or the second answer to one question
  }
  member.answered_round = round_;
  member.spoke = member.spoke || !answer.payload.empty();
  member.payload = answer.payload;
  member.why = answer.why;
  finish_if_complete(effects);
  return effects;
}

Effects StepCore::stopped(std::int32_t pid) {
  Effects effects;
  const auto found = members_.find(pid);
  if (found == members_.end() || found->second.state != MemberState::kHolding) return effects;
  found->second.state = MemberState::kHeld;
  finish_if_complete(effects);
  return effects;
}

Effects StepCore::deadline(const std::string& id) {
  Effects effects;
  if (!pending_) return effects;
  for (const std::string& known : pending_->ids) {
    if (known == id) return fail_pending(Code::kDeadline, "no answer in time from " + missing());
  }
  return effects;
}

Effects StepCore::fail_pending(Code code, const std::string& message) {
  Effects effects;
  const Pending pending = std::move(*pending_);
  pending_.reset();
  const std::string what = pending.phase == Phase::kQuiesce ? "step.quiesce" : "step.resume";
  for (const std::string& id : pending.ids) {
    effects.emplace_back(
        Reply{id, Error{code, what + " failed: " + epoch_text(epoch_) + ": " + message}});
  }
  return effects;
}

void StepCore::finish_if_complete(Effects& effects) {
  bool waiting = false;
  bool more = false;
  for (const auto& [pid, member] : members_) {
    waiting = waiting || waits_for(phase_, member);
    more = more || member.more;
  }
  if (waiting || !pending_) return;
  const Pending pending = std::move(*pending_);
  pending_.reset();
  for (const std::string& id : pending.ids) effects.emplace_back(Reply{id, result()});
  if (phase_ == Phase::kResume && !more) {
    phase_ = Phase::kNone;
    round_ = 0;
    left_.clear();
    payloads_.clear();
    for (auto& [pid, member] : members_) {
      Member rested{member.rank};
      rested.spoke = member.spoke;
      rested.immovable = member.immovable;
      member = rested;
    }
    tell_peers(effects);
  }
}

RoundResult StepCore::result() const {
  RoundResult result{left_, held()};
  for (const auto& [pid, member] : members_) {
    if (member.answered_round != round_) continue;
    const char* state = "more";
    if (member.state == MemberState::kHeld || member.state == MemberState::kHolding) state = "rest";
    if (phase_ == Phase::kResume && !member.more) state = "done";
    result.answers.push_back({member.rank, pid, state, member.payload, member.why});
  }
  return result;
}

std::string StepCore::missing() const {
  constexpr int kNamed = 8;  // enough to look at; a job has thousands
  std::string text;
  int count = 0;
  for (const auto& [pid, member] : members_) {
    if (!waits_for(phase_, member)) continue;
    if (++count > kNamed) continue;
    if (!text.empty()) text += ", ";
    text += "rank " + std::to_string(member.rank) + " (pid " + std::to_string(pid) + ")";
    if (member.state == MemberState::kHolding) text += " which cannot be stopped";
    if (!member.why.empty()) text += ", which said last: " + member.why;
  }
  if (count > kNamed) text += " and " + std::to_string(count - kNamed) + " more";
  return text;
}

std::vector<MemberInfo> StepCore::members() const {
  std::vector<MemberInfo> all;
  for (const auto& [pid, member] : members_) all.push_back({member.rank, pid, member.immovable});
  return all;
}

std::optional<std::uint32_t> StepCore::rank_of(std::int32_t pid) const {
  const auto found = members_.find(pid);
  if (found == members_.end()) return std::nullopt;
  return found->second.rank;
}

std::uint32_t StepCore::held() const {
  std::uint32_t count = 0;
  for (const auto& [pid, member] : members_) count += member.state == MemberState::kHeld;
  return count;
}

std::optional<std::uint64_t> StepCore::epoch_at_rest() const {
  if (phase_ == Phase::kNone) return std::nullopt;
  return epoch_;
}

}  // namespace symvirt::hooks
