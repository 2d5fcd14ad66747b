#include "spank-symvirt/coordinator/engine.h"

#include <gtest/gtest.h>

#include "tests/fakes/fake_world.h"

namespace symvirt {
namespace {

Transaction evacuation_of(const std::string& vm, std::uint32_t job) {
  VmPart part;
  part.vm = vm;
  part.jobs = {job};
  part.wanted = part.moving = part.has_device = part.linked = true;
  part.from = "hv1";
  part.at = Where::kSource;
  Transaction tx;
  tx.kind = TxKind::kEvacuate;
  tx.policy.lease_ms = 8'000;
  tx.vms = {part};
  return tx;
}

// Two evacuations, both with ranks at rest: each must have its own leases renewed, or the guests of
// the one that is forgotten go on by themselves in the middle of their move.
TEST(Engine, EveryTransactionThatHoldsRanksHasItsLeasesRenewed) {
  fakes::FakeClock clock;
  fakes::FakeJournal journal;
  std::map<std::int64_t, int> renewals;
  Engine* engine = nullptr;
  Engine::Parts parts;
  parts.journal = &journal;
  parts.clock = &clock;
  parts.start = [&](const Transaction&, const Action& action, std::int64_t) {
    if (action.phase == Phase::kDetach) return;  // never ends
    Event done;
    done.type = EventType::kStepDone;
    done.tx = action.tx;
    done.time_ns = clock.now_ns();
    done.vm = action.vm;
    done.phase = action.phase;
    done.round = action.round;
    done.tries = action.tries;
    done.result = {{"host", "hv2"}, {"job_id", 7}};
    engine->post(std::move(done));
  };
  parts.renew = [&](const Transaction& tx, std::int64_t) { ++renewals[tx.id]; };
  Engine own(parts);
  engine = &own;
  ASSERT_TRUE(own.recover());
  const auto first = own.begin(evacuation_of("v1", 1));
  const auto second = own.begin(evacuation_of("v2", 2));
  ASSERT_TRUE(first && second);
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(own.turn());
  ASSERT_EQ(own.transactions().at(*first).phase, Phase::kDetach);
  ASSERT_EQ(own.transactions().at(*second).phase, Phase::kDetach);
  renewals.clear();
  for (int second_of_time = 0; second_of_time < 8; ++second_of_time) {
    clock.now += 1'000'000'000;
    ASSERT_TRUE(own.turn());
  }
  // Every quarter of the lease, and not at every turn.
  EXPECT_EQ(renewals[*first], 4);
  EXPECT_EQ(renewals[*second], 4);
}

}  // namespace
}  // namespace symvirt
