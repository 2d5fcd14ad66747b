// The layer over the provider double: two "processes" (layers) on two hosts, whose devices are
// taken away and replaced.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>

#include <cstring>
#include <thread>

#include "pmix-hooks/ranks/verbs/real_verbs.h"
#include "pmix-hooks/ranks/verbs/testing/fabric.h"
#include "pmix-hooks/ranks/verbs/verbs_transport.h"

namespace symvirt::hooks::verbs {
namespace {

using testing::DeviceSpec;
using testing::Fabric;
using testing::set_thread_host;

constexpr int kProcesses = 2;
constexpr std::uint32_t kPsn = 0x1234;
constexpr std::uint32_t kQkey = 0x11111111;

Patience quick() {
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
  ibv_context* context = nullptr;
  ibv_pd* pd = nullptr;
  ibv_comp_channel* channel = nullptr;
  ibv_cq* cq = nullptr;
  ibv_mr* mr = nullptr;
  std::vector<std::uint8_t> memory = std::vector<std::uint8_t>(1 << 16);

  void act() {
    set_thread_host(host);
    Layer::set_current_for_test(&layer);
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
  ibv_qp* make(ibv_qp_type type, ibv_srq* srq = nullptr) {
    act();
    ibv_qp_init_attr init{};
    init.send_cq = init.recv_cq = cq;
    init.srq = srq;
    init.cap = {64, srq == nullptr ? 64u : 0u, 2, 2, 64};
    init.qp_type = type;
    ibv_qp* qp = ibv_create_qp(pd, &init);
    EXPECT_NE(qp, nullptr);
    return qp;
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
    for (int i = 0; i < kProcesses; ++i) {
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
  static void to_rtr(ibv_qp* qp, std::uint32_t number, const ibv_gid& gid) {
    ibv_qp_attr a{};
    a.qp_state = IBV_QPS_RTR;
    a.path_mtu = IBV_MTU_1024;
    a.dest_qp_num = number;
    a.rq_psn = kPsn;
    a.max_dest_rd_atomic = 1;
    a.min_rnr_timer = 1;
    a.ah_attr.is_global = 1;
    a.ah_attr.port_num = 1;
    a.ah_attr.grh.dgid = gid;
    int mask = IBV_QP_STATE;
    if (qp->qp_type != IBV_QPT_UD)
      mask |= IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN;
    if (qp->qp_type == IBV_QPT_RC) mask |= IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER;
    ASSERT_EQ(ibv_modify_qp(qp, &a, mask), 0);
  }
  static void to_rts(ibv_qp* qp) {
    ibv_qp_attr a{};
    a.qp_state = IBV_QPS_RTS;
    a.sq_psn = kPsn;
    a.timeout = 14;
    a.retry_cnt = 7;
    a.rnr_retry = 7;
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
  // Rounds until nobody wants another. Returns how many.
  template <typename F>
  int rounds(F call, int limit = 20) {
    Payloads payloads;
    bool more[kProcesses] = {true, true};
    for (int round = 1; round <= limit; ++round) {
      Payloads next;
      for (int i = 0; i < kProcesses; ++i) {
        if (!more[i]) continue;
        p[i].act();
        TransportAnswer answer = call(p[i].transport, static_cast<std::uint32_t>(round), payloads);
        more[i] = answer.more;
        next[static_cast<std::uint32_t>(i)] = answer.payload;
      }
      payloads = std::move(next);
      if (!more[0] && !more[1]) return round;
    }
    ADD_FAILURE() << "no end of rounds";
    return limit;
  }
  int quiesce() {
    ++epoch;
    return rounds([&](VerbsTransport& t, std::uint32_t round, const Payloads& payloads) {
      return t.quiesce(epoch, round, payloads);
    });
  }
  int resume() {
    return rounds([&](VerbsTransport& t, std::uint32_t round, const Payloads& payloads) {
      return t.resume(epoch, round, payloads);
    });
  }
  void replace_devices() {
    for (int i = 0; i < kProcesses; ++i) {
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
    EXPECT_TRUE(fabric.violations().empty()) << fabric.violations().front();
    Layer::set_current_for_test(nullptr);
  }

  Fabric fabric;
  Process p[kProcesses];
  ibv_qp* q[kProcesses] = {};
  std::string names[kProcesses];
  int devices_made = 0;
  std::uint64_t epoch = 0;
};

TEST_F(VerbsLayer, PassesThrough) {
  pair(IBV_QPT_RC);
  std::strcpy(reinterpret_cast<char*>(p[0].memory.data()), "hello");
  EXPECT_EQ(p[1].receive(q[1], 7, 1000, 100), 0);
  EXPECT_EQ(p[0].send(q[0], 8, 0, 6), 0);
  EXPECT_EQ(p[0].next().wr_id, 8u);
  const ibv_wc wc = p[1].next();
  EXPECT_EQ(wc.wr_id, 7u);
  EXPECT_EQ(wc.byte_len, 6u);
  EXPECT_EQ(wc.qp_num, q[1]->qp_num);
  EXPECT_STREQ(reinterpret_cast<char*>(p[1].memory.data() + 1000), "hello");
}

TEST_F(VerbsLayer, PostedReceivesAndNumbersOutliveTheDevice) {
  pair(IBV_QPT_RC);
  const std::uint32_t number = q[1]->qp_num;
  const union ibv_gid gid = p[1].gid();
  for (std::uint64_t i = 0; i < 8; ++i) EXPECT_EQ(p[1].receive(q[1], 100 + i, i * 100, 100), 0);
  for (int move_number = 0; move_number < 4; ++move_number) {
    move();
    EXPECT_EQ(q[1]->qp_num, number);
    p[1].act();
    EXPECT_EQ(p[1].gid().global.interface_id, gid.global.interface_id);
    for (std::uint64_t i = 0; i < 2; ++i) {
      const auto id = static_cast<std::uint64_t>(move_number) * 2 + i;
      p[0].memory[0] = static_cast<std::uint8_t>(id);
      EXPECT_EQ(p[0].send(q[0], id, 0, 1), 0);
      EXPECT_EQ(p[0].next().wr_id, id);
      const ibv_wc wc = p[1].next();
      EXPECT_EQ(wc.status, IBV_WC_SUCCESS);
      EXPECT_EQ(wc.wr_id, 100 + id);
      EXPECT_EQ(wc.qp_num, number);
      EXPECT_EQ(p[1].memory[id * 100], id);
    }
  }
}

TEST_F(VerbsLayer, SendsPostedDuringAQuiesceComeAfterIt) {
  pair(IBV_QPT_RC);
  for (std::uint64_t i = 0; i < 20; ++i) p[1].receive(q[1], i, i * 8, 8);
  for (std::uint64_t i = 0; i < 5; ++i) {
    std::memcpy(p[0].memory.data(), &i, sizeof i);
    EXPECT_EQ(
        p[0].send(q[0], i, 0, 8, i == 2 ? IBV_SEND_SIGNALED | IBV_SEND_INLINE : IBV_SEND_INLINE),
        0);
  }
  quiesce();
  for (std::uint64_t i = 5; i < 10; ++i) {
    std::memcpy(p[0].memory.data(), &i, sizeof i);
    EXPECT_EQ(p[0].send(q[0], i, 0, 8, IBV_SEND_SIGNALED | IBV_SEND_INLINE), 0);
  }
  replace_devices();
  resume();
  for (const std::uint64_t id : {2, 5, 6, 7, 8, 9}) EXPECT_EQ(p[0].next().wr_id, id);
  EXPECT_TRUE(p[0].nothing_comes());
  for (std::uint64_t i = 0; i < 10; ++i) {
    EXPECT_EQ(p[1].next().wr_id, i);
    std::uint64_t got = 0;
    std::memcpy(&got, p[1].memory.data() + i * 8, sizeof got);
    EXPECT_EQ(got, i);
  }
  EXPECT_TRUE(p[1].nothing_comes());
}

TEST_F(VerbsLayer, ASendWithoutAReceiverIsTakenBackAndRepeatedOnce) {
  pair(IBV_QPT_RC);
  for (int round = 0; round < 5; ++round) {
    const std::uint64_t base = static_cast<std::uint64_t>(round) * 10;
    p[1].receive(q[1], base, 0, 8);
    for (std::uint64_t i = 0; i < 4; ++i) {
      const std::uint64_t value = base + i;
      std::memcpy(p[0].memory.data(), &value, sizeof value);
      EXPECT_EQ(p[0].send(q[0], value, 0, 8, IBV_SEND_SIGNALED | IBV_SEND_INLINE), 0);
    }
    move();
    for (std::uint64_t i = 1; i < 4; ++i) EXPECT_EQ(p[1].receive(q[1], base + i, i * 8, 8), 0);
    for (std::uint64_t i = 0; i < 4; ++i) {
      const ibv_wc sent = p[0].next();
      EXPECT_EQ(sent.status, IBV_WC_SUCCESS);
      EXPECT_EQ(sent.wr_id, base + i);
      const ibv_wc got = p[1].next();
      EXPECT_EQ(got.status, IBV_WC_SUCCESS);
      EXPECT_EQ(got.wr_id, base + i);
      std::uint64_t value = 0;
      std::memcpy(&value, p[1].memory.data() + i * 8, sizeof value);
      EXPECT_EQ(value, base + i);
    }
    EXPECT_TRUE(p[0].nothing_comes());
    EXPECT_TRUE(p[1].nothing_comes());
  }
}

TEST_F(VerbsLayer, RemoteKeysAreTranslatedPerPeer) {
  pair(IBV_QPT_RC);
  const std::uint64_t there = reinterpret_cast<std::uintptr_t>(p[1].memory.data());
  for (int round = 0; round < 3; ++round) {
    move();
    p[0].memory[5] = static_cast<std::uint8_t>(50 + round);
    ibv_sge s = p[0].sge(5, 1);
    ibv_send_wr wr{};
    wr.wr_id = 1;
    wr.sg_list = &s;
    wr.num_sge = 1;
    wr.opcode = IBV_WR_RDMA_READ;
    wr.send_flags = IBV_SEND_SIGNALED;
    wr.wr.rdma.remote_addr = there;
    wr.wr.rdma.rkey = p[1].mr->rkey;
    p[1].memory[0] = static_cast<std::uint8_t>(90 + round);
    ibv_send_wr* bad = nullptr;
    ASSERT_EQ(ibv_post_send(q[0], &wr, &bad), 0);
    EXPECT_EQ(p[0].next().status, IBV_WC_SUCCESS);
    EXPECT_EQ(p[0].memory[5], 90 + round);
  }
}

TEST_F(VerbsLayer, NewObjectsAfterAMoveDoNotCollideWithCarriedOnes) {
  pair(IBV_QPT_RC);
  move();
  ibv_qp* old[kProcesses] = {q[0], q[1]};
  pair(IBV_QPT_RC);  // q is the new pair
  EXPECT_NE(q[0]->qp_num, old[0]->qp_num);
  EXPECT_NE(q[1]->qp_num, old[1]->qp_num);
  for (int i = 0; i < 2; ++i) {
    p[1].receive(old[1], 1, 0, 8);
    p[1].receive(q[1], 2, 8, 8);
    p[0].send(old[0], 3, 0, 1);
    EXPECT_EQ(p[1].next().wr_id, 1u);
    p[0].send(q[0], 4, 0, 1);
    const ibv_wc wc = p[1].next();
    EXPECT_EQ(wc.wr_id, 2u);
    EXPECT_EQ(wc.qp_num, q[1]->qp_num);
    EXPECT_EQ(p[0].next().status, IBV_WC_SUCCESS);
    EXPECT_EQ(p[0].next().status, IBV_WC_SUCCESS);
    move();
  }
}

TEST_F(VerbsLayer, DatagramsFollowTheirDestination) {
  q[0] = p[0].make(IBV_QPT_UD);
  p[1].make(IBV_QPT_UD);  // so that the numbers of both sides differ
  q[1] = p[1].make(IBV_QPT_UD);
  for (int i = 0; i < kProcesses; ++i) {
    to_init(q[i]);
    to_rtr(q[i], 0, {});
    to_rts(q[i]);
  }
  ibv_ah_attr attr{};
  attr.is_global = 1;
  attr.port_num = 1;
  attr.grh.dgid = p[1].gid();
  p[0].act();
  ibv_ah* ah = ibv_create_ah(p[0].pd, &attr);
  ASSERT_NE(ah, nullptr);
  for (int round = 0; round < 4; ++round) {
    EXPECT_EQ(p[1].receive(q[1], 5, 0, 100), 0);
    if (round > 0) move();
    ibv_sge s = p[0].sge(0, 8);
    ibv_send_wr wr{};
    wr.wr_id = 6;
    wr.sg_list = &s;
    wr.num_sge = 1;
    wr.opcode = IBV_WR_SEND;
    wr.send_flags = IBV_SEND_SIGNALED;
    wr.wr.ud = {ah, q[1]->qp_num, kQkey};
    ibv_send_wr* bad = nullptr;
    ASSERT_EQ(ibv_post_send(q[0], &wr, &bad), 0);
    EXPECT_EQ(p[0].next().wr_id, 6u);
    const ibv_wc wc = p[1].next();
    EXPECT_EQ(wc.wr_id, 5u);
    EXPECT_EQ(wc.src_qp, q[0]->qp_num);
  }
}

TEST_F(VerbsLayer, SharedReceivesAreCarriedInAnyOrder) {
  p[1].act();
  ibv_srq_init_attr init{};
  init.attr = {64, 1, 0};
  ibv_srq* srq = ibv_create_srq(p[1].pd, &init);
  ASSERT_NE(srq, nullptr);
  pair(IBV_QPT_RC, srq);
  std::uint64_t posted = 0;
  const auto post = [&] {
    ibv_sge s = p[1].sge(posted % 64 * 8, 8);
    ibv_recv_wr wr{1000 + posted++, nullptr, &s, 1};
    ibv_recv_wr* bad = nullptr;
    ASSERT_EQ(ibv_post_srq_recv(srq, &wr, &bad), 0);
  };
  for (int i = 0; i < 10; ++i) post();
  std::uint64_t received = 0;
  for (int round = 0; round < 10; ++round) {
    for (std::uint64_t i = 0; i < 7; ++i) EXPECT_EQ(p[0].send(q[0], i, 0, 8), 0);
    move();
    for (std::uint64_t i = 0; i < 7; ++i) EXPECT_EQ(p[0].next().wr_id, i);
    for (int i = 0; i < 7; ++i) {
      EXPECT_EQ(p[1].next().wr_id, 1000 + received++);
      post();
    }
  }
}

TEST_F(VerbsLayer, EventsComeThroughTheSameDescriptor) {
  pair(IBV_QPT_RC);
  const int fd = p[1].channel->fd;
  ASSERT_EQ(ibv_req_notify_cq(p[1].cq, 0), 0);
  EXPECT_EQ(p[1].receive(q[1], 1, 0, 8), 0);
  move();
  EXPECT_EQ(p[1].channel->fd, fd);
  pollfd waiting{fd, POLLIN, 0};
  EXPECT_EQ(poll(&waiting, 1, 20), 0);
  EXPECT_EQ(p[0].send(q[0], 2, 0, 8), 0);
  EXPECT_EQ(poll(&waiting, 1, 1000), 1);
  ibv_cq* cq = nullptr;
  void* cq_context = nullptr;
  ASSERT_EQ(ibv_get_cq_event(p[1].channel, &cq, &cq_context), 0);
  EXPECT_EQ(cq, p[1].cq);
  EXPECT_EQ(cq_context, &p[1]);
  ibv_ack_cq_events(cq, 1);
  EXPECT_EQ(p[1].next().wr_id, 1u);
  fcntl(fd, F_SETFL, O_NONBLOCK);
  EXPECT_EQ(ibv_get_cq_event(p[1].channel, &cq, &cq_context), -1);
  EXPECT_EQ(errno, EAGAIN);
}

TEST_F(VerbsLayer, AQuiesceGivenUpInAnyRoundIsUndone) {
  pair(IBV_QPT_RC);
  for (int given_up = 1; given_up <= 4; ++given_up) {
    SCOPED_TRACE(given_up);
    p[1].receive(q[1], 1, 0, 8);
    EXPECT_EQ(p[0].send(q[0], 2, 0, 8), 0);
    EXPECT_EQ(p[0].send(q[0], 3, 0, 8), 0);  // no receiver
    ++epoch;
    Payloads payloads;
    for (int round = 1; round <= given_up; ++round) {
      Payloads next;
      for (int i = 0; i < kProcesses; ++i) {
        // In the last round only one of them gets its turn.
        if (round == given_up && i == 1) continue;
        p[i].act();
        next[static_cast<std::uint32_t>(i)] =
            p[i].transport.quiesce(epoch, static_cast<std::uint32_t>(round), payloads).payload;
      }
      payloads = std::move(next);
    }
    resume();
    p[1].receive(q[1], 4, 0, 8);
    EXPECT_EQ(p[0].next().wr_id, 2u);
    EXPECT_EQ(p[0].next().wr_id, 3u);
    EXPECT_EQ(p[1].next().wr_id, 1u);
    EXPECT_EQ(p[1].next().wr_id, 4u);
    EXPECT_TRUE(p[0].nothing_comes());
    EXPECT_TRUE(p[1].nothing_comes());
  }
}

}  // namespace
}  // namespace symvirt::hooks::verbs
