// Three processes of which some keep their device while that of others is replaced.
#include <cstring>

#include "pmix-hooks/ranks/verbs/testing/layer_fixture.h"

namespace symvirt::hooks::verbs::layer_test {
namespace {

class VerbsStay : public VerbsLayer {
 protected:
  VerbsStay() { processes = 3; }

  void SetUp() override {
    VerbsLayer::SetUp();
    for_each_pair([this](int a, int b) { link[a][b] = p[a].make(IBV_QPT_RC); });
    for_each_pair([this](int a, int b) { connect(link[a][b], p[a], link[b][a]->qp_num, p[b]); });
  }
  template <typename F>
  void for_each_pair(F f) {
    for (int a = 0; a < processes; ++a) {
      for (int b = 0; b < processes; ++b) {
        if (a != b) f(a, b);
      }
    }
  }
  // Where in b's memory what a sends arrives.
  static std::size_t place(int a, int b) { return 1024 + static_cast<std::size_t>(a * 8 + b) * 64; }
  void send_value(int a, int b, std::uint64_t value) {
    std::memcpy(p[a].memory.data(), &value, sizeof value);
    EXPECT_EQ(p[a].send(link[a][b], value, 0, 8, IBV_SEND_SIGNALED | IBV_SEND_INLINE), 0);
  }
  void expect_value(int a, int b, std::uint64_t value) {
    const ibv_wc sent = p[a].next();
    EXPECT_EQ(sent.status, IBV_WC_SUCCESS);
    EXPECT_EQ(sent.wr_id, value);
    EXPECT_EQ(sent.qp_num, link[a][b]->qp_num);
    const ibv_wc got = p[b].next();
    EXPECT_EQ(got.status, IBV_WC_SUCCESS);
    EXPECT_EQ(got.qp_num, link[b][a]->qp_num);
    std::uint64_t there = 0;
    std::memcpy(&there, p[b].memory.data() + place(a, b), sizeof there);
    EXPECT_EQ(there, value);
  }
  // A message and an RDMA write each way between all.
  void talk() {
    for_each_pair([this](int a, int b) {
      SCOPED_TRACE(testing_name(a, b));
      p[b].receive(link[b][a], 1, place(a, b), 8);
      send_value(a, b, ++values);
      expect_value(a, b, values);
      ibv_sge s = p[a].sge(place(b, a), 8);
      ibv_send_wr wr{};
      wr.wr_id = ++values;
      wr.sg_list = &s;
      wr.num_sge = 1;
      wr.opcode = IBV_WR_RDMA_READ;
      wr.send_flags = IBV_SEND_SIGNALED;
      wr.wr.rdma = {reinterpret_cast<std::uintptr_t>(p[b].memory.data() + place(a, b)),
                    p[b].mr->rkey};
      ibv_send_wr* bad = nullptr;
      EXPECT_EQ(ibv_post_send(link[a][b], &wr, &bad), 0);
      EXPECT_EQ(p[a].next().status, IBV_WC_SUCCESS);
      EXPECT_EQ(std::memcmp(p[a].memory.data() + place(b, a), p[b].memory.data() + place(a, b), 8),
                0);
    });
    for (int i = 0; i < processes; ++i) EXPECT_TRUE(p[i].nothing_comes());
  }
  static std::string testing_name(int a, int b) {
    return std::to_string(a) + " to " + std::to_string(b);
  }
  void tell_leaving(unsigned set) {
    for (int i = 0; i < processes; ++i) p[i].device_leaves = (set >> i & 1) != 0;
  }
  void move_some(unsigned set) {
    tell_leaving(set);
    move();
  }

