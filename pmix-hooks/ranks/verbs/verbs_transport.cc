#include "pmix-hooks/ranks/verbs/verbs_transport.h"

#include <algorithm>

namespace symvirt::hooks::verbs {
namespace {

// A process without verbs says nothing; one whose text cannot be read is taken for one.
Statements read(const Payloads& payloads) {
  Statements all;
  for (const auto& [rank, text] : payloads) {
    if (text.empty()) continue;
    if (auto statement = parse_statement(text)) all.emplace(rank, std::move(*statement));
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

}  // namespace

TransportAnswer VerbsTransport::say(Stage stage, bool ok) {
  stage_ = stage;
  ok_ = ok;
  return {true, encode(describe(*layer_, stage, ok))};
}

TransportAnswer VerbsTransport::quiesce(std::uint64_t, std::uint32_t round,
                                        const Payloads& payloads) {
  if (round == 1 && stage_ == kRunning) layer_ = &find_layer_();
  if (layer_ == nullptr || !layer_->ever_opened) return {};
  const Statements all = read(payloads);
  switch (stage_) {
    case kRunning:
      return stop_sends();
    case kSendsStopped:
      return everyone_reached(all, kSendsStopped) ? stop_receives(all) : say(stage_, ok_);
    case kReceivesStopped:
      return everyone_ok(all, kReceivesStopped) ? take_back() : look_again();
    case kTakenBack:
      return everyone_ok(all, kTakenBack) ? count(all) : say(stage_, ok_);
    case kCounted:
      return everyone_reached(all, kCounted) ? resolve(all) : say(stage_, ok_);
    case kAtRest:
      return {};
    case kReopened:
    case kConnected:
      break;
  }
  // Asked to rest in the middle of a resume: whatever is there is closed.
  return rest();
}

// Round 1. From here on posted sends are only written down.
TransportAnswer VerbsTransport::stop_sends() {
  if (!layer_->control.close(static_cast<int>(patience_.control.count())))
    return say(kRunning, false);
  layer_->change_state(kCarried | kSendsHeld | kPollsHeld, 0);
  begin_move(*layer_);
  return say(kSendsStopped, drain_sends(*layer_, patience_));
}

// Round 2. No process sends any more. If all that was sent has been executed, and has come here,
// this is rest.
TransportAnswer VerbsTransport::stop_receives(const Statements& all) {
  layer_->change_state(kRecvsHeld, 0);
  if (stage_ == kSendsStopped && everyone_ok(all, kSendsStopped)) {
    if (await_arrivals(*layer_, all, patience_)) return rest();
    return say(kSendsStopped, true);
  }
  return look_again();
}

// Somebody's sends do not get on. To take them back is to stop the queue pair, and what its peer
// has under way on it is lost then: so nobody does before everybody's work is done or waits for a
// receiver, and can be counted.
TransportAnswer VerbsTransport::look_again() {
  const bool drained = drain_sends(*layer_, patience_);
  return say(kReceivesStopped, drained || all_wait_for_receivers(*layer_));
}

// Round 3.
TransportAnswer VerbsTransport::take_back() {
  take_back_stuck(*layer_, patience_);
  return say(kTakenBack, true);
}

// Round 4. Nothing is on its way in the whole job, so the counts are final.
TransportAnswer VerbsTransport::count(const Statements& all) {
  await_arrivals(*layer_, all, patience_);
  settle(*layer_, patience_);
  return say(kCounted, true);
}

TransportAnswer VerbsTransport::resolve(const Statements& all) {
  resolve_taken_back(*layer_, all);
  return rest();
}

TransportAnswer VerbsTransport::rest() {
  layer_->change_state(kSendsHeld | kRecvsHeld | kPollsHeld, 0);
  tear_down(*layer_);
  stage_ = kAtRest;
  return {};
}

TransportAnswer VerbsTransport::resume(std::uint64_t epoch, std::uint32_t,
                                       const Payloads& payloads) {
  if (layer_ == nullptr || !layer_->ever_opened ||
      (stage_ == kRunning && !layer_->control.closed()))
    return {};
  const Statements all = read(payloads);
  if (stage_ != kReopened && stage_ != kConnected) {
    unresolved_ = stage_ == kTakenBack || stage_ == kCounted;
    if (unresolved_) settle(*layer_, patience_);
    layer_->change_state(kCarried | kSendsHeld | kRecvsHeld | kPollsHeld, 0);
    return say(kReopened, reopen(*layer_, patience_));
  }
  if (stage_ == kReopened) {
    if (!ok_) return say(kReopened, reopen(*layer_, patience_));
    if (!everyone_ok(all, kReopened)) return say(kReopened, true);
    if (unresolved_) resolve_taken_back(*layer_, all);
    unresolved_ = false;
    return say(kConnected, connect(*layer_, all, epoch));
  }
  if (!ok_) return say(kConnected, connect(*layer_, all, epoch));
  if (!everyone_ok(all, kConnected)) return say(kConnected, true);
  run_again(*layer_, patience_);
  stage_ = kRunning;
  return {};
}

}  // namespace symvirt::hooks::verbs
