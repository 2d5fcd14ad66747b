// Two or three "processes" (layers), each on a host of its own, over the provider double, whose
// devices are taken away and replaced.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>

#include <cstring>
#include <thread>

#include "pmix-hooks/ranks/verbs/real_verbs.h"
#include "pmix-hooks/ranks/verbs/testing/fabric.h"
#include "pmix-hooks/ranks/verbs/verbs_transport.h"

namespace symvirt::hooks::verbs::layer_test {

using testing::DeviceSpec;
using testing::Fabric;
using testing::set_thread_host;

inline constexpr int kProcesses = 2;
inline constexpr int kMostProcesses = 3;
inline constexpr std::uint32_t kPsn = 0x1234;
inline constexpr std::uint32_t kQkey = 0x11111111;

inline Patience quick() {
  Patience p;
  p.silence = milliseconds(50);
  p.arrival = milliseconds(1000);
  p.device = milliseconds(50);
  return p;
}

// One process: its layer, and what its application holds.
struct Process {
  int host = 0;
  Layer layer;
  VerbsTransport transport{[this]() -> Layer& { return layer; }, quick()};
  bool device_leaves = true;  // what it is told
  ibv_context* context = nullptr;
  ibv_pd* pd = nullptr;
  ibv_comp_channel* channel = nullptr;
  ibv_cq* cq = nullptr;
  ibv_mr* mr = nullptr;
  ibv_srq* srq = nullptr;
  ibv_ah* ah = nullptr;
  std::vector<ibv_qp*> made;
  std::vector<std::uint8_t> memory = std::vector<std::uint8_t>(1 << 16);

