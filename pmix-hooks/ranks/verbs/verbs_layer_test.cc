// The layer over the provider double: what an application sees of a move.
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>

#include <cstring>

#include "pmix-hooks/ranks/verbs/testing/distant_memory.h"
#include "pmix-hooks/ranks/verbs/testing/layer_fixture.h"

namespace symvirt::hooks::verbs::layer_test {
namespace {

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

// UCX's registration cache gives back what was unmapped only some time later.
TEST_F(VerbsLayer, ARegionWhoseMemoryIsGoneIsCarriedAllTheSame) {
  pair(IBV_QPT_RC);
  constexpr std::size_t kLength = 3 * 4096;
  p[0].act();
  void* const memory = testing::map_distant(kLength);
  ASSERT_NE(memory, nullptr);
  ibv_mr* const mr = ibv_reg_mr(p[0].pd, memory, kLength, IBV_ACCESS_LOCAL_WRITE);
  ASSERT_NE(mr, nullptr);
  const std::uint32_t key = mr->lkey;
  munmap(memory, kLength);
  for (int moves = 0; moves < 2; ++moves) {
    move();
    EXPECT_EQ(mr->lkey, key);
    EXPECT_EQ(msync(memory, kLength, MS_ASYNC), -1) << "nothing is left there";
    EXPECT_EQ(p[1].receive(q[1], 7, 1000, 100), 0);
    EXPECT_EQ(p[0].send(q[0], 8, 0, 6), 0);
    EXPECT_EQ(p[0].next().status, IBV_WC_SUCCESS);
    EXPECT_EQ(p[1].next().wr_id, 7u);
  }
  p[0].act();
  EXPECT_EQ(ibv_dereg_mr(mr), 0);
}

// It could be made again only by taking the protection away, for which somebody has a reason.
TEST_F(VerbsLayer, ARegionThatIsProtectedNowIsSaidBeforeAnythingIsClosed) {
  pair(IBV_QPT_RC);
  p[0].act();
  void* const memory =
      mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  ibv_mr* const mr = ibv_reg_mr(p[0].pd, memory, 4096, IBV_ACCESS_LOCAL_WRITE);
  ASSERT_NE(mr, nullptr);
  ASSERT_EQ(mprotect(memory, 4096, PROT_READ), 0);
  const ibv_mr* const real = of(mr)->real;
  TransportAnswer answer = p[0].quiesce(1, 1, {});
  EXPECT_TRUE(answer.more);
  EXPECT_NE(answer.why.find("is protected against writing"), std::string::npos) << answer.why;
  answer = p[0].quiesce(1, 2, {{"0", answer.payload}});
  EXPECT_TRUE(answer.more);
  EXPECT_EQ(of(mr)->real, real) << "the device is still in use";
  ++epoch;
  resume();
  ASSERT_EQ(mprotect(memory, 4096, PROT_READ | PROT_WRITE), 0);
  move();
  p[0].act();
  EXPECT_EQ(ibv_dereg_mr(mr), 0);
  munmap(memory, 4096);
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

TEST_F(VerbsLayer, RegionsWithoutAKeyForOthersComeAndGo) {
  pair(IBV_QPT_RC);
  std::vector<ibv_mr*> own;
  for (int round = 0; round < 4; ++round) {
    p[0].act();
    own.push_back(ibv_reg_mr(p[0].pd, p[0].memory.data(), 64, IBV_ACCESS_LOCAL_WRITE));
    ASSERT_NE(own.back(), nullptr) << round;
    EXPECT_EQ(own.back()->rkey, 0u);
    move();
  }
  for (ibv_mr* mr : own) EXPECT_EQ(ibv_dereg_mr(mr), 0);
}

// Work in a stopped queue pair is flushed wherever that is; and it stays stopped.
TEST_F(VerbsLayer, AStoppedQueuePairStaysStopped) {
  pair(IBV_QPT_RC);
  ibv_qp_attr attr{};
  attr.qp_state = IBV_QPS_ERR;
  p[0].act();
  ASSERT_EQ(ibv_modify_qp(q[0], &attr, IBV_QP_STATE), 0);
  for (int round = 0; round < 3; ++round) {
    move();
    EXPECT_EQ(p[0].receive(q[0], 5, 0, 8), 0);
    const ibv_wc wc = p[0].next();
    EXPECT_EQ(wc.wr_id, 5u);
    EXPECT_EQ(wc.status, IBV_WC_WR_FLUSH_ERR);
    ibv_qp_init_attr init{};
    ASSERT_EQ(ibv_query_qp(q[0], &attr, IBV_QP_STATE, &init), 0);
    EXPECT_EQ(attr.qp_state, IBV_QPS_ERR);
  }
}

// It was no part of the resume, and is told what the others said in it.
TEST_F(VerbsLayer, WhoOpensItsFirstDeviceAfterAMoveFindsTheOthers) {
  ibv_qp* const first = p[1].make(IBV_QPT_RC);
  ibv_qp* const waiting = p[1].make(IBV_QPT_RC);
  to_init(waiting);
  p[1].destroy(first);  // so that the number is another one after the move
  move();
  Process& late = p[2];
  late.host = 2;
  fabric.plug(2, device(2));
  late.act();
  late.transport.peers(said);
  late.open();
  processes = 3;
  ibv_qp* const qp = late.make(IBV_QPT_RC);
  EXPECT_NE(qp->qp_num, waiting->qp_num);
  connect(qp, late, waiting->qp_num, p[1]);
  connect(waiting, p[1], qp->qp_num, late);
  for (int round = 0; round < 3; ++round) {
    EXPECT_EQ(p[1].receive(waiting, 1, 0, 8), 0);
    EXPECT_EQ(late.send(qp, 2, 0, 8), 0);
    EXPECT_EQ(late.next().status, IBV_WC_SUCCESS);
    EXPECT_EQ(p[1].next().wr_id, 1u);
    ibv_sge s = late.sge(0, 8);
    ibv_send_wr wr{};
    wr.sg_list = &s;
    wr.num_sge = 1;
    wr.opcode = IBV_WR_RDMA_READ;
    wr.send_flags = IBV_SEND_SIGNALED;
    wr.wr.rdma = {reinterpret_cast<std::uintptr_t>(p[1].memory.data()), p[1].mr->rkey};
    ibv_send_wr* bad = nullptr;
    ASSERT_EQ(ibv_post_send(qp, &wr, &bad), 0);
    EXPECT_EQ(late.next().status, IBV_WC_SUCCESS);
    move();
  }
}

TEST_F(VerbsLayer, WhoComesToADeviceThatWasReplacedSeesItsOldAddress) {
  move();
  Process late;
  late.host = 1;
  late.act();
  late.transport.peers(said);
  late.open();
  union ibv_gid real {};
  ASSERT_EQ(real_verbs()->query_gid(of(late.context)->real, 1, 0, &real), 0);
  EXPECT_EQ(to_gid(late.gid()), to_gid(p[1].gid()));
  EXPECT_NE(to_gid(late.gid()), to_gid(real)) << "the device has the same address: nothing shown";
  late.close();
}

// A peer that runs a little earlier sends at once.
TEST_F(VerbsLayer, WhatComesInTheMiddleOfAResumeRaisesItsEvent) {
  pair(IBV_QPT_RC);
  EXPECT_EQ(p[1].receive(q[1], 7, 0, 8), 0);
  ASSERT_EQ(ibv_req_notify_cq(p[1].cq, 0), 0);
  quiesce();
  replace_devices();
  rounds([&](Process& process, int round, const Payloads& payloads) {
    TransportAnswer answer = process.resume(epoch, round, payloads);
    if (&process == &p[0] && !answer.more) {
      EXPECT_EQ(p[0].send(q[0], 1, 0, 8), 0);
      EXPECT_EQ(p[0].next().status, IBV_WC_SUCCESS);  // it is there, and the other end not armed
    }
    return answer;
  });
  p[1].act();
  pollfd fd{p[1].channel->fd, POLLIN, 0};
  EXPECT_EQ(poll(&fd, 1, 5000), 1);
  EXPECT_EQ(p[1].next().wr_id, 7u);
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
  ibv_ah* ah = p[0].ah = ibv_create_ah(p[0].pd, &attr);
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

// The sender is newer than the move, and has the number that another's, older one has now.
TEST_F(VerbsLayer, ANewSenderIsNotTakenForACarriedOneOfTheSameNumber) {
  ibv_qp* const first = p[1].make(IBV_QPT_UD);
  q[1] = p[1].make(IBV_QPT_UD);
  to_init(q[1]);
  to_rtr(q[1], 0, {});
  to_rts(q[1]);
  for (int i = 0; i < 4; ++i) p[1].make(IBV_QPT_UD);
  p[1].destroy(first);  // so that the numbers of the others change
  move();
  ibv_ah_attr attr{};
  attr.is_global = 1;
  attr.port_num = 1;
  attr.grh.dgid = p[1].gid();
  for (int i = 0; i < 8; ++i) {
    q[0] = p[0].make(IBV_QPT_UD);
    to_init(q[0]);
    to_rtr(q[0], 0, {});
    to_rts(q[0]);
    p[0].act();
    ibv_ah* ah = ibv_create_ah(p[0].pd, &attr);
    ASSERT_NE(ah, nullptr);
    EXPECT_EQ(p[1].receive(q[1], 5, 0, 100), 0);
    ibv_sge s = p[0].sge(0, 8);
    ibv_send_wr wr{};
    wr.sg_list = &s;
    wr.num_sge = 1;
    wr.opcode = IBV_WR_SEND;
    wr.send_flags = IBV_SEND_SIGNALED;
    wr.wr.ud = {ah, q[1]->qp_num, kQkey};
    ibv_send_wr* bad = nullptr;
    ASSERT_EQ(ibv_post_send(q[0], &wr, &bad), 0);
    EXPECT_EQ(p[1].next().src_qp, q[0]->qp_num);
    p[0].act();
    EXPECT_EQ(ibv_destroy_ah(ah), 0);
  }
}

TEST_F(VerbsLayer, SharedReceivesAreCarriedInAnyOrder) {
  p[1].act();
  ibv_srq_init_attr init{};
  init.attr = {64, 1, 0};
  ibv_srq* srq = p[1].srq = ibv_create_srq(p[1].pd, &init);
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

}  // namespace
}  // namespace symvirt::hooks::verbs::layer_test
