// What keeps a process from rest, in words: the operator sees this text when a quiesce runs out of
// time.
#include <algorithm>
#include <cstdio>

#include "pmix-hooks/ranks/verbs/move.h"
#include "pmix-hooks/ranks/verbs/queue_pair.h"

namespace symvirt::hooks::verbs {
namespace {

constexpr std::size_t kNamed = 3;  // queue pairs; there may be thousands

std::string hex(std::uint32_t number) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%x", number);
  return text;
}

// Sends the peer has not received, by its count.
std::uint64_t not_received(VQp& qp, const QpStatement& peer) {
  std::uint64_t sent = qp.sends.consumed;
  for (std::uint64_t i = qp.sends.tail; i != qp.sends.real; ++i)
    sent += qp.sends.record(i).consumes_receive();
  return sent - std::min(sent, peer.received);
}

std::string why_sends_wait(VQp& qp, const QpStatement* peer) {
  if (qp.init.qp_type != IBV_QPT_RC) return "not RC, so that they cannot be taken back";
  if (peer == nullptr) return "nobody says that it is the other end";
  if (not_received(qp, *peer) == 0) return "the peer has them, and does not acknowledge";
  if ((peer->flags & kQpNoReceives) == 0) return "the peer may have receives for them";
  return "the peer has no receive";
}

// Empty: nothing.
std::string waiting(VQp& qp, const Directory& directory) {
  const QpStatement* const peer = peer_of(qp, directory);
  if (qp.taken_back)
    return qp.all_back ? std::string() : "stopped, and its work does not come back";
  if (const std::uint64_t out = qp.sends.real - qp.sends.tail; out != 0) {
    const std::string text = std::to_string(out) + (out == 1 ? " send waits" : " sends wait");
    // In the first round nobody has said anything yet.
    return directory.statements().empty() ? text : text + ", " + why_sends_wait(qp, peer);
  }
  if (qp.marker.is_out()) return "the marker behind its sends does not come back";
  const std::uint64_t received = qp.recvs_completed + qp.srq_received;
  if (peer == nullptr || qp.init.qp_type != IBV_QPT_RC || received >= peer->sent) return {};
  if (qp.errored || (peer->flags & (kQpStuck | kQpTakenBack)) != 0) return {};
  return std::to_string(received) + " of " + std::to_string(peer->sent) +
         " messages of the peer have come";
}

}  // namespace

std::string name_of(const VQp& qp) {
  std::string text = "queue pair " + hex(qp.pub.qp_num);
  if (is_connected(qp)) text += " to " + hex(qp.attr.dest_qp_num);
  return text;
}

std::string what_is_waited_for(Layer& layer, const Statements& statements) {
  const Directory directory(statements);
  std::string text;
  std::size_t count = 0;
  const auto add = [&](const std::string& what) {
    if (++count > kNamed) return;
    text += (text.empty() ? "" : "; ") + what;
  };
  const std::lock_guard lock(layer.held_mutex);
  for (const VContext* context : layer.contexts) {
    if (context->real == nullptr) {
      add("no device yet in place of " + context->device_name);
      continue;
    }
    if (!context->trouble.empty()) add(context->device_name + ": " + context->trouble);
    for (VQp* qp : context->qps) {
      if (const std::string what = waiting(*qp, directory); !what.empty())
        add(name_of(*qp) + ": " + what);
    }
  }
  if (count > kNamed) text += "; and " + std::to_string(count - kNamed) + " more";
  return text;
}

}  // namespace symvirt::hooks::verbs
