#include "spank-symvirt/coordinator/resume.h"

#include <gtest/gtest.h>

#include "tests/fakes/fake_world.h"

namespace symvirt {
namespace {

constexpr std::int64_t kSecond = 1'000'000'000;

struct Site {
  Config config = fakes::two_vm_config();
  std::vector<NodeInfo> nodes{2};
  std::vector<JobInfo> jobs;
  std::map<std::string, VmRecord> vms;
  std::map<std::int64_t, Transaction> transactions;
  std::int64_t now = 1000 * kSecond;
  ResumeWishes wishes;

  Site() {
    nodes[0].name = "v1";
    nodes[1].name = "v2";
  }
  std::vector<Transaction> take() {
    return wishes.take(View{&config, &nodes, &jobs, &vms, &transactions, nullptr, now});
  }
  void live(TxKind kind) {
    Transaction tx;
    tx.id = 1;
    tx.kind = kind;
    tx.vms.resize(1);
    tx.vms[0].vm = "v1";
    transactions[1] = tx;
  }
};

TEST(ResumeWishes, AreBootedOnce) {
  Site site;
  EXPECT_TRUE(site.take().empty());
  site.wishes.add("v1", site.now);
  site.wishes.add("v1", site.now);
  const auto begun = site.take();
  ASSERT_EQ(begun.size(), 1u);
  EXPECT_EQ(begun[0].kind, TxKind::kBoot);
  EXPECT_EQ(begun[0].vms.at(0).vm, "v1");
  EXPECT_TRUE(begun[0].vms[0].moving);
  EXPECT_TRUE(site.take().empty());
}

TEST(ResumeWishes, RepeatedDuringTheBootAndAfterItEndNothing) {
  Site site;
  site.take();
  site.live(TxKind::kBoot);
  site.wishes.add("v1", site.now);
  EXPECT_TRUE(site.take().empty());
  site.transactions.clear();
  site.vms["v1"] = VmRecord{"v1", "standard", "hv1", 50, 0};
  EXPECT_TRUE(site.take().empty());
  site.wishes.add("v1", site.now);  // a repetition that came late
  site.now += 31 * kSecond;
  EXPECT_TRUE(site.take().empty());
  site.vms.clear();
  EXPECT_TRUE(site.take().empty());  // and is forgotten, not done when the VM has gone
}

TEST(ResumeWishes, WaitForTheEndOfAStopOrOfACancelledBoot) {
  for (const TxKind kind : {TxKind::kStop, TxKind::kBoot}) {
    Site site;
    site.take();
    site.live(kind);
    site.transactions[1].cancel_requested = kind == TxKind::kBoot;
    site.wishes.add("v1", site.now);
    EXPECT_TRUE(site.take().empty());
    site.transactions.clear();
    ASSERT_EQ(site.take().size(), 1u);
  }
}

TEST(ResumeWishes, AVmThatStillRunsIsStoppedFirst) {
  Site site;
  site.take();
  site.vms["v1"] = VmRecord{"v1", "standard", "hv1", 50, 0};
  site.wishes.add("v1", site.now);
  EXPECT_TRUE(site.take().empty());  // the look at Slurm may be an old one
  site.nodes[0].powering_up = true;
  auto begun = site.take();
  ASSERT_EQ(begun.size(), 1u);
  EXPECT_EQ(begun[0].kind, TxKind::kStop);
  EXPECT_EQ(begun[0].vms.at(0).from, "hv1");
  EXPECT_EQ(begun[0].vms[0].from_job, 50u);
  site.vms.clear();
  begun = site.take();
  ASSERT_EQ(begun.size(), 1u);
  EXPECT_EQ(begun[0].kind, TxKind::kBoot);
}

// symvirtd died with a wish in its hands: Slurm still waits for the node.
TEST(ResumeWishes, AreFoundInTheStatesOfTheNodesAfterARestart) {
  Site site;
  site.nodes[0].powering_up = site.nodes[1].powering_up = true;
  site.nodes.push_back(site.nodes[0]);
  site.nodes[2].name = "not-ours";
  site.live(TxKind::kBoot);  // v1's own boot survived in the journal
  const auto begun = site.take();
  ASSERT_EQ(begun.size(), 1u);
  EXPECT_EQ(begun[0].vms.at(0).vm, "v2");
  site.transactions.clear();
  EXPECT_TRUE(site.take().empty());  // only at the start
}

TEST(ResumeWishes, OfANodeThatIsDownAreNotFound) {
  Site site;
  site.nodes[0].powering_up = site.nodes[0].down = true;
  EXPECT_TRUE(site.take().empty());
}

}  // namespace
}  // namespace symvirt
