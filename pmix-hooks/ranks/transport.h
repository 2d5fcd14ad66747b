// What brings one kind of communication of a rank to rest and back. One object a process, driven in
// rounds by the rank agent's thread (docs/protocols.md section 2, "Rounds"): each round is a
// barrier over the whole job, and what a transport answers in one round every other rank's
// transport gets in the next.
//
// Threads: called by the rank agent's thread only, while the application's threads run. It may
// block for as long as the quiesce timeout allows, must not call PMIx, and must not throw.
#pragma once

#include <cstdint>
#include <string>

#include "pmix-hooks/message.h"

namespace symvirt::hooks {

struct TransportAnswer {
  bool more = false;    // needs another round
  std::string payload;  // for the other ranks, in the next round
  std::string why{};    // with more: what this process itself waits for, in words; or empty
};

class Transport {
 public:
  Transport() = default;
  Transport(const Transport&) = delete;
  Transport& operator=(const Transport&) = delete;
  virtual ~Transport() = default;

  // Round 1, 2, ... until more is false: then at rest, and the process may be held at any time from
  // the answer on. device_leaves: the device of this VM may be taken away then; otherwise it stays,
  // and only the peers' may go.
  virtual TransportAnswer quiesce(std::uint64_t epoch, std::uint32_t round,
                                  const Payloads& payloads, bool device_leaves) = 0;
  // Round 1, 2, ... until more is false: then running. Also called after a quiesce that was given
  // up half way.
  virtual TransportAnswer resume(std::uint64_t epoch, std::uint32_t round,
                                 const Payloads& payloads) = 0;
  // What the others said last in a resume that this process had no part in: it came later, or used
  // nothing then.
  virtual void peers(const Payloads&) {}
};

// Kernel TCP: the kernel keeps the state, so there is nothing to do in the process. Being held is
// all it takes: no new data is sent, and what is in flight is acknowledged by the peers' kernels
// before the device goes (guestd's part).
class KernelTcpTransport final : public Transport {
 public:
  TransportAnswer quiesce(std::uint64_t, std::uint32_t, const Payloads&, bool) override {
    return {};
  }
  TransportAnswer resume(std::uint64_t, std::uint32_t, const Payloads&) override { return {}; }
};

// Several kinds at once. Only `speaking` has payloads; the others say nothing to each other.
class TransportPair final : public Transport {
 public:
  // Both outlive it.
  TransportPair(Transport& speaking, Transport& silent) : speaking_(speaking), silent_(silent) {}

  TransportAnswer quiesce(std::uint64_t epoch, std::uint32_t round, const Payloads& payloads,
                          bool device_leaves) override {
    const TransportAnswer silent = silent_.quiesce(epoch, round, {}, device_leaves);
    return both(silent, speaking_.quiesce(epoch, round, payloads, device_leaves));
  }
  TransportAnswer resume(std::uint64_t epoch, std::uint32_t round,
                         const Payloads& payloads) override {
    const TransportAnswer silent = silent_.resume(epoch, round, {});
    return both(silent, speaking_.resume(epoch, round, payloads));
  }
  void peers(const Payloads& payloads) override { speaking_.peers(payloads); }

 private:
  static TransportAnswer both(const TransportAnswer& silent, TransportAnswer speaking) {
    speaking.more = speaking.more || silent.more;
    if (speaking.why.empty()) speaking.why = silent.why;
    return speaking;
  }

  Transport& speaking_;
  Transport& silent_;
};

}  // namespace symvirt::hooks
