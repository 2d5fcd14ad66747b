// The layer over the provider double: work that a quiesce meets half way.
#include <atomic>
#include <cstring>
#include <thread>

#include "pmix-hooks/ranks/verbs/testing/layer_fixture.h"

namespace symvirt::hooks::verbs::layer_test {
namespace {

class VerbsQuiesce : public VerbsLayer {};

TEST_F(VerbsQuiesce, SendsPostedDuringAQuiesceComeAfterIt) {
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

TEST_F(VerbsQuiesce, ASendWithoutAReceiverIsTakenBackAndRepeatedOnce) {
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

// What is in front of the send that waits was executed, whether somebody was told or not, and must
// not be again.
TEST_F(VerbsQuiesce, WorkInFrontOfASendWithoutAReceiverIsNotRepeated) {
  pair(IBV_QPT_RC);
  std::uint64_t added = 0;
  const auto add_one = [&](unsigned flags) {
    ibv_sge s = p[0].sge(64, 8);
    ibv_send_wr wr{};
    wr.wr_id = 100 + added++;
    wr.sg_list = &s;
    wr.num_sge = 1;
    wr.opcode = IBV_WR_ATOMIC_FETCH_AND_ADD;
    wr.send_flags = flags;
    wr.wr.atomic = {reinterpret_cast<std::uintptr_t>(p[1].memory.data()), 1, 0, p[1].mr->rkey};
    ibv_send_wr* bad = nullptr;
    ASSERT_EQ(ibv_post_send(q[0], &wr, &bad), 0);
  };
  for (std::uint64_t round = 0; round < 10; ++round) {
    p[1].receive(q[1], 1, 8, 8);
    add_one(IBV_SEND_SIGNALED);
    EXPECT_EQ(p[0].send(q[0], 2, 0, 8, 0), 0);
    add_one(0);
    EXPECT_EQ(p[0].send(q[0], 3, 0, 8), 0);  // no receiver
    add_one(IBV_SEND_SIGNALED);
    move();
    std::uint64_t before = 0;
    std::memcpy(&before, p[1].memory.data(), sizeof before);
    EXPECT_EQ(before, round * 3 + 2);
    p[1].receive(q[1], 4, 8, 8);
    for (const std::uint64_t id : {100 + round * 3, std::uint64_t{3}, 102 + round * 3}) {
      const ibv_wc wc = p[0].next();
      EXPECT_EQ(wc.status, IBV_WC_SUCCESS);
      EXPECT_EQ(wc.wr_id, id);
    }
    EXPECT_EQ(p[1].next().wr_id, 1u);
    EXPECT_EQ(p[1].next().wr_id, 4u);
    std::uint64_t after = 0;
    std::memcpy(&after, p[1].memory.data(), sizeof after);
    EXPECT_EQ(after, round * 3 + 3);
  }
}

// What the layer posts itself takes the one place in the queue that the application does not know
// of, however often it is given up.
TEST_F(VerbsQuiesce, QuiescesGivenUpLeaveTheQueueToTheApplication) {
  constexpr std::uint64_t kDepth = 64;
  pair(IBV_QPT_RC);
  for (int repeat = 0; repeat < 3; ++repeat) {
    SCOPED_TRACE(repeat);
    const std::uint64_t base = 1000u * static_cast<std::uint64_t>(repeat);
    const auto is_signalled = [](std::uint64_t i) { return i % 3 != 0 || i + 1 == kDepth; };
    std::uint64_t sent = 0;
    const auto send_until = [&](std::uint64_t end) {  // without a receiver
      for (; sent < end; ++sent) {
        const std::uint64_t value = base + sent;
        std::memcpy(p[0].memory.data(), &value, sizeof value);
        const unsigned flags =
            is_signalled(sent) ? IBV_SEND_INLINE | IBV_SEND_SIGNALED : IBV_SEND_INLINE;
        ASSERT_EQ(p[0].send(q[0], value, 0, 8, flags), 0) << sent;
      }
    };
    for (int attempt = 1; attempt <= 5; ++attempt) {
      send_until(static_cast<std::uint64_t>(attempt) * 10);
      quiesce_in_vain(attempt % 3 + 1);
    }
    send_until(kDepth);
    quiesce_in_vain(1);
    // There is one place more than granted, and not more than one is taken.
    EXPECT_EQ(p[0].send(q[0], 9, 0, 8), ENOMEM);
    if (repeat > 0) move();
    for (std::uint64_t i = 0; i < kDepth; ++i) ASSERT_EQ(p[1].receive(q[1], base + i, i * 8, 8), 0);
    for (std::uint64_t i = 0; i < kDepth; ++i) {
      std::uint64_t value = 0;
      EXPECT_EQ(p[1].next().wr_id, base + i);
      std::memcpy(&value, p[1].memory.data() + i * 8, sizeof value);
      EXPECT_EQ(value, base + i);
      if (is_signalled(i)) {
        const ibv_wc wc = p[0].next();
        EXPECT_EQ(wc.wr_id, base + i);
        EXPECT_EQ(wc.status, IBV_WC_SUCCESS);
      }
    }
    EXPECT_TRUE(p[0].nothing_comes());
    EXPECT_TRUE(p[1].nothing_comes());
  }
}

// A quiesce holds receives for longer than a sender's retries last.
TEST_F(VerbsQuiesce, ASenderThatDoesNotWaitForEverIsNotRefusedByAQuiesce) {
  rnr_timer = 0;  // 0.66 s
  rnr_retry = 1;
  pair(IBV_QPT_RC);
  EXPECT_EQ(p[0].send(q[0], 5, 0, 8), 0);
  Payloads payloads;
  ++epoch;
  for (int i = 0; i < kProcesses; ++i)
    payloads[std::to_string(i)] = p[i].quiesce(epoch, 1, {}).payload;
  std::this_thread::sleep_for(milliseconds(900));
  rounds([&](Process& process, int round,
             const Payloads& next) { return process.quiesce(epoch, round + 1, next); },
         20, payloads);
  replace_devices();
  p[1].act();
  p[1].receive(q[1], 6, 0, 8);
  resume();
  EXPECT_EQ(p[1].next().wr_id, 6u);
  const ibv_wc wc = p[0].next();
  EXPECT_EQ(wc.wr_id, 5u);
  EXPECT_EQ(wc.status, IBV_WC_SUCCESS);
}

// perftest's latency programs have a completion queue of one entry.
TEST_F(VerbsQuiesce, AFullCompletionQueueHasRoomForTheMarkers) {
  p[0].act();
  ibv_cq* const small = ibv_create_cq(p[0].context, 1, nullptr, nullptr, 0);
  ASSERT_NE(small, nullptr);
  EXPECT_EQ(small->cqe, 1);
  ibv_cq* const usual = std::exchange(p[0].cq, small);
  pair(IBV_QPT_RC);
  for (std::uint64_t i = 0; i < 20; ++i) {
    p[1].act();
    p[1].receive(q[1], i, 0, 8);
    p[0].act();
    fabric.hold_acks(true);
    ASSERT_EQ(p[0].send(q[0], i, 0, 8), 0);
    std::thread acks([this] {
      std::this_thread::sleep_for(milliseconds(5));
      fabric.hold_acks(false);
    });
    quiesce();
    acks.join();
    if (i % 2 == 0) replace_devices();
    resume();
    p[0].act();
    const ibv_wc wc = p[0].next();
    EXPECT_EQ(wc.wr_id, i);
    EXPECT_EQ(wc.status, IBV_WC_SUCCESS);
    p[1].act();
    EXPECT_EQ(p[1].next().wr_id, i);
  }
  p[0].act();
  EXPECT_EQ(small->cqe, 1);
  p[0].cq = usual;
  p[0].destroy(q[0]);
  EXPECT_EQ(ibv_destroy_cq(small), 0);
}

TEST_F(VerbsQuiesce, ACompletionQueueGrowsWithItsQueuePairs) {
  p[0].act();
  ibv_cq* const small = ibv_create_cq(p[0].context, 4, nullptr, nullptr, 0);
  ASSERT_NE(small, nullptr);
  ibv_cq* const usual = std::exchange(p[0].cq, small);
  for (int i = 0; i < 200; ++i) p[0].make(IBV_QPT_RC);
  p[0].cq = usual;
  EXPECT_EQ(small->cqe, 4) << "the application has what it asked for";
  EXPECT_GE(of(small)->real->cqe, 404);
  move();
  EXPECT_GE(of(small)->real->cqe, 404);
  p[0].act();
  EXPECT_EQ(ibv_resize_cq(small, 7), 0);
  EXPECT_EQ(small->cqe, 7);
  EXPECT_GE(of(small)->real->cqe, 407);
  EXPECT_NE(ibv_resize_cq(small, 0), 0);
  EXPECT_EQ(ibv_create_cq(p[0].context, 0, nullptr, nullptr, 0), nullptr);
  while (!p[0].made.empty()) p[0].destroy(p[0].made.back());
  EXPECT_EQ(ibv_destroy_cq(small), 0);
}

TEST_F(VerbsQuiesce, ADeviceIsNotOpenedForTheFirstTimeWhileOthersRest) {
  Layer layer;
  VerbsTransport transport([&]() -> Layer& { return layer; });
  EXPECT_FALSE(transport.quiesce(1, 1, {}, true).more);
  std::atomic<bool> opened = false;
  std::thread application([&] {
    Layer::set_current_for_test(&layer);
    set_thread_host(0);
    ibv_device** list = ibv_get_device_list(nullptr);
    ibv_context* mine = ibv_open_device(list[0]);
    opened = mine != nullptr;
    ibv_free_device_list(list);
    if (mine != nullptr) ibv_close_device(mine);
  });
  std::this_thread::sleep_for(milliseconds(50));
  EXPECT_FALSE(opened);
  EXPECT_FALSE(transport.resume(1, 1, {}).more);
  application.join();
  EXPECT_TRUE(opened);
}

TEST_F(VerbsQuiesce, WhoJoinsInALaterRoundComesToRest) {
  pair(IBV_QPT_RC);
  const auto from_the_second = [this](Process& process, int round, const Payloads& payloads) {
    return process.quiesce(epoch, round + 1, payloads);
  };
  ++epoch;
  EXPECT_LE(rounds(from_the_second), 20);
  replace_devices();
  resume();
  EXPECT_EQ(p[1].receive(q[1], 7, 0, 8), 0);
  EXPECT_EQ(p[0].send(q[0], 8, 0, 6), 0);
  EXPECT_EQ(p[0].next().status, IBV_WC_SUCCESS);
  EXPECT_EQ(p[1].next().wr_id, 7u);
}

TEST_F(VerbsQuiesce, AProcessThatDoesNotComeToRestSaysWhatItWaitsFor) {
  pair(IBV_QPT_RC);
  std::vector<std::string> whys[kProcesses];
  const auto ask = [&](Process& process, int round, const Payloads& payloads) {
    TransportAnswer answer = process.quiesce(epoch, round, payloads);
    EXPECT_TRUE(answer.more || answer.why.empty());
    whys[process.host].push_back(answer.why);
    return answer;
  };
  const std::string name = "queue pair 0x11 to 0x11: ";
  p[1].receive(q[1], 1, 0, 8);
  p[1].receive(q[1], 1, 0, 8);
  fabric.hold_acks(true);
  for (std::uint64_t i = 0; i < 2; ++i) EXPECT_EQ(p[0].send(q[0], i, 0, 8), 0);
  ++epoch;
  EXPECT_EQ(rounds(ask, 4), 5) << "came to rest";
  EXPECT_EQ(whys[0][0], name + "2 sends wait");
  EXPECT_EQ(whys[0][3], name + "2 sends wait, the peer has them, and does not acknowledge");
  EXPECT_EQ(whys[1], std::vector<std::string>(4)) << "waits only for the other";
  fabric.hold_acks(false);
  resume();
  for (const int i : {0, 0, 1, 1}) EXPECT_EQ(p[i].next().status, IBV_WC_SUCCESS);

  whys[0].clear();
  EXPECT_EQ(p[0].send(q[0], 3, 0, 8), 0);
  ++epoch;
  rounds(ask, 3);
  EXPECT_EQ(whys[0][1], name + "1 send waits, the peer may have receives for them");
  resume();
  p[1].receive(q[1], 1, 0, 8);
  EXPECT_EQ(p[0].next().wr_id, 3u);
  EXPECT_EQ(p[1].next().wr_id, 1u);

  quiesce();
  EXPECT_TRUE(fabric.unplug(0, names[0]).nothing());
  p[0].act();
  const TransportAnswer reopening = p[0].resume(epoch, 1, {});
  EXPECT_TRUE(reopening.more);
  EXPECT_EQ(reopening.why, "no device yet in place of " + names[0]);
  fabric.plug(0, device(0));
  resume();
}

// Numbers are told to each other by other means; a move comes at any moment of that.
TEST_F(VerbsQuiesce, QueuePairsMayBeConnectedAcrossAMove) {
  for (int moment = 0; moment < 5; ++moment) {
    SCOPED_TRACE(moment);
    for (int i = 0; i < kProcesses; ++i) q[i] = p[i].make(IBV_QPT_RC);
    const std::uint32_t numbers[] = {q[0]->qp_num, q[1]->qp_num};
    const union ibv_gid gids[] = {p[0].gid(), p[1].gid()};
    if (moment == 0) move();
    to_init(q[0]);
    to_init(q[1]);
    if (moment == 1) move();
    to_rtr(q[0], numbers[1], gids[1]);
    if (moment == 2) move();
    to_rts(q[0]);
    if (moment == 3) move();
    to_rtr(q[1], numbers[0], gids[0]);
    if (moment == 4) move();
    to_rts(q[1]);
    for (int repeat = 0; repeat < 2; ++repeat) {
      for (int from = 0; from < kProcesses; ++from) {
        const int to = 1 - from;
        p[to].receive(q[to], 1, 0, 8);
        EXPECT_EQ(p[from].send(q[from], 2, 0, 8), 0);
        const ibv_wc got = p[to].next();
        EXPECT_EQ(got.wr_id, 1u);
        EXPECT_EQ(got.qp_num, numbers[to]);
        EXPECT_EQ(p[from].next().status, IBV_WC_SUCCESS);
      }
      move();
    }
  }
}

TEST_F(VerbsQuiesce, AQuiesceGivenUpInAnyRoundIsUndone) {
  pair(IBV_QPT_RC);
  for (int given_up = 1; given_up <= 6; ++given_up) {
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
        next[std::to_string(i)] = p[i].quiesce(epoch, round, payloads).payload;
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
}  // namespace symvirt::hooks::verbs::layer_test
