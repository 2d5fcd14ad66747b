// What the double does with work that cannot be done, with queue pairs that are stopped, and with
// numbers that do not fit: the cases a layer that rebuilds queue pairs must survive.
#include <gtest/gtest.h>

#include <cerrno>
#include <memory>

#include "pmix-hooks/ranks/verbs/testing/endpoint.h"
#include "pmix-hooks/ranks/verbs/testing/fabric.h"

namespace symvirt::hooks::verbs::testing {
namespace {

using namespace std::chrono_literals;

struct DoubleErrors : ::testing::Test {
  explicit DoubleErrors(Options options = {.threads = false, .hold_ack = 0, .late = 0})
      : fabric(options) {
    for (int host = 0; host < 2; ++host) {
      DeviceSpec s;
      s.name = "double" + std::to_string(host);
      s.guid = s.lid = static_cast<std::uint16_t>(host + 1);
      s.ethernet = false;
      fabric.plug(host, s);
    }
    a = std::make_unique<Endpoint>(fabric.verbs(0));
    b = std::make_unique<Endpoint>(fabric.verbs(1));
  }
  void connect(ConnectOptions oa = {}, ConnectOptions ob = {}, ibv_qp_type type = IBV_QPT_RC) {
    qa = a->make_qp(type);
    qb = b->make_qp(type);
    ASSERT_EQ(a->connect(qa, *b, qb->qp_num, oa), 0);
    ASSERT_EQ(b->connect(qb, *a, qa->qp_num, ob), 0);
  }
  // Of the next completion, for which a slow machine has long.
  ibv_wc_status status(Endpoint& of) {
    ibv_wc_status got = kNothingCame;
    for (int turns = 0; turns < 2000 && got == kNothingCame; ++turns) {
      fabric.run(5ms);
      got = of.wait_wc(0ms).status;
    }
    return got;
  }
  bool nothing_comes(Endpoint& at) {
    fabric.run(5ms);
    return at.wait_wc(0ms).status == kNothingCame;
  }
  int post_write_to(std::uint64_t address, std::uint32_t rkey, std::uint32_t length) {
    ibv_send_wr wr{};
    wr.opcode = IBV_WR_RDMA_WRITE;
    wr.wr.rdma = {address, rkey};
    return a->post(qa, wr, 0, length);
  }
  ibv_wc_status write_to(std::uint64_t address, std::uint32_t rkey, std::uint32_t length) {
    EXPECT_EQ(post_write_to(address, rkey, length), 0);
    return status(*a);
  }

