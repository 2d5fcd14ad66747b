#include <algorithm>
#include <cerrno>
#include <string>
#include <system_error>
#include <thread>

#include "pmix-hooks/ranks/verbs/addresses.h"
#include "pmix-hooks/ranks/verbs/events.h"
#include "pmix-hooks/ranks/verbs/exports.h"
#include "pmix-hooks/ranks/verbs/move.h"
#include "pmix-hooks/ranks/verbs/queue_pair.h"

namespace symvirt::hooks::verbs {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kLookAgain{20};

std::string reason(int error) { return std::generic_category().message(error); }

bool wants_connection(const VQp& qp) {
  const ibv_qp_state state = qp.pub.state;
  return (state == IBV_QPS_RTR || state == IBV_QPS_RTS || state == IBV_QPS_SQD) && !qp.errored;
}
bool wants_to_send(const VQp& qp) {
  return (qp.pub.state == IBV_QPS_RTS || qp.pub.state == IBV_QPS_SQD) && !qp.errored;
}

// Both ends shift their packet numbers by the same: a packet of the old connection that is still
// somewhere in the fabric finds another number. Where only one of them knows the other so far, the
// other will come with the number that the application gave it.
std::uint32_t psn_shift(const VQp& qp, std::uint64_t epoch) {
  if (peer_of(qp, *qp.layer->directory) == nullptr) return 0;
  return static_cast<std::uint32_t>(epoch * 65'537);
}

// By its name, or else one of the same kind: names follow the order of discovery.
bool open_a_device(VContext& context) {
  if (open_real(context, context.device_name)) return true;
  std::string other;
  {
    RealDevices devices;
    const ibv_device& before = *context.pub.device;
    for (int i = 0; devices.ok() && i < devices.count(); ++i) {
      if (other.empty() && devices[i]->transport_type == before.transport_type &&
          devices[i]->node_type == before.node_type)
        other = devices[i]->name;
    }
  }
  return !other.empty() && open_real(context, other);
}

bool make_channel(VContext& context, VChannel& channel) {
  channel.real = real_verbs()->create_comp_channel(context.real);
  return channel.real != nullptr && put_into_event_fd(channel.pub.fd, channel.real->fd);
}

bool make_qp(VContext& context, VQp& qp) {
  const ibv_qp_cap before = qp.cap;
  if (!make_real_qp(qp)) return false;
  qp.cap = before;  // the application's limits stay
  context.numbers.set(qp.real->qp_num, &qp);
  qp.rebuild = qp.fresh = true;
  return true;
}

bool make_objects(VContext& context) {
  const auto all = [&context](const char* what, auto& list, auto make) {
    for (auto* object : list) {
      if (object->real != nullptr || make(*object)) continue;
      context.trouble = std::string("no new ") + what + ": " + reason(errno);
      return false;
    }
    return true;
  };
  const auto make_pd = [&](VPd& pd) {
    pd.real = real_verbs()->alloc_pd(context.real);
    return pd.real != nullptr;
  };
  // The device may have fewer vectors than the one before.
  const auto make_cq = [&](VCq& cq) {
    return make_real_cq(cq, cq.comp_vector % std::max(context.real->num_comp_vectors, 1));
  };
  const auto make_mr = [](VMr& mr) { return make_real_mr(mr, of(mr.pub.pd)->real); };
  return all("protection domain", context.pds, make_pd) &&
         all("memory region", context.mrs, make_mr) &&
         all("completion channel", context.channels,
             [&](VChannel& channel) { return make_channel(context, channel); }) &&
         all("completion queue", context.cqs, make_cq) &&
         all("shared receive queue", context.srqs, make_real_srq) &&
         all("queue pair", context.qps, [&](VQp& qp) { return make_qp(context, qp); });
}

void make_key_table(VContext& context) {
  auto keys = std::make_unique<KeyTable>(context.mrs.size());
  for (const VMr* mr : context.mrs) keys->put(mr->pub.lkey, mr->real->lkey);
  context.lkeys = std::move(keys);
}

bool reopen_context(VContext& context) {
  context.trouble.clear();
  if (context.real == nullptr) {
    if (!open_a_device(context)) return false;
    if (!put_into_event_fd(context.pub.async_fd, context.real->async_fd)) return false;
  }
  if (!make_objects(context)) return false;
  context.now = read_ports(context);
  make_key_table(context);
  return !context.now.empty();
}

// Counts begin anew on both ends.
void reset_counts(VQp& qp) {
  qp.sends.retired_signalled = 0;
  qp.sends.consumed = 0;
  qp.recvs.retired = 0;
  qp.sends_completed = 0;
  qp.recvs_completed = 0;
  qp.srq_received = 0;
  qp.marker.forget();
  qp.last_receive.forget();
  qp.fresh = false;
  forget_taking_back(qp);
  qp.sends.real = qp.sends.tail;
  qp.recvs.real = qp.recvs.tail;
}

int post_waiting_receives(VQp& qp) {
  if (qp.srq != nullptr || qp.pub.state == IBV_QPS_RESET) return 0;
  return post_receives(qp, qp.recvs.real, qp.recvs.head);
}

bool post_waiting_srq(VSrq& srq) {
  std::vector<std::uint32_t> waiting;
  for (std::uint32_t i = 0; i < srq.slot_count; ++i) {
    if (srq.slots[i].busy && !srq.slots[i].posted) waiting.push_back(i);
  }
  std::sort(waiting.begin(), waiting.end(), [&srq](std::uint32_t a, std::uint32_t b) {
    return srq.slots[a].sequence < srq.slots[b].sequence;
  });
  if (!std::all_of(waiting.begin(), waiting.end(),
                   [&srq](std::uint32_t i) { return post_srq_slot(srq, i) == 0; }))
    return false;
  if (srq.limit == 0) return true;
  ibv_srq_attr attr{};
  attr.srq_limit = srq.limit;
  return real_verbs()->modify_srq(srq.real, &attr, IBV_SRQ_LIMIT) == 0;
}

// The end that stayed is reset where the other one is new.
bool peer_is_rebuilt(const VQp& qp, const Directory& directory) {
  if (!is_connected(qp)) return false;
  const auto found =
      directory.find(Address::of(qp.attr.ah_attr), qp.attr.dest_qp_num, qp.pub.qp_num);
  return found && (found->qp->flags & kQpRebuild) != 0;
}

int connect_qp(VQp& qp, std::uint64_t epoch) {
  if (!qp.rebuild || qp.pub.state == IBV_QPS_RESET) return 0;
  if (const int error = to_reset(qp)) return error;
  reset_counts(qp);
  qp.psn_shift = psn_shift(qp, epoch);
  if (const int error = to_init(qp)) return error;
  // Not before: the kernel lets no queue pair go from RESET to ERR (ib_modify_qp_is_ok).
  if (qp.pub.state == IBV_QPS_ERR || qp.errored) {
    if (const int error = to_error(qp)) return error;
  }
  if (const int error = post_waiting_receives(qp)) return error;
  return wants_connection(qp) ? to_ready_to_receive(qp) : 0;
}

// Also for connections that stay: the tables are new.
void find_keys(VQp& qp) {
  if (is_connected(qp))
    static_cast<void>(real_attributes(qp, qp.attr, IBV_QP_AV | IBV_QP_DEST_QPN));
}

// A new one where a device has gone, even to the same address: in it may be what the address was
// resolved to.
bool renew(VAh& ah, const Directory& directory) {
  const Directory::Place* const place = directory.place(Address::of(ah.attr));
  if (ah.real != nullptr && (place == nullptr || !place->left)) {
    ah.numbers = place == nullptr ? nullptr : &place->numbers;
    return true;
  }
  if (ah.real != nullptr) real_verbs()->destroy_ah(std::exchange(ah.real, nullptr));
  return make_real_ah(ah);
}

bool connect_context(VContext& context, std::uint64_t epoch) {
  const Directory& directory = *context.layer->directory;
  context.trouble.clear();
  for (VAh* ah : context.ahs) {
    if (renew(*ah, directory)) continue;
    context.trouble = "no new address handle: " + reason(errno);
    return false;
  }
  for (VQp* qp : context.qps) {
    if (peer_is_rebuilt(*qp, directory)) qp->rebuild = true;
    if (const int error = connect_qp(*qp, epoch)) {
      context.trouble = name_of(*qp) + " is not connected anew: " + reason(error);
      return false;
    }
    find_keys(*qp);
  }
  return std::all_of(context.srqs.begin(), context.srqs.end(),
                     [](VSrq* srq) { return post_waiting_srq(*srq); });
}

bool send_waiting(Layer& layer, VQp& qp, const Patience& patience) {
  const auto limit = Clock::now() + patience.drain;
  while (qp.sends.real != qp.sends.head) {
    if (post_records(qp, qp.sends.real, qp.sends.head) == 0) break;
    // A queue that is smaller than before, or full: room comes with completions.
    if (Clock::now() > limit) return false;
    if (pump(layer) == 0) std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  return true;
}

void arm_again(VCq& cq) {
  const std::uint8_t armed = cq.armed.load(std::memory_order_relaxed);
  if (armed != VCq::kNo)
    cq.real->context->ops.req_notify_cq(cq.real, armed == VCq::kSolicited ? 1 : 0);
}

}  // namespace

bool reopen(Layer& layer, const Patience& patience) {
  const auto limit = Clock::now() + patience.device;
  while (true) {
    bool all = true;
    {
      const std::lock_guard lock(layer.held_mutex);
      for (VContext* context : layer.contexts) all = reopen_context(*context) && all;
    }
    if (all || Clock::now() > limit) return all;
    std::this_thread::sleep_for(kLookAgain);
  }
}

bool connect(Layer& layer, Statements statements, std::uint64_t epoch) {
  const std::lock_guard lock(layer.held_mutex);
  take_in(layer);
  layer.directory = std::make_unique<Directory>(std::move(statements));
  bool all = true;
  for (VContext* context : layer.contexts) all = connect_context(*context, epoch) && all;
  return all;
}

void adopt(Layer& layer, Statements statements, const Patience& patience) {
  // Not closed in time: it is opening its first device, and goes without.
  if (!layer.control.close(static_cast<int>(patience.control.count()))) return;
  if (!layer.ever_opened) {
    layer.directory = std::make_unique<Directory>(std::move(statements));
    layer.change_state(kCarried, 0);
  }
  layer.control.open();
}

bool run_again(Layer& layer, const Patience& patience) {
  bool all = true;
  {
    const std::lock_guard lock(layer.held_mutex);
    for (VContext* context : layer.contexts) {
      for (VCq* cq : context->cqs) arm_again(*cq);
      for (VQp* qp : context->qps) {
        qp->fresh = false;
        if (!std::exchange(qp->rebuild, false) || !wants_to_send(*qp)) continue;
        // Broken since it was connected, by the peer's first message: what waits is flushed.
        if (to_ready_to_send(*qp) != 0) to_error(*qp);
      }
      for (VQp* qp : context->qps) all = post_waiting_receives(*qp) == 0 && all;
      for (VSrq* srq : context->srqs) all = post_waiting_srq(*srq) && all;
    }
    // Last: some may have to wait for room, and peers' sends wait for those receives.
    for (VContext* context : layer.contexts) {
      for (VQp* qp : context->qps) all = send_waiting(layer, *qp, patience) && all;
    }
    // Peers that run already may have sent: for what came before a queue was armed, the device
    // raises no event.
    pump(layer);
    if (!all) return false;
    layer.state.store(kCarried, std::memory_order_release);
  }
  synchronize();
  layer.control.open();
  return true;
}

}  // namespace symvirt::hooks::verbs
