// The double does what the verbs manual pages and the InfiniBand specification say, where the layer
// relies on it.
#include "pmix-hooks/ranks/verbs/testing/fabric.h"

#include <gtest/gtest.h>
#include <poll.h>

#include <cerrno>
#include <cstring>

#include "pmix-hooks/ranks/verbs/testing/endpoint.h"

namespace symvirt::hooks::verbs::testing {
namespace {

using namespace std::chrono_literals;

DeviceSpec spec(std::uint64_t id) {
  DeviceSpec s;
  s.name = "double" + std::to_string(id);
  s.guid = id;
  s.lid = static_cast<std::uint16_t>(id);
  return s;
}

struct DoubleTest : ::testing::TestWithParam<bool> {
  DoubleTest() : fabric({.threads = GetParam()}) {
    fabric.plug(0, spec(1));
    fabric.plug(1, spec(2));
    a = std::make_unique<Endpoint>(fabric.verbs(0));
    b = std::make_unique<Endpoint>(fabric.verbs(1));
    for (std::size_t i = 0; i < a->memory.size(); ++i)
      a->memory[i] = static_cast<std::uint8_t>(i * 7);
  }
  void connect(ibv_qp_type type = IBV_QPT_RC, ConnectOptions options = {}) {
    qa = a->make_qp(type);
    qb = b->make_qp(type);
    ASSERT_EQ(a->connect(qa, *b, qb->qp_num, options), 0);
    ASSERT_EQ(b->connect(qb, *a, qa->qp_num, options), 0);
  }
  ibv_wc wc(Endpoint& of, std::chrono::milliseconds limit = 2s) {
    if (!GetParam()) fabric.run(20ms);
    return of.wait_wc(limit);
  }
  void expect_nothing(Endpoint& of) {
    EXPECT_EQ(wc(of, 20ms).status, kNothingCame) << "a completion too many";
  }
  bool same(std::size_t from, std::size_t to, std::size_t length) {
    return std::memcmp(a->memory.data() + from, b->memory.data() + to, length) == 0;
  }

