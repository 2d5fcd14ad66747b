// A queue pair's attributes: remembered as the application set them, translated for the device.
#pragma once

#include "pmix-hooks/ranks/verbs/layer.h"

namespace symvirt::hooks::verbs {

void remember_attributes(VQp& qp, const ibv_qp_attr& attr, int mask);
// The peer's number and address as they are now, and what the layer needs for itself. Sets qp.rkeys
// when the peer is named.
ibv_qp_attr real_attributes(VQp& qp, const ibv_qp_attr& attr, int mask);
// Back again, after a query.
void make_visible(const VQp& qp, ibv_qp_attr& attr, ibv_qp_init_attr& init);

// After RESET: nothing is posted, nobody is the peer.
void forget_work(VQp& qp);
void forget_taking_back(VQp& qp);

bool is_connected(const VQp& qp);  // RC or UC that knows its peer
// The other end, where both know each other; null: not (yet) so.
const QpStatement* peer_of(const VQp& qp, const Directory& directory);
bool can_send(const VQp& qp);  // in a state in which sends are executed

// Steps of a rebuild; each brings the real queue pair one state on. 0 or errno.
int to_init(VQp& qp);
int to_ready_to_receive(VQp& qp);
int to_ready_to_send(VQp& qp);
int to_error(VQp& qp);
int to_reset(VQp& qp);

}  // namespace symvirt::hooks::verbs
