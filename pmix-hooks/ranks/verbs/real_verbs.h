// The real libibverbs, as the layer calls it: one pointer a call, filled once.
//
// In production from the libibverbs.so.1 that is in the process or comes with the first look-up of
// devices (dlvsym: version IBVERBS_1.1 where there is an old one too). In tests from a double:
// set_real_verbs_for_test.
//
// The data path is not here: the layer calls it the way verbs.h does, through the ops of the *real*
// context that open_device returned: ops.post_send, post_recv, post_srq_recv, poll_cq and
// req_notify_cq. A double fills those. It may leave abi_compat of its contexts null: the layer
// calls nothing of verbs_context.
//
// What the layer expects of whoever stands behind it (libibverbs does it all):
//   * objects are returned with the public fields filled (context, pd, handle, qp_num, lkey, ...);
//     cq_context, qp_context and srq_context as given: they are the layer's own pointers back;
//   * errors: null and errno, or the errno value (reg, create) / returned (modify, destroy, post);
//   * get_cq_event and get_async_event read the descriptor: with O_NONBLOCK on it (the layer sets
//   it)
//     they return -1 and EAGAIN when there is nothing. The layer acknowledges each at once;
//   * completion channels have a pollable descriptor (comp_channel->fd), contexts too (async_fd);
//   * destroying an object that others still use says EBUSY; a closed device is held by nobody.
//
// Threads: as libibverbs, any.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pmix-hooks/ranks/verbs/verbs_api.h"

namespace symvirt::hooks::verbs {

struct RealVerbs {
  // Devices.
  ibv_device** (*get_device_list)(int* count) = nullptr;
  void (*free_device_list)(ibv_device** list) = nullptr;
  const char* (*get_device_name)(ibv_device* device) = nullptr;
  __be64 (*get_device_guid)(ibv_device* device) = nullptr;
  int (*get_device_index)(ibv_device* device) = nullptr;  // may be null (older libibverbs)
  ibv_context* (*open_device)(ibv_device* device) = nullptr;
  int (*close_device)(ibv_context* context) = nullptr;
  int (*get_async_event)(ibv_context* context, ibv_async_event* event) = nullptr;
  void (*ack_async_event)(ibv_async_event* event) = nullptr;

  // Queries.
  int (*query_device)(ibv_context* context, ibv_device_attr* attr) = nullptr;
  int (*query_port)(ibv_context* context, std::uint8_t port, ibv_port_attr* attr) = nullptr;
  int (*query_gid)(ibv_context* context, std::uint8_t port, int index,
                   union ibv_gid* gid) = nullptr;
  int (*query_gid_ex)(ibv_context* context, std::uint32_t port, std::uint32_t index,
                      ibv_gid_entry* entry, std::uint32_t flags, std::size_t entry_size) = nullptr;
  ssize_t (*query_gid_table)(ibv_context* context, ibv_gid_entry* entries, std::size_t max_entries,
                             std::uint32_t flags, std::size_t entry_size) = nullptr;
  int (*query_pkey)(ibv_context* context, std::uint8_t port, int index, __be16* pkey) = nullptr;
  int (*get_pkey_index)(ibv_context* context, std::uint8_t port, __be16 pkey) = nullptr;

  // Protection domains and memory.
  ibv_pd* (*alloc_pd)(ibv_context* context) = nullptr;
  int (*dealloc_pd)(ibv_pd* pd) = nullptr;
  ibv_mr* (*reg_mr)(ibv_pd* pd, void* addr, std::size_t length, int access) = nullptr;
  ibv_mr* (*reg_mr_iova)(ibv_pd* pd, void* addr, std::size_t length, std::uint64_t iova,
                         int access) = nullptr;
  ibv_mr* (*reg_mr_iova2)(ibv_pd* pd, void* addr, std::size_t length, std::uint64_t iova,
                          unsigned int access) = nullptr;
  ibv_mr* (*reg_dmabuf_mr)(ibv_pd* pd, std::uint64_t offset, std::size_t length, std::uint64_t iova,
                           int fd, int access) = nullptr;  // may be null
  int (*rereg_mr)(ibv_mr* mr, int flags, ibv_pd* pd, void* addr, std::size_t length,
                  int access) = nullptr;
  int (*dereg_mr)(ibv_mr* mr) = nullptr;