  // What is really there: none of it is another one later.
  struct Real {
    ibv_context* context;
    ibv_pd* pd;
    ibv_cq* cq;
    ibv_comp_channel* channel;
    ibv_mr* mr;
    std::uint32_t lkey;
    std::uint32_t rkey;
    std::vector<ibv_qp*> qps;
    bool operator==(const Real&) const = default;
  };
  static Real real_of(const Process& process) {
    Real real{of(process.context)->real,  of(process.pd)->real,
              of(process.cq)->real,       of(process.channel)->real,
              of(process.mr)->real,       of(process.mr)->real->lkey,
              of(process.mr)->real->rkey, {}};
    for (ibv_qp* qp : process.made) real.qps.push_back(of(qp)->real);
    return real;
  }
  // Devices count what they make.
  std::uint32_t made_so_far(Process& process) {
    process.act();
    ibv_cq* const cq = ibv_create_cq(process.context, 1, nullptr, nullptr, 0);
    EXPECT_NE(cq, nullptr);
    const std::uint32_t handle = cq->handle;
    EXPECT_EQ(ibv_destroy_cq(cq), 0);
    return handle;
  }

  ibv_qp* link[kMostProcesses][kMostProcesses] = {};
  std::uint64_t values = 100;
};

TEST_F(VerbsStay, OnlyConnectionsToMovedProcessesAreMadeAgain) {
  talk();
  for (int mover = 0; mover < processes; ++mover) {
    SCOPED_TRACE(mover);
    const int one = (mover + 1) % 3;
    const int other = (mover + 2) % 3;
    const Real before[] = {real_of(p[one]), real_of(p[other])};
    const std::uint32_t made[] = {made_so_far(p[one]), made_so_far(p[other])};
    const std::uint32_t shift = of(link[one][other])->psn_shift;
    move_some(1u << mover);
    EXPECT_EQ(made_so_far(p[one]), made[0] + 1);
    EXPECT_EQ(made_so_far(p[other]), made[1] + 1);
    EXPECT_TRUE(real_of(p[one]) == before[0]);
    EXPECT_TRUE(real_of(p[other]) == before[1]);
    EXPECT_EQ(of(link[one][other])->psn_shift, shift) << "connected anew";
    EXPECT_NE(of(link[one][mover])->psn_shift, shift);
    talk();
  }
  for (const unsigned set : {3u, 6u, 5u, 7u, 0u, 1u}) {
    SCOPED_TRACE(set);
    move_some(set);
    talk();
  }
}

TEST_F(VerbsStay, TwoRoundsToRestWhoeverStays) {
  for (const unsigned set : {1u, 6u, 0u}) {
    tell_leaving(set);
    EXPECT_EQ(quiesce(), 2);
    replace_devices();
    EXPECT_EQ(resume(), 3);
  }
  talk();
}

TEST_F(VerbsStay, WorkThatWaitsIsDoneOnceWhoeverStays) {
  for (const unsigned set : {1u, 2u, 4u, 3u, 0u, 7u}) {
    SCOPED_TRACE(set);
    const std::uint64_t first = values + 1;
    // One each way without a receiver, one receive each way without a send.
    for_each_pair([this](int a, int b) { send_value(a, b, ++values); });
    move_some(set);
    std::uint64_t value = first;
    for_each_pair([&](int a, int b) {
      SCOPED_TRACE(testing_name(a, b));
      EXPECT_EQ(p[b].receive(link[b][a], 1, place(a, b), 8), 0);
      expect_value(a, b, value++);
    });
    for_each_pair([this](int a, int b) { p[b].receive(link[b][a], 2, place(a, b), 8); });
    move_some(set ^ 7u);
    for_each_pair([this](int a, int b) {
      SCOPED_TRACE(testing_name(a, b));
      send_value(a, b, ++values);
      expect_value(a, b, values);
    });
    for (int i = 0; i < processes; ++i) EXPECT_TRUE(p[i].nothing_comes());
  }
}

TEST_F(VerbsStay, ATransactionThatIsUndoneBringsEverythingBack) {
  for (const unsigned set : {1u, 6u}) {
    for_each_pair([this](int a, int b) { p[b].receive(link[b][a], 2, place(a, b), 8); });
    tell_leaving(set);
    quiesce();  // and the device of nobody goes
    resume();
    for_each_pair([this](int a, int b) {
      send_value(a, b, ++values);
      expect_value(a, b, values);
    });
    talk();
  }
}

TEST_F(VerbsStay, WhoRestsWithItsDeviceMayStillBeToldThatItLeaves) {
  tell_leaving(1u);
  quiesce();
  tell_leaving(3u);
  EXPECT_FALSE(p[1].quiesce(epoch, 3, {}).more);
  replace_devices();
  resume();
  talk();
}

TEST_F(VerbsStay, AQuiesceGivenUpInAnyRoundIsUndoneWhoeverStays) {
  for (const unsigned set : {1u, 6u}) {
    for (int turns = 1; turns <= 4 * processes; ++turns) {
      SCOPED_TRACE(std::to_string(set) + ", given up after " + std::to_string(turns) + " turns");
      for_each_pair([this](int a, int b) { send_value(a, b, ++values); });
      const std::uint64_t first = values - 5;
      tell_leaving(set);
      int left = turns;
      ++epoch;
      rounds(
          [&](Process& process, int round, const Payloads& payloads) {
            if (left-- <= 0) return TransportAnswer{true, {}};
            return process.quiesce(epoch, round, payloads);
          },
          (turns + processes - 1) / processes);
      resume();
      std::uint64_t value = first;
      for_each_pair([&](int a, int b) {
        EXPECT_EQ(p[b].receive(link[b][a], 1, place(a, b), 8), 0);
        expect_value(a, b, value++);
      });
      for (int i = 0; i < processes; ++i) EXPECT_TRUE(p[i].nothing_comes());
    }
    talk();
  }
}

TEST_F(VerbsStay, AddressHandlesOfMovedPlacesAreMadeAgain) {
  ibv_qp* ud[kMostProcesses];
  for (int i = 0; i < processes; ++i) {
    ud[i] = p[i].make(IBV_QPT_UD);
    to_init(ud[i]);
    to_rtr(ud[i], 0, {});
    to_rts(ud[i]);
  }
  ibv_ah* ah[kMostProcesses];
  p[1].act();
  for (const int to : {0, 2}) {
    ibv_ah_attr attr{};
    attr.is_global = 1;
    attr.port_num = 1;
    p[to].act();
    attr.grh.dgid = p[to].gid();
    p[1].act();
    ah[to] = ibv_create_ah(p[1].pd, &attr);
    ASSERT_NE(ah[to], nullptr);
  }
  for (const unsigned set : {1u, 4u, 1u, 2u, 7u}) {
    SCOPED_TRACE(set);
    move_some(set);
    for (const int to : {0, 2}) {
      EXPECT_EQ(p[to].receive(ud[to], 3, 2048, 64), 0);
      ibv_sge s = p[1].sge(0, 8);
      ibv_send_wr wr{};
      wr.wr_id = ++values;
      wr.sg_list = &s;
      wr.num_sge = 1;
      wr.opcode = IBV_WR_SEND;
      wr.send_flags = IBV_SEND_SIGNALED;
      wr.wr.ud = {ah[to], ud[to]->qp_num, kQkey};
      ibv_send_wr* bad = nullptr;
      EXPECT_EQ(ibv_post_send(ud[1], &wr, &bad), 0);
      EXPECT_EQ(p[1].next().wr_id, values);
      const ibv_wc got = p[to].next();
      EXPECT_EQ(got.wr_id, 3u);
      EXPECT_EQ(got.src_qp, ud[1]->qp_num);
    }
  }
  // Only where somebody went.
  const ibv_ah* const kept = of(ah[2])->real;
  move_some(1u);
  EXPECT_EQ(of(ah[2])->real, kept);
  p[1].act();
  for (const int to : {0, 2}) EXPECT_EQ(ibv_destroy_ah(ah[to]), 0);
}

}  // namespace
}  // namespace symvirt::hooks::verbs::layer_test