  void act() {
    set_thread_host(host);
    Layer::set_current_for_test(&layer);
  }
  TransportAnswer quiesce(std::uint64_t epoch, int round, const Payloads& payloads) {
    act();
    return transport.quiesce(epoch, static_cast<std::uint32_t>(round), payloads, device_leaves);
  }
  TransportAnswer resume(std::uint64_t epoch, int round, const Payloads& payloads) {
    act();
    return transport.resume(epoch, static_cast<std::uint32_t>(round), payloads);
  }
  void open() {
    act();
    ibv_device** list = ibv_get_device_list(nullptr);
    ASSERT_NE(list, nullptr);
    ASSERT_NE(list[0], nullptr);
    context = ibv_open_device(list[0]);
    ibv_free_device_list(list);
    ASSERT_NE(context, nullptr);
    pd = ibv_alloc_pd(context);
    channel = ibv_create_comp_channel(context);
    cq = ibv_create_cq(context, 256, this, channel, 0);
    ASSERT_NE(cq, nullptr);
    mr = ibv_reg_mr(pd, memory.data(), memory.size(),
                    IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ |
                        IBV_ACCESS_REMOTE_ATOMIC);
    ASSERT_NE(mr, nullptr);
  }
  ibv_qp* make(ibv_qp_type type, ibv_srq* shared = nullptr) {
    act();
    ibv_qp_init_attr init{};
    init.send_cq = init.recv_cq = cq;
    init.srq = shared;
    init.cap = {64, shared == nullptr ? 64u : 0u, 2, 2, 64};
    init.qp_type = type;
    ibv_qp* qp = ibv_create_qp(pd, &init);
    EXPECT_NE(qp, nullptr);
    made.push_back(qp);
    return qp;
  }
  void destroy(ibv_qp* qp) {
    act();
    std::erase(made, qp);
    EXPECT_EQ(ibv_destroy_qp(qp), 0);
  }
  // What was carried over any number of moves can be given back, all of it.
  void close() {
    act();
    for (ibv_qp* qp : made) EXPECT_EQ(ibv_destroy_qp(qp), 0);
    if (srq != nullptr) {
      EXPECT_EQ(ibv_destroy_srq(srq), 0);
    }
    if (ah != nullptr) {
      EXPECT_EQ(ibv_destroy_ah(ah), 0);
    }
    EXPECT_EQ(ibv_dereg_mr(mr), 0);
    EXPECT_EQ(ibv_destroy_cq(cq), 0);
    EXPECT_EQ(ibv_destroy_comp_channel(channel), 0);
    EXPECT_EQ(ibv_dealloc_pd(pd), 0);
    EXPECT_EQ(ibv_close_device(context), 0);
  }
  union ibv_gid gid() {
    union ibv_gid g {};
    EXPECT_EQ(ibv_query_gid(context, 1, 0, &g), 0);
    return g;
  }
  ibv_sge sge(std::size_t offset, std::uint32_t length) {
    return {reinterpret_cast<std::uintptr_t>(memory.data() + offset), length, mr->lkey};
  }
  int receive(ibv_qp* qp, std::uint64_t id, std::size_t offset, std::uint32_t length) {
    ibv_sge s = sge(offset, length);
    ibv_recv_wr wr{id, nullptr, &s, 1};
    ibv_recv_wr* bad = nullptr;
    return ibv_post_recv(qp, &wr, &bad);
  }
  int send(ibv_qp* qp, std::uint64_t id, std::size_t offset, std::uint32_t length,
           unsigned flags = IBV_SEND_SIGNALED) {
    ibv_sge s = sge(offset, length);
    ibv_send_wr wr{};
    wr.wr_id = id;
    wr.sg_list = &s;
    wr.num_sge = 1;
    wr.opcode = IBV_WR_SEND;
    wr.send_flags = flags;
    ibv_send_wr* bad = nullptr;
    return ibv_post_send(qp, &wr, &bad);
  }
  // The next completion, within twenty seconds; status GENERAL_ERR and wr_id ~0 when none came.
  ibv_wc next() {
    const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    ibv_wc wc{};
    while (std::chrono::steady_clock::now() < limit) {
      if (ibv_poll_cq(cq, 1, &wc) == 1) return wc;
      std::this_thread::yield();
    }
    wc.wr_id = ~0ull;
    wc.status = IBV_WC_GENERAL_ERR;
    return wc;
  }
  bool nothing_comes() {
    ibv_wc wc{};
    std::this_thread::sleep_for(milliseconds(5));
    return ibv_poll_cq(cq, 1, &wc) == 0;
  }
};

class VerbsLayer : public ::testing::Test {
 protected:
  void SetUp() override {
    set_real_verbs_for_test(&fabric.thread_verbs());
    for (int i = 0; i < processes; ++i) {
      p[i].host = i;
      fabric.plug(i, device(i));
      p[i].open();
    }
  }
  DeviceSpec device(int host) {
    DeviceSpec spec;
    ++devices_made;
    spec.name = "dev" + std::to_string(devices_made);
    names[host] = spec.name;
    spec.guid = 0x100 + static_cast<std::uint64_t>(devices_made);
    spec.first_key = static_cast<std::uint32_t>(1 + devices_made % 3);
    spec.distinct_rkeys = devices_made % 2 == 0;
    return spec;
  }
  void connect(ibv_qp* qp, Process& mine, std::uint32_t number, Process& other) {
    mine.act();
    to_init(qp);
    to_rtr(qp, number, other.gid());
    mine.act();
    to_rts(qp);
  }
  static void to_init(ibv_qp* qp) {
    ibv_qp_attr a{};
    a.qp_state = IBV_QPS_INIT;
    a.port_num = 1;
    a.qkey = kQkey;
    a.qp_access_flags = IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC;
    const int mask = IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT;
    ASSERT_EQ(ibv_modify_qp(qp, &a,
                            mask | (qp->qp_type == IBV_QPT_UD ? IBV_QP_QKEY : IBV_QP_ACCESS_FLAGS)),
              0);
  }
  void to_rtr(ibv_qp* qp, std::uint32_t number, const ibv_gid& gid) {
    ibv_qp_attr a{};
    a.qp_state = IBV_QPS_RTR;
    a.path_mtu = IBV_MTU_1024;
    a.dest_qp_num = number;
    a.rq_psn = kPsn;
    a.max_dest_rd_atomic = 1;
    a.min_rnr_timer = rnr_timer;
    a.ah_attr.is_global = 1;
    a.ah_attr.port_num = 1;
    a.ah_attr.grh.dgid = gid;
    int mask = IBV_QP_STATE;
    if (qp->qp_type != IBV_QPT_UD)
      mask |= IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN;
    if (qp->qp_type == IBV_QPT_RC) mask |= IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER;
    ASSERT_EQ(ibv_modify_qp(qp, &a, mask), 0);
  }
  void to_rts(ibv_qp* qp) {
    ibv_qp_attr a{};
    a.qp_state = IBV_QPS_RTS;
    a.sq_psn = kPsn;
    a.timeout = 14;
    a.retry_cnt = 7;
    a.rnr_retry = rnr_retry;
    a.max_rd_atomic = 1;
    int mask = IBV_QP_STATE | IBV_QP_SQ_PSN;
    if (qp->qp_type == IBV_QPT_RC)
      mask |= IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC;
    ASSERT_EQ(ibv_modify_qp(qp, &a, mask), 0);
  }
  // A connected pair, one end in each process.
  void pair(ibv_qp_type type, ibv_srq* srq1 = nullptr) {
    q[0] = p[0].make(type);
    q[1] = p[1].make(type, srq1);
    connect(q[0], p[0], q[1]->qp_num, p[1]);
    connect(q[1], p[1], q[0]->qp_num, p[0]);
  }
  // Rounds until nobody wants another, or `limit` of them. Returns how many.
  template <typename F>
  int rounds(F call, int limit = 20, Payloads payloads = {}) {
    std::vector<char> more(static_cast<std::size_t>(processes), 1);
    for (int round = 1; round <= limit; ++round) {
      Payloads next;
      bool any = false;
      for (int i = 0; i < processes; ++i) {
        char& wants = more[static_cast<std::size_t>(i)];
        if (wants == 0) continue;
        TransportAnswer answer = call(p[i], round, payloads);
        wants = answer.more ? 1 : 0;
        any = any || answer.more;
        if (!answer.payload.empty()) said[std::to_string(i)] = answer.payload;
        next[std::to_string(i)] = answer.payload;
      }
      payloads = std::move(next);
      if (!any) return round;
    }
    return limit + 1;
  }
  int quiesce() {
    ++epoch;
    const int count = rounds([&](Process& process, int round, const Payloads& payloads) {
      return process.quiesce(epoch, round, payloads);
    });
    EXPECT_LE(count, 20) << "no end of rounds";
    return count;
  }
  int resume() {
    const int count = rounds([&](Process& process, int round, const Payloads& payloads) {
      return process.resume(epoch, round, payloads);
    });
    EXPECT_LE(count, 20) << "no end of rounds";
    return count;
  }
  // The first rounds of a quiesce that is then given up.
  void quiesce_in_vain(int count) {
    ++epoch;
    rounds([&](Process& process, int round,
               const Payloads& payloads) { return process.quiesce(epoch, round, payloads); },
           count);
    resume();
  }
  // Of those that were told that theirs leaves.
  void replace_devices() {
    for (int i = 0; i < processes; ++i) {
      if (!p[i].device_leaves) continue;
      EXPECT_TRUE(fabric.unplug(i, names[i]).nothing());
      fabric.plug(i, device(i));
    }
  }
  void move() {
    quiesce();
    replace_devices();
    resume();
  }
  void TearDown() override {
    for (int i = 0; i < processes; ++i) p[i].close();
    EXPECT_TRUE(fabric.violations().empty()) << fabric.violations().front();
    Layer::set_current_for_test(nullptr);
  }

  Fabric fabric;
  int processes = kProcesses;
  Process p[kMostProcesses];
  ibv_qp* q[kProcesses] = {};
  std::string names[kMostProcesses];
  int devices_made = 0;
  std::uint64_t epoch = 0;
  Payloads said;  // what each process said last
  std::uint8_t rnr_timer = 1;
  std::uint8_t rnr_retry = 7;
};

}  // namespace symvirt::hooks::verbs::layer_test
