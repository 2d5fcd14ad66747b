// Brings the verbs of a process to rest and back (docs/verbs.md: rounds). Does nothing in a process
// that has no device open.
#pragma once

#include <cstdint>
#include <functional>

#include "pmix-hooks/ranks/transport.h"
#include "pmix-hooks/ranks/verbs/move.h"

namespace symvirt::hooks::verbs {

class VerbsTransport final : public Transport {
 public:
  // layer: asked for at the beginning of each quiesce, since a process gets one when it first uses
  // verbs.
  explicit VerbsTransport(std::function<Layer&()> layer = Layer::current, Patience patience = {})
      : find_layer_(std::move(layer)), patience_(patience) {}

  TransportAnswer quiesce(std::uint64_t epoch, std::uint32_t round, const Payloads& payloads,
                          bool device_leaves) override;
  TransportAnswer resume(std::uint64_t epoch, std::uint32_t round,
                         const Payloads& payloads) override;
  void peers(const Payloads& payloads) override;

 private:
  // What the process is through with, and told the others.
  enum Stage : std::uint32_t {
    kRunning = 0,
    kSendsStopped = 1,
    kReceivesStopped = 2,
    kTakenBack = 3,
    kAtRest = 4,
    kReopened = 11,
    kSettled = 12,
    kConnected = 13,
  };

  TransportAnswer stop_sends();
  TransportAnswer proceed(const Statements& all);
  TransportAnswer stop_receives(const Statements& all);
  TransportAnswer look(const Statements& all);
  TransportAnswer take_back(const Statements& all);
  TransportAnswer resolve(const Statements& all);
  TransportAnswer settle(const Statements& all);
  TransportAnswer rest();
  TransportAnswer close_down();
  TransportAnswer say(Stage stage, bool ok);
  TransportAnswer wait_for_arrivals(Stage stage);

  std::function<Layer&()> find_layer_;
  const Patience patience_;
  Layer* layer_ = nullptr;
  Stage stage_ = kRunning;
  bool ok_ = false;
  bool stays_ = false;  // the device does
  Statements last_;     // what each process said last in this quiesce: who is through says no more
};

}  // namespace symvirt::hooks::verbs