  Fabric fabric;
  std::unique_ptr<Endpoint> a;
  std::unique_ptr<Endpoint> b;
  ibv_qp* qa = nullptr;
  ibv_qp* qb = nullptr;
};

INSTANTIATE_TEST_SUITE_P(Engine, DoubleTest, ::testing::Bool(),
                         [](const auto& i) { return i.param ? "Threads" : "Steps"; });

TEST_P(DoubleTest, SendArrivesInTheReceiveWithItsBytesAndCompletesOnBothSides) {
  connect();
  ASSERT_EQ(b->receive(qb, 7, 1000, 500), 0);
  ASSERT_EQ(a->send(qa, 5, 100, 300), 0);
  const ibv_wc got = wc(*b);
  EXPECT_EQ(got.status, IBV_WC_SUCCESS);
  EXPECT_EQ(got.opcode, IBV_WC_RECV);
  EXPECT_EQ(got.wr_id, 7u);
  EXPECT_EQ(got.byte_len, 300u);
  EXPECT_EQ(got.qp_num, qb->qp_num);
  EXPECT_TRUE(same(100, 1000, 300));
  const ibv_wc sent = wc(*a);
  EXPECT_EQ(sent.status, IBV_WC_SUCCESS);
  EXPECT_EQ(sent.wr_id, 5u);
  EXPECT_EQ(sent.opcode, IBV_WC_SEND);
}

TEST_P(DoubleTest, QueuePairNumbersBeginAt11WithEveryDevice) {
  EXPECT_EQ(a->make_qp()->qp_num, kFirstQpn);
  EXPECT_EQ(a->make_qp()->qp_num, kFirstQpn + 1);
  EXPECT_EQ(b->make_qp()->qp_num, kFirstQpn);
}

TEST_P(DoubleTest, BytesAreReadWhenTheWorkIsExecutedAndInlineOnesWhenItIsPosted) {
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
  if (GetParam()) GTEST_SKIP() << "memory of a posted work request is written to on purpose";
#endif
#endif
  connect();
  a->memory[0] = 1;
  ASSERT_EQ(a->send(qa, 1, 0, 1), 0);  // waits for a receive
  ASSERT_EQ(a->send(qa, 2, 0, 1, IBV_SEND_SIGNALED | IBV_SEND_INLINE), 0);
  a->memory[0] = 2;
  ASSERT_EQ(b->receive(qb, 1, 0, 1), 0);
  ASSERT_EQ(b->receive(qb, 2, 1, 1), 0);
  ASSERT_EQ(wc(*b).wr_id, 1u);
  ASSERT_EQ(wc(*b).wr_id, 2u);
  EXPECT_EQ(b->memory[1], 1);
  // With threads the first may have been on its way already.
  EXPECT_TRUE(b->memory[0] == 2 || (GetParam() && b->memory[0] == 1));
}

TEST_P(DoubleTest, ReadsWritesAndAtomicsMoveTheRightBytes) {
  connect();
  ibv_send_wr wr{};
  wr.send_flags = IBV_SEND_SIGNALED;
  wr.wr.rdma = {b->address(4096), b->mr->rkey};
  wr.opcode = IBV_WR_RDMA_WRITE;
  ASSERT_EQ(a->post(qa, wr, 0, 2000), 0);
  EXPECT_EQ(wc(*a).opcode, IBV_WC_RDMA_WRITE);
  EXPECT_TRUE(same(0, 4096, 2000));

  wr.opcode = IBV_WR_RDMA_READ;
  ASSERT_EQ(a->post(qa, wr, 8192, 2000), 0);
  const ibv_wc read = wc(*a);
  EXPECT_EQ(read.opcode, IBV_WC_RDMA_READ);
  EXPECT_EQ(read.byte_len, 2000u);
  EXPECT_TRUE(same(8192, 4096, 2000));

  const std::uint64_t start = 40;
  std::memcpy(b->memory.data() + 4096, &start, 8);
  wr.opcode = IBV_WR_ATOMIC_FETCH_AND_ADD;
  wr.wr.atomic = {b->address(4096), 2, 0, b->mr->rkey};
  ASSERT_EQ(a->post(qa, wr, 0, 8), 0);
  EXPECT_EQ(wc(*a).opcode, IBV_WC_FETCH_ADD);
  wr.opcode = IBV_WR_ATOMIC_CMP_AND_SWP;
  wr.wr.atomic = {b->address(4096), 42, 7, b->mr->rkey};
  ASSERT_EQ(a->post(qa, wr, 8, 8), 0);
  EXPECT_EQ(wc(*a).opcode, IBV_WC_COMP_SWAP);
  std::uint64_t values[3];
  std::memcpy(values, a->memory.data(), 16);
  std::memcpy(values + 2, b->memory.data() + 4096, 8);
  EXPECT_EQ(values[0], 40u);
  EXPECT_EQ(values[1], 42u);
  EXPECT_EQ(values[2], 7u);
}

TEST_P(DoubleTest, ImmediateDataComesWithSendsAndWrites) {
  connect();
  ASSERT_EQ(b->receive(qb, 1, 0, 100), 0);
  ASSERT_EQ(b->receive(qb, 2, 0, 0), 0);
  ibv_send_wr wr{};
  wr.imm_data = 0x11223344;
  wr.opcode = IBV_WR_SEND_WITH_IMM;
  ASSERT_EQ(a->post(qa, wr, 0, 10), 0);
  wr.opcode = IBV_WR_RDMA_WRITE_WITH_IMM;
  wr.wr.rdma = {b->address(2000), b->mr->rkey};
  ASSERT_EQ(a->post(qa, wr, 0, 50), 0);
  const ibv_wc first = wc(*b);
  EXPECT_EQ(first.wc_flags, IBV_WC_WITH_IMM);
  EXPECT_EQ(first.imm_data, 0x11223344u);
  const ibv_wc second = wc(*b);
  EXPECT_EQ(second.opcode, IBV_WC_RECV_RDMA_WITH_IMM);
  EXPECT_EQ(second.byte_len, 50u);
  EXPECT_TRUE(same(0, 2000, 50));
  expect_nothing(*a);  // unsignalled
}

TEST_P(DoubleTest, WithoutAReceiveASendWaitsForEverAndThenArrivesOnce) {
  connect();
  ASSERT_EQ(a->send(qa, 1, 0, 10), 0);
  expect_nothing(*a);
  ASSERT_EQ(b->receive(qb, 9, 0, 10), 0);
  EXPECT_EQ(wc(*b).wr_id, 9u);
  EXPECT_EQ(wc(*a).status, IBV_WC_SUCCESS);
  EXPECT_EQ(fabric.executed(), 1u);
}

TEST_P(DoubleTest, FreeSlotsComeBackWhenACompletionIsPolledNotBefore) {
  connect();
  for (int i = 0; i < 64; ++i) {
    ASSERT_EQ(b->receive(qb, i, 0, 10), 0);
    ASSERT_EQ(a->send(qa, i, 0, 10, i == 63 ? IBV_SEND_SIGNALED : 0), 0);
  }
  if (!GetParam()) fabric.run(1ms);
  while (fabric.executed() != 64) std::this_thread::yield();
  EXPECT_EQ(a->send(qa, 64, 0, 10), ENOMEM);
  EXPECT_EQ(b->receive(qb, 64, 0, 10), ENOMEM);
  EXPECT_EQ(wc(*a).wr_id, 63u);
  EXPECT_EQ(wc(*b).wr_id, 0u);
  EXPECT_EQ(a->send(qa, 64, 0, 10), 0);
  EXPECT_EQ(b->receive(qb, 64, 0, 10), 0);
}

TEST_P(DoubleTest, DatagramHasItsGrhInFrontAndNeedsTheRightKey) {
  qa = a->make_qp(IBV_QPT_UD);
  qb = b->make_qp(IBV_QPT_UD);
  ASSERT_EQ(a->connect(qa, *b, 0), 0);
  ASSERT_EQ(b->connect(qb, *a, 0), 0);
  ibv_ah_attr path = a->path_to(*b);
  ibv_ah* ah = a->v.create_ah(a->pd, &path);
  ASSERT_NE(ah, nullptr);
  ASSERT_EQ(b->receive(qb, 3, 0, 200), 0);
  ibv_send_wr wr{};
  wr.opcode = IBV_WR_SEND;
  wr.wr.ud = {ah, qb->qp_num, 0x9999};
  ASSERT_EQ(a->post(qa, wr, 0, 100), 0);  // dropped: wrong Q_Key
  wr.wr.ud.remote_qkey = 0x1234;
  ASSERT_EQ(a->post(qa, wr, 50, 100), 0);
  const ibv_wc got = wc(*b);
  EXPECT_EQ(got.byte_len, 140u);
  EXPECT_EQ(got.src_qp, qa->qp_num);
  EXPECT_TRUE(got.wc_flags & IBV_WC_GRH);
  EXPECT_TRUE(same(50, kGrhBytes, 100));
  auto* grh = reinterpret_cast<ibv_grh*>(b->memory.data());
  EXPECT_EQ(std::memcmp(&grh->sgid, &a->gid, 16), 0);
  ibv_wc copy = got;
  ibv_ah_attr back{};
  ASSERT_EQ(b->v.init_ah_from_wc(b->context, 1, &copy, grh, &back), 0);
  EXPECT_EQ(std::memcmp(&back.grh.dgid, &a->gid, 16), 0);
  EXPECT_EQ(a->v.destroy_ah(ah), 0);
}

TEST_P(DoubleTest, SharedReceiveQueueServesAllAndTellsItsLimitOnce) {
  ibv_srq_init_attr init{};
  init.attr = {16, 1, 0};
  b->srq = b->v.create_srq(b->pd, &init);
  connect();
  ibv_qp* qa2 = a->make_qp();
  ibv_qp* qb2 = b->make_qp();
  ASSERT_EQ(a->connect(qa2, *b, qb2->qp_num), 0);
  ASSERT_EQ(b->connect(qb2, *a, qa2->qp_num), 0);
  for (int i = 0; i < 4; ++i) ASSERT_EQ(b->receive(nullptr, i, i * 100, 100), 0);
  ibv_srq_attr attr{0, 0, 3};
  ASSERT_EQ(b->v.modify_srq(b->srq, &attr, IBV_SRQ_LIMIT), 0);
  ASSERT_EQ(a->send(qa, 1, 0, 10), 0);
  EXPECT_EQ(wc(*b).qp_num, qb->qp_num);
  ASSERT_EQ(a->send(qa2, 2, 0, 10), 0);
  EXPECT_EQ(wc(*b).qp_num, qb2->qp_num);
  ibv_async_event event{};
  ASSERT_EQ(b->v.get_async_event(b->context, &event), 0);
  EXPECT_EQ(event.event_type, IBV_EVENT_SRQ_LIMIT_REACHED);
  EXPECT_EQ(event.element.srq, b->srq);
  b->v.ack_async_event(&event);
  ASSERT_EQ(b->v.query_srq(b->srq, &attr), 0);
  EXPECT_EQ(attr.srq_limit, 0u);
}

TEST_P(DoubleTest, ArmedQueueTellsItsChannelOnceAndSolicitedOnlyOfSolicited) {
  connect();
  for (int i = 0; i < 4; ++i) ASSERT_EQ(b->receive(qb, i, 0, 10), 0);
  const auto readable = [&] {
    if (!GetParam()) fabric.run(5ms);
    pollfd p{b->channel->fd, POLLIN, 0};
    return poll(&p, 1, GetParam() ? 100 : 0) == 1;
  };
  ASSERT_EQ(a->send(qa, 0, 0, 10), 0);
  EXPECT_FALSE(readable()) << "not armed";
  ASSERT_EQ(b->context->ops.req_notify_cq(b->cq, 1), 0);
  ASSERT_EQ(a->send(qa, 1, 0, 10), 0);
  EXPECT_FALSE(readable()) << "not solicited";
  ASSERT_EQ(a->send(qa, 2, 0, 10, IBV_SEND_SOLICITED), 0);
  EXPECT_TRUE(readable());
  ibv_cq* cq = nullptr;
  void* context = nullptr;
  ASSERT_EQ(b->v.get_cq_event(b->channel, &cq, &context), 0);
  EXPECT_EQ(cq, b->cq);
  EXPECT_EQ(context, b.get());
  ASSERT_EQ(a->send(qa, 3, 0, 10, IBV_SEND_SOLICITED), 0);
  EXPECT_FALSE(readable()) << "armed only once";
  b->v.ack_cq_events(cq, 1);
}

TEST_P(DoubleTest, ObjectsInUseAreBusy) {
  connect();
  EXPECT_EQ(a->v.destroy_cq(a->cq), EBUSY);
  EXPECT_EQ(a->v.dealloc_pd(a->pd), EBUSY);
  EXPECT_EQ(a->v.destroy_comp_channel(a->channel), EBUSY);
}

TEST_P(DoubleTest, UnplugOfAHeldDeviceIsAViolationAndWhatHoldsItIsKnown) {
  connect();
  const Held held = fabric.held(0, "double1");
  EXPECT_EQ(held.contexts, 1);
  EXPECT_EQ(held.qps, 1);
  EXPECT_EQ(held.mrs, 1);
  EXPECT_EQ(fabric.unplug(0, "double1").contexts, 1);
  ASSERT_EQ(fabric.violations().size(), 1u);
  ibv_port_attr port{};
  EXPECT_EQ(a->v.query_port(a->context, 1, &port), ENODEV);
  EXPECT_EQ(a->v.alloc_pd(a->context), nullptr);
  int count = 1;
  ibv_device** list = a->v.get_device_list(&count);
  EXPECT_EQ(count, 0);
  a->v.free_device_list(list);
}

TEST_P(DoubleTest, DeviceThatNobodyHoldsGoesAndAnotherComesWithOldNumbers) {
  connect();
  const std::uint32_t old_qpn = qa->qp_num;
  a.reset();
  EXPECT_TRUE(fabric.unplug(0, "double1").nothing());
  DeviceSpec other = spec(9);
  fabric.plug(0, other);
  a = std::make_unique<Endpoint>(fabric.verbs(0));
  EXPECT_STREQ(a->v.get_device_name(a->context->device), "double9");
  EXPECT_EQ(a->make_qp()->qp_num, old_qpn);
  EXPECT_TRUE(fabric.violations().empty());
}

TEST_P(DoubleTest, ContextClosedWithObjectsLeftIsAViolation) {
  const RealVerbs& v = fabric.verbs(0);
  ibv_device** list = v.get_device_list(nullptr);
  ibv_context* context = v.open_device(list[0]);
  v.free_device_list(list);
  ASSERT_NE(v.alloc_pd(context), nullptr);
  EXPECT_EQ(v.close_device(context), 0);
  EXPECT_EQ(fabric.violations().size(), 1u);
}

}  // namespace
}  // namespace symvirt::hooks::verbs::testing
