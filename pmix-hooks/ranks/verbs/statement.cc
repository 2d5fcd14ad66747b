// What this process tells the others about itself.
#include <algorithm>

#include "pmix-hooks/ranks/verbs/addresses.h"
#include "pmix-hooks/ranks/verbs/move.h"
#include "pmix-hooks/ranks/verbs/queue_pair.h"

namespace symvirt::hooks::verbs {
namespace {

// Whether somebody's send may still find a receive here.
bool receives_left(const VQp& qp) {
  if ((qp.layer->state.load(std::memory_order_relaxed) & kRecvsHeld) == 0) return true;
  if (qp.srq == nullptr) {
    const std::uint64_t done = qp.recvs_completed.load(std::memory_order_relaxed);
    return qp.recvs.real - qp.recvs.tail > done - qp.recvs.retired;
  }
  return std::any_of(qp.srq->slots.get(), qp.srq->slots.get() + qp.srq->slot_count,
                     [](const SrqSlot& s) { return s.posted && s.busy.load(); });
}

QpStatement describe_qp(const VQp& qp) {
  QpStatement out;
  out.type = qp.init.qp_type;
  out.virtual_number = qp.pub.qp_num;
  out.real_number = qp.real == nullptr ? 0 : qp.real->qp_num;
  if (qp.rebuild) out.flags |= kQpRebuild;
  if (qp.sends.tail == qp.sends.real) out.flags |= kQpDrained;
  if (qp.stuck) out.flags |= kQpStuck;
  if (qp.taken_back) out.flags |= kQpTakenBack;
  if (!receives_left(qp)) out.flags |= kQpNoReceives;
  const bool alive = !qp.errored.load(std::memory_order_relaxed) && qp.pub.state != IBV_QPS_ERR;
  if (is_connected(qp) && alive) {
    out.flags |= kQpConnected;
    out.peer = Address::of(qp.attr.ah_attr);
    out.peer_number = qp.attr.dest_qp_num;
  }
  out.sent = qp.sends.consumed;
  out.received = qp.recvs_completed.load(std::memory_order_relaxed) +
                 qp.srq_received.load(std::memory_order_relaxed);
  return out;
}

PortStatement describe_port(const VContext& context, std::size_t index) {
  PortStatement out;
  const PortState& known = context.known[index];
  out.virtual_lid = known.lid;
  if (index < context.now.size()) {
    const PortState& now = context.now[index];
    out.real_lid = now.lid;
    out.mtu = now.mtu;
    for (const GidEntry& e : known.gids) {
      const int there = real_gid_index(context, static_cast<int>(index) + 1, e.index);
      for (const GidEntry& n : now.gids) {
        if (n.index == there) out.gids.emplace_back(to_gid(e.gid), to_gid(n.gid));
      }
    }
  }
  for (const VQp* qp : context.qps) {
    // One that has no port yet may have told its number to others, and be sent to at any.
    if ((qp->attr_mask & IBV_QP_PORT) == 0 || qp->attr.port_num == index + 1)
      out.qps.push_back(describe_qp(*qp));
  }
  return out;
}

}  // namespace

Statement describe(Layer& layer, std::uint32_t stage, bool ok) {
  const std::lock_guard lock(layer.held_mutex);
  Statement out;
  out.stage = stage;
  out.ok = ok;
  for (const VContext* context : layer.contexts) {
    for (std::size_t i = 0; i < context->known.size(); ++i)
      out.ports.push_back(describe_port(*context, i));
    for (const VMr* mr : context->mrs) {
      if (mr->real == nullptr) continue;
      // A region that is not for others has no key on some devices (soft-RoCE): no number that a
      // new one must not get.
      if (mr->pub.rkey == 0 && mr->real->rkey == 0) continue;
      out.keys.emplace_back(mr->pub.rkey, mr->real->rkey);
    }
  }
  return out;
}

}  // namespace symvirt::hooks::verbs
