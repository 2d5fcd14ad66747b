#include "pmix-hooks/ranks/verbs/verbs_transport.h"

#include <algorithm>

namespace symvirt::hooks::verbs {
namespace {

// A process without verbs says nothing; one whose text cannot be read is taken for one.
Statements read(const Payloads& payloads) {
  Statements all;
  for (const auto& [process, text] : payloads) {
    if (text.empty()) continue;
    if (auto statement = parse_statement(text)) all.emplace(process, std::move(*statement));
  }
  return all;
}

bool everyone_ok(const Statements& all, std::uint32_t stage) {
  return std::all_of(all.begin(), all.end(), [stage](const auto& entry) {
    return entry.second.stage > stage || (entry.second.stage == stage && entry.second.ok);
  });
}

bool everyone_reached(const Statements& all, std::uint32_t stage) {
  return std::all_of(all.begin(), all.end(),
                     [stage](const auto& entry) { return entry.second.stage >= stage; });
}

// Whether work was taken back and not sorted out, or one end of a connection is new and the other
// not.
bool is_half_rebuilt(const Statements& all) {
  const Directory directory(all);
  const auto is_half = [&](const QpStatement& qp) {
    if ((qp.flags & kQpTakenBack) != 0) return true;
    if ((qp.flags & kQpConnected) == 0) return false;
    const auto peer = directory.find(qp.peer, qp.peer_number, qp.virtual_number);
    return peer && peer->qp->peer_number == qp.virtual_number &&
           (peer->qp->flags & kQpConnected) != 0 &&
           (peer->qp->flags & kQpRebuild) != (qp.flags & kQpRebuild);
  };
  for (const auto& [rank, statement] : all) {
    for (const PortStatement& port : statement.ports) {
      if (std::any_of(port.qps.begin(), port.qps.end(), is_half)) return true;
    }
  }
  return false;
}

}  // namespace

TransportAnswer VerbsTransport::say(Stage stage, bool ok) {
  stage_ = stage;
  ok_ = ok;
  Statement statement = describe(*layer_, stage, ok);
  statement.stays = stays_;
  return {true, encode(statement), ok ? std::string() : what_is_waited_for(*layer_, last_)};
}

TransportAnswer VerbsTransport::wait_for_arrivals(Stage stage) {
  TransportAnswer answer = say(stage, true);
  answer.why = what_is_waited_for(*layer_, last_);
  return answer;
}

TransportAnswer VerbsTransport::quiesce(std::uint64_t, std::uint32_t round,
                                        const Payloads& payloads, bool device_leaves) {
  // In whatever round: who joins in the middle of a quiesce is asked in the one that is being held.
  if (stage_ == kRunning) layer_ = &find_layer_();
  if (layer_ == nullptr) return {};
  if (round == 1) last_.clear();
  const Statements all = read(payloads);
  for (const auto& [rank, statement] : all) last_.insert_or_assign(rank, statement);
  if (stage_ == kRunning || stage_ == kConnected) {
    stays_ = !device_leaves;
  } else if (device_leaves) {
    if (stage_ == kAtRest && stays_) return close_down();
    stays_ = false;
  }
  return proceed(all);
}

TransportAnswer VerbsTransport::proceed(const Statements& all) {
  switch (stage_) {
    case kRunning:
      return stop_sends();
    case kSendsStopped:
      return everyone_reached(all, kSendsStopped) ? stop_receives(all) : say(stage_, ok_);
    case kReceivesStopped:
      return everyone_ok(all, kReceivesStopped) ? take_back(all) : look(all);
    case kTakenBack:
      if (!ok_) return take_back(all);
      return everyone_ok(all, kTakenBack) ? resolve(all) : say(kTakenBack, true);
    case kAtRest:
      return {};
    case kConnected:
      // Others may run already, and send to us. Our own sends are still held.
      if (ok_) return stop_sends();
      break;
    case kReopened:
    case kSettled:
      break;
  }
  // Asked to rest in the middle of a resume: whatever is there is closed.
  return close_down();
}

// Round 1. From here on posted sends are only written down.
TransportAnswer VerbsTransport::stop_sends() {
  stage_ = kRunning;
  ok_ = false;
  // Objects may still come and go: nothing is said of them.
  if (!layer_->control.close(static_cast<int>(patience_.control.count())))
    return {true, encode(Statement{}),
            "a verbs call that creates, changes or destroys something "
            "has not returned"};
  // Nothing to say; and none is opened before the resume.
  if (!layer_->ever_opened) {
    stage_ = kAtRest;
    return {};
  }
  if (!stays_) {
    if (std::string why = protected_memory(*layer_); !why.empty())
      return {true, encode(Statement{}), std::move(why)};
  }
  layer_->change_state(kCarried | kSendsHeld | kPollsHeld, 0);
  begin_move(*layer_);
  return say(kSendsStopped, drain_sends(*layer_, patience_));
}

// Round 2. No process sends any more. If all that was sent has been executed, and has come here,
// this is rest. If not, somebody's sends do not get on; what they wait for can be said when nobody
// posts receives any more, which is so in the next round.
TransportAnswer VerbsTransport::stop_receives(const Statements& all) {
  layer_->change_state(kRecvsHeld, 0);
  if (everyone_ok(all, kSendsStopped)) {
    if (await_arrivals(*layer_, last_, patience_)) return rest();
    return wait_for_arrivals(kSendsStopped);
  }
  static_cast<void>(drain_sends(*layer_, {.drain = {}}));
  return say(kReceivesStopped, false);
}

// Round 3. To take sends back is to stop the connection, and what the peer has under way on it
// would be lost: so nobody does before everybody's work is done or waits for a receiver.
TransportAnswer VerbsTransport::look(const Statements& all) {
  return say(kReceivesStopped, find_stuck(*layer_, all, patience_));
}

// Round 4. Both ends stop what one of them could not send.
TransportAnswer VerbsTransport::take_back(const Statements& all) {
  return say(kTakenBack, take_back_stuck(*layer_, all, patience_));
}

// Round 5. Nothing is executed any more in the whole job, so the counts are final.
TransportAnswer VerbsTransport::resolve(const Statements& all) {
  resolve_taken_back(*layer_, all);
  return await_arrivals(*layer_, last_, patience_) ? rest() : wait_for_arrivals(kTakenBack);
}

// After a quiesce that was given up between taking back and rest: as rounds 4 and 5 of that, in
// which not everybody may have been.
TransportAnswer VerbsTransport::settle(const Statements& all) {
  return say(kSettled, take_back_half_rebuilt(*layer_, all, patience_));
}

TransportAnswer VerbsTransport::rest() {
  if (!stays_) return close_down();
  keep_devices(*layer_, last_);
  stage_ = kAtRest;
  return {};
}

TransportAnswer VerbsTransport::close_down() {
  layer_->change_state(kSendsHeld | kRecvsHeld | kPollsHeld, 0);
  tear_down(*layer_);
  stays_ = false;
  stage_ = kAtRest;
  return {};
}

void VerbsTransport::peers(const Payloads& payloads) {
  Statements all = read(payloads);
  if (!all.empty() && stage_ == kRunning) adopt(find_layer_(), std::move(all), patience_);
}

TransportAnswer VerbsTransport::resume(std::uint64_t epoch, std::uint32_t,
                                       const Payloads& payloads) {
  if (layer_ == nullptr || (stage_ == kRunning && !layer_->control.closed())) return {};
  if (!layer_->ever_opened) {
    stage_ = kRunning;
    layer_->control.open();
    return {};
  }
  const Statements all = read(payloads);
  if (stage_ < kReopened) {
    layer_->change_state(kCarried | kSendsHeld | kRecvsHeld | kPollsHeld, 0);
    return say(kReopened, reopen(*layer_, patience_));
  }
  if (stage_ == kReopened) {
    if (!ok_) return say(kReopened, reopen(*layer_, patience_));
    if (!everyone_ok(all, kReopened)) return say(kReopened, true);
    if (is_half_rebuilt(all)) return settle(all);
    return say(kConnected, connect(*layer_, all, epoch));
  }
  if (stage_ == kSettled) {
    if (!ok_) return settle(all);
    if (!everyone_ok(all, kSettled)) return say(kSettled, true);
    resolve_taken_back(*layer_, all);
    return say(kConnected, connect(*layer_, all, epoch));
  }
  if (!ok_) return say(kConnected, connect(*layer_, all, epoch));
  if (!everyone_ok(all, kConnected)) return say(kConnected, true);
  if (!run_again(*layer_, patience_)) return say(kConnected, true);
  stage_ = kRunning;
  return {};
}

}  // namespace symvirt::hooks::verbs