  // Completions.
  ibv_comp_channel* (*create_comp_channel)(ibv_context* context) = nullptr;
  int (*destroy_comp_channel)(ibv_comp_channel* channel) = nullptr;
  ibv_cq* (*create_cq)(ibv_context* context, int cqe, void* cq_context, ibv_comp_channel* channel,
                       int comp_vector) = nullptr;
  int (*resize_cq)(ibv_cq* cq, int cqe) = nullptr;
  int (*destroy_cq)(ibv_cq* cq) = nullptr;
  int (*get_cq_event)(ibv_comp_channel* channel, ibv_cq** cq, void** cq_context) = nullptr;
  void (*ack_cq_events)(ibv_cq* cq, unsigned int count) = nullptr;

  // Queues.
  ibv_srq* (*create_srq)(ibv_pd* pd, ibv_srq_init_attr* attr) = nullptr;
  int (*modify_srq)(ibv_srq* srq, ibv_srq_attr* attr, int mask) = nullptr;
  int (*query_srq)(ibv_srq* srq, ibv_srq_attr* attr) = nullptr;
  int (*destroy_srq)(ibv_srq* srq) = nullptr;
  ibv_qp* (*create_qp)(ibv_pd* pd, ibv_qp_init_attr* attr) = nullptr;
  int (*modify_qp)(ibv_qp* qp, ibv_qp_attr* attr, int mask) = nullptr;
  int (*query_qp)(ibv_qp* qp, ibv_qp_attr* attr, int mask, ibv_qp_init_attr* init) = nullptr;
  int (*destroy_qp)(ibv_qp* qp) = nullptr;
  int (*query_qp_data_in_order)(ibv_qp* qp, ibv_wr_opcode op, std::uint32_t flags) = nullptr;
  int (*query_ece)(ibv_qp* qp, ibv_ece* ece) = nullptr;  // may be null
  int (*set_ece)(ibv_qp* qp, ibv_ece* ece) = nullptr;    // may be null

  // Address handles.
  ibv_ah* (*create_ah)(ibv_pd* pd, ibv_ah_attr* attr) = nullptr;
  int (*destroy_ah)(ibv_ah* ah) = nullptr;
  int (*init_ah_from_wc)(ibv_context* context, std::uint8_t port, ibv_wc* wc, ibv_grh* grh,
                         ibv_ah_attr* attr) = nullptr;
  int (*resolve_eth_l2_from_gid)(ibv_context* context, ibv_ah_attr* attr, std::uint8_t mac[6],
                                 std::uint16_t* vid) = nullptr;

  // Only passed on for objects that are not the layer's (refused for its own).
  int (*attach_mcast)(ibv_qp* qp, const union ibv_gid* gid, std::uint16_t lid) = nullptr;
  int (*detach_mcast)(ibv_qp* qp, const union ibv_gid* gid, std::uint16_t lid) = nullptr;
  ibv_context* (*import_device)(int cmd_fd) = nullptr;
  ibv_pd* (*import_pd)(ibv_context* context, std::uint32_t handle) = nullptr;
  ibv_mr* (*import_mr)(ibv_pd* pd, std::uint32_t handle) = nullptr;
  ibv_dm* (*import_dm)(ibv_context* context, std::uint32_t handle) = nullptr;
  ibv_qp_ex* (*qp_to_qp_ex)(ibv_qp* qp) = nullptr;
};

// Null when there is no libibverbs to be had: every interposed call then fails with ENOSYS.
const RealVerbs* real_verbs();

// Before the first verbs call of the process, or when no object of the layer is left. Not owned.
void set_real_verbs_for_test(const RealVerbs* verbs);

}  // namespace symvirt::hooks::verbs