  Fabric fabric;
  std::unique_ptr<Endpoint> a;
  std::unique_ptr<Endpoint> b;
  ibv_qp* qa = nullptr;
  ibv_qp* qb = nullptr;
};

TEST_F(DoubleErrors, TransitionsTheTableDoesNotHaveAreInvalid) {
  qa = a->make_qp();
  EXPECT_EQ(a->to_rts(qa), EINVAL);
  EXPECT_EQ(a->to_rtr(qa, *b, 0x11), EINVAL);
  EXPECT_EQ(a->send(qa, 1, 0, 1), EINVAL);
  EXPECT_EQ(a->receive(qa, 1, 0, 1), EINVAL);
  ASSERT_EQ(a->to_init(qa), 0);
  EXPECT_EQ(a->receive(qa, 1, 0, 1), 0);
  EXPECT_EQ(a->send(qa, 1, 0, 1), EINVAL);
  EXPECT_EQ(a->to_rts(qa), EINVAL);
  ibv_qp_attr attr{};
  attr.qp_state = IBV_QPS_RTR;
  EXPECT_EQ(a->v.modify_qp(qa, &attr, IBV_QP_STATE), EINVAL) << "attributes are missing";
  ASSERT_EQ(a->to_rtr(qa, *b, 0x11), 0);
  EXPECT_EQ(a->send(qa, 1, 0, 1), EINVAL);
  ASSERT_EQ(a->to_rts(qa), 0);
  EXPECT_EQ(a->to_rtr(qa, *b, 0x11), EINVAL);
  EXPECT_EQ(a->state(qa), IBV_QPS_RTS);
  ASSERT_EQ(a->set_state(qa, IBV_QPS_ERR), 0);
  EXPECT_EQ(a->to_rts(qa), EINVAL);
  ASSERT_EQ(a->set_state(qa, IBV_QPS_RESET), 0);
  EXPECT_EQ(a->connect(qa, *b, 0x11), 0);
}

TEST_F(DoubleErrors, StoppedQueuePairFlushesAllInTheOrderOfPosting) {
  connect();
  for (int i = 0; i < 3; ++i) ASSERT_EQ(a->send(qa, i, 0, 1, i == 1 ? IBV_SEND_SIGNALED : 0), 0);
  for (int i = 10; i < 12; ++i) ASSERT_EQ(a->receive(qa, i, 0, 1), 0);
  ASSERT_EQ(a->set_state(qa, IBV_QPS_ERR), 0);
  fabric.run();
  ASSERT_EQ(a->send(qa, 3, 0, 1), 0);
  ASSERT_EQ(a->receive(qa, 12, 0, 1), 0);
  fabric.run();
  for (const unsigned id : {0, 1, 2, 10, 11, 3, 12}) {
    const ibv_wc wc = a->wait_wc(0ms);
    EXPECT_EQ(wc.status, IBV_WC_WR_FLUSH_ERR);
    EXPECT_EQ(wc.wr_id, id);
  }
}

TEST_F(DoubleErrors, SendThatWasExecutedIsFlushedWhenItsAcknowledgementHadNotCome) {
  connect();
  fabric.hold_acks(true);
  ASSERT_EQ(b->receive(qb, 1, 0, 1), 0);
  ASSERT_EQ(a->send(qa, 1, 0, 1), 0);
  EXPECT_EQ(status(*b), IBV_WC_SUCCESS);
  ASSERT_EQ(a->set_state(qa, IBV_QPS_ERR), 0);
  EXPECT_EQ(status(*a), IBV_WC_WR_FLUSH_ERR);
}

struct DoubleLate : DoubleErrors {
  DoubleLate() : DoubleErrors({.threads = false, .late = 100, .late_by = 1000us}) {}
};

TEST_F(DoubleLate, SendMayArriveAfterItWasFlushed) {
  connect();
  ASSERT_EQ(a->send(qa, 1, 0, 1), 0);
  ASSERT_EQ(a->set_state(qa, IBV_QPS_ERR), 0);
  fabric.run();
  EXPECT_EQ(a->wait_wc(0ms).status, IBV_WC_WR_FLUSH_ERR);
  ASSERT_EQ(b->receive(qb, 1, 0, 1), 0);
  EXPECT_EQ(status(*b), IBV_WC_SUCCESS);
}

TEST_F(DoubleLate, WorkPostedToAStoppedQueuePairNeverLeaves) {
  connect();
  ASSERT_EQ(b->receive(qb, 1, 0, 1), 0);
  ASSERT_EQ(a->set_state(qa, IBV_QPS_ERR), 0);
  ASSERT_EQ(a->send(qa, 1, 0, 1), 0);
  EXPECT_EQ(status(*a), IBV_WC_WR_FLUSH_ERR);
  EXPECT_TRUE(nothing_comes(*b));
}

TEST_F(DoubleErrors, OldPsnIsAcknowledgedAndNotExecuted) {
  connect({.sq_psn = 99}, {.rq_psn = 100});
  ASSERT_EQ(b->receive(qb, 1, 0, 1), 0);
  ASSERT_EQ(a->send(qa, 1, 0, 1), 0);
  EXPECT_EQ(status(*a), IBV_WC_SUCCESS);
  EXPECT_TRUE(nothing_comes(*b)) << "lost: this is what wrong PSNs do";
  ASSERT_EQ(a->send(qa, 2, 0, 1), 0);
  EXPECT_EQ(status(*b), IBV_WC_SUCCESS) << "the next one has the number that is expected";
}

TEST_F(DoubleErrors, FuturePsnEndsInRetryExceeded) {
  connect({.sq_psn = 101}, {.rq_psn = 100});
  ASSERT_EQ(b->receive(qb, 1, 0, 1), 0);
  ASSERT_EQ(a->send(qa, 1, 0, 1), 0);
  ASSERT_EQ(a->send(qa, 2, 0, 1), 0);
  EXPECT_EQ(status(*a), IBV_WC_RETRY_EXC_ERR);
  EXPECT_EQ(status(*a), IBV_WC_WR_FLUSH_ERR);
  EXPECT_EQ(a->state(qa), IBV_QPS_ERR);
  EXPECT_EQ(qa->state, IBV_QPS_RTS) << "libibverbs is not told";
}

TEST_F(DoubleErrors, PeerConnectedToSomebodyElseDoesNotAnswer) {
  connect();
  ibv_qp* other = a->make_qp();
  ASSERT_EQ(a->connect(other, *b, qb->qp_num), 0);
  ASSERT_EQ(b->receive(qb, 1, 0, 1), 0);
  ASSERT_EQ(a->send(other, 1, 0, 1), 0);
  EXPECT_EQ(status(*a), IBV_WC_RETRY_EXC_ERR);
  EXPECT_TRUE(nothing_comes(*b));
}

TEST_F(DoubleErrors, RnrRetriesRunOut) {
  connect({.rnr_retry = 2});
  ASSERT_EQ(a->send(qa, 1, 0, 1), 0);
  EXPECT_EQ(status(*a), IBV_WC_RNR_RETRY_EXC_ERR);
  EXPECT_EQ(b->state(qb), IBV_QPS_RTS) << "the receiver has not done anything wrong";
}

TEST_F(DoubleErrors, ReceiveThatIsTooSmallFailsBothSides) {
  connect();
  ASSERT_EQ(b->receive(qb, 1, 0, 9), 0);
  ASSERT_EQ(a->send(qa, 1, 0, 10), 0);
  EXPECT_EQ(status(*b), IBV_WC_LOC_LEN_ERR);
  EXPECT_EQ(status(*a), IBV_WC_REM_INV_REQ_ERR);
  EXPECT_EQ(b->state(qb), IBV_QPS_ERR);
}

TEST_F(DoubleErrors, KeysAreCheckedForBoundsAccessAndDomain) {
  connect();
  EXPECT_EQ(write_to(b->address(b->memory.size() - 9), b->mr->rkey, 10), IBV_WC_REM_ACCESS_ERR);
  connect();
  EXPECT_EQ(write_to(b->address(0), b->mr->rkey + 0x100, 10), IBV_WC_REM_ACCESS_ERR);
  connect();
  ibv_pd* other = b->v.alloc_pd(b->context);
  ibv_mr* foreign = b->v.reg_mr(other, b->memory.data(), 100, kAllAccess);
  EXPECT_EQ(write_to(b->address(0), foreign->rkey, 10), IBV_WC_REM_ACCESS_ERR);
  b->v.dereg_mr(foreign);
  EXPECT_EQ(b->v.dealloc_pd(other), 0);
  connect();
  ibv_mr* read_only = b->v.reg_mr(b->pd, b->memory.data(), 100, IBV_ACCESS_REMOTE_READ);
  EXPECT_EQ(write_to(b->address(0), read_only->rkey, 10), IBV_WC_REM_ACCESS_ERR);
  b->v.dereg_mr(read_only);
  connect({}, {.access = IBV_ACCESS_REMOTE_READ});
  EXPECT_EQ(write_to(b->address(0), b->mr->rkey, 10), IBV_WC_REM_ACCESS_ERR);
  connect();
  EXPECT_EQ(post_write_to(b->address(0), b->mr->rkey, 10), 0);
  EXPECT_TRUE(nothing_comes(*a)) << "good, and unsignalled";
}

TEST_F(DoubleErrors, LocalKeyOfADeregisteredRegionIsAProtectionError) {
  connect();
  ibv_sge sge = a->sge(0, 10);
  sge.lkey += 0x100;
  ibv_send_wr wr{};
  wr.opcode = IBV_WR_SEND;
  wr.sg_list = &sge;
  wr.num_sge = 1;
  ibv_send_wr* bad = nullptr;
  ASSERT_EQ(b->receive(qb, 1, 0, 10), 0);
  ASSERT_EQ(a->context->ops.post_send(qa, &wr, &bad), 0);
  EXPECT_EQ(status(*a), IBV_WC_LOC_PROT_ERR);
  EXPECT_TRUE(nothing_comes(*b));
}

TEST_F(DoubleErrors, UnreliableSendsCompleteWhetherTheyArriveOrNot) {
  connect({}, {}, IBV_QPT_UC);
  ASSERT_EQ(a->send(qa, 1, 0, 1), 0);
  EXPECT_EQ(status(*a), IBV_WC_SUCCESS);
  ASSERT_EQ(b->receive(qb, 1, 0, 1), 0);
  ASSERT_EQ(a->send(qa, 2, 0, 1), 0);
  EXPECT_EQ(status(*b), IBV_WC_SUCCESS);
  EXPECT_TRUE(nothing_comes(*b));
}

TEST_F(DoubleErrors, DrainedSendQueueSaysSoAndGoesOnLater) {
  connect();
  ibv_qp_attr attr{};
  attr.qp_state = IBV_QPS_SQD;
  attr.en_sqd_async_notify = 1;
  ASSERT_EQ(a->v.modify_qp(qa, &attr, IBV_QP_STATE | IBV_QP_EN_SQD_ASYNC_NOTIFY), 0);
  ASSERT_EQ(b->receive(qb, 1, 0, 1), 0);
  ASSERT_EQ(a->send(qa, 1, 0, 1), 0);
  EXPECT_TRUE(nothing_comes(*b));
  ibv_async_event event{};
  ASSERT_EQ(a->v.get_async_event(a->context, &event), 0);
  EXPECT_EQ(event.event_type, IBV_EVENT_SQ_DRAINED);
  a->v.ack_async_event(&event);
  ASSERT_EQ(a->set_state(qa, IBV_QPS_RTS), 0);
  EXPECT_EQ(status(*b), IBV_WC_SUCCESS);
}

TEST_F(DoubleErrors, OverrunCompletionQueueTellsAndTakesNoMore) {
  Endpoint small(fabric.verbs(0), 2);
  ibv_qp* qp = small.make_qp();
  ASSERT_EQ(small.to_init(qp), 0);
  ASSERT_EQ(small.set_state(qp, IBV_QPS_ERR), 0);
  for (int i = 0; i < 3; ++i) ASSERT_EQ(small.receive(qp, i, 0, 1), 0);
  fabric.run();
  ibv_async_event event{};
  ASSERT_EQ(small.v.get_async_event(small.context, &event), 0);
  EXPECT_EQ(event.event_type, IBV_EVENT_CQ_ERR);
  small.v.ack_async_event(&event);
}

TEST_F(DoubleErrors, PortThatIsDownLosesWhatIsSentAndSaysSo) {
  connect({.retry_cnt = 0});
  fabric.set_port(0, "double0", false);
  ASSERT_EQ(b->receive(qb, 1, 0, 1), 0);
  ASSERT_EQ(a->send(qa, 1, 0, 1), 0);
  EXPECT_EQ(status(*a), IBV_WC_RETRY_EXC_ERR);
  ibv_async_event event{};
  ASSERT_EQ(a->v.get_async_event(a->context, &event), 0);
  EXPECT_EQ(event.event_type, IBV_EVENT_PORT_ERR);
  a->v.ack_async_event(&event);
}

}  // namespace
}  // namespace symvirt::hooks::verbs::testing
