#include "spank-symvirt/cli/render.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>

#include "spank-symvirt/coordinator/views.h"

namespace symvirt {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::Not;

constexpr std::int64_t kSecond = 1'000'000'000;

// A transaction as symvirtd itself shows it, so that the two sides cannot drift apart.
Transaction evacuation() {
  Transaction tx;
  tx.id = 12;
  tx.cause = "hv1: drained: memory errors";
  tx.begun_ns = 1'700'000'000 * kSecond;
  VmPart v1, v2;
  v1.vm = "v1";
  v1.jobs = v2.jobs = {77};
  v1.wanted = v1.moving = true;
  v1.from = "hv1";
  v1.to = "hv3";
  v1.at = Where::kSource;
  v2.vm = "v2";
  v2.from = "hv2";
  v2.at = Where::kSource;
  tx.vms = {v1, v2};
  tx.phase = Phase::kMigrate;
  tx.vms[0].status = StepStatus::kPending;
  tx.times = {{Phase::kQuiesce, tx.begun_ns + kSecond, tx.begun_ns + 3 * kSecond},
              {Phase::kMigrate, tx.begun_ns + 3 * kSecond, 0}};
  return tx;
}

Transaction ended_evacuation() {
  Transaction tx = evacuation();
  tx.phase = Phase::kEnd;
  tx.outcome = Outcome::kDone;
  tx.vms[0].at = Where::kTarget;
  tx.vms[0].status = StepStatus::kIdle;
  tx.vms[0].migrate_bytes = 512 << 20;
  tx.times[1].end_ns = tx.begun_ns + 13 * kSecond;
  tx.times.push_back({Phase::kResume, tx.begun_ns + 14 * kSecond, tx.begun_ns + 15 * kSecond});
  tx.ended_ns = tx.begun_ns + 16 * kSecond;
  return tx;
}

// The row that begins with `first`, its cells cut at two or more blanks.
std::vector<std::string> row(const std::string& text, const std::string& first) {
  std::stringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind(first + "  ", 0) != 0) continue;
    std::vector<std::string> cells;
    for (std::size_t pos = 0; pos < line.size();) {
      const std::size_t end = std::min(line.find("  ", pos), line.size());
      cells.push_back(line.substr(pos, end - pos));
      pos = std::min(line.find_first_not_of(' ', end), line.size());
    }
    return cells;
  }
  return {};
}

using Cells = std::vector<std::string>;

TEST(Table, ColumnsAreAlignedAlsoWithUmlauts) {
  Table table({"A", "B"});
  table.add({"Käse", "x"});
  table.add({"", "y\nz\x1b[31m"});
  EXPECT_EQ(table.text(), "A     B\nKäse  x\n-     y z [31m\n");
}

TEST(Text, Sizes) {
  EXPECT_EQ(size_text(0), "0 B");
  EXPECT_EQ(size_text(1023), "1023 B");
  EXPECT_EQ(size_text(1536), "1.5 KiB");
  EXPECT_EQ(size_text(512.0 * (1 << 20)), "512 MiB");
  EXPECT_EQ(size_text(2.5 * (1 << 30)), "2.5 GiB");
}

TEST(Text, Seconds) {
  EXPECT_EQ(seconds_text(0.4123), "0.412 s");
  EXPECT_EQ(seconds_text(14.24), "14.2 s");
  EXPECT_EQ(seconds_text(200), "3 min 20 s");
  EXPECT_EQ(seconds_text(7500), "2 h 5 min");
}

TEST(Transactions, EndedOneShowsPlacesPhasesAndPause) {
  const std::string text = render_transaction(view_of(ended_evacuation(), {}));
  EXPECT_THAT(text, HasSubstr("evacuate 12: done in 16.0 s, the ranks rested 14.0 s\n"));
  EXPECT_THAT(text, HasSubstr("cause: hv1: drained: memory errors\n"));
  EXPECT_THAT(text, HasSubstr("jobs: 77\n"));
  EXPECT_EQ(row(text, "v1"), (Cells{"v1", "hv1", "hv3", "hv3", "512 MiB", "moved"}));
  EXPECT_EQ(row(text, "v2"), (Cells{"v2", "hv2", "-", "hv2", "-",
                                    "stayed; shares a job with one that was to move"}));
  EXPECT_EQ(row(text, "quiesce"), (Cells{"quiesce", "1.000 s", "2.000 s"}));
  EXPECT_EQ(row(text, "migrate"), (Cells{"migrate", "3.000 s", "10.0 s"}));
}

TEST(Transactions, RunningOneShowsFiguresOpenPhaseAndWhatItWaitsFor) {
  Transaction tx = evacuation();
  tx.parked = "hv3: no answer";
  LiveProgress live;
  live[{12, "v1"}] = {
      {"done_bytes", 256 << 20}, {"total_bytes", 512 << 20}, {"rate_bytes_s", 95 << 20}};
  const std::string text = render_transaction(view_of(tx, live));
  EXPECT_THAT(text, HasSubstr("evacuate 12: in migrate\n"));
  EXPECT_THAT(text, HasSubstr("waits: hv3: no answer\n"));
  EXPECT_THAT(text, HasSubstr("v1 hv1>hv3 50 % of 512 MiB, 95 MiB/s"));
  EXPECT_EQ(row(text, "migrate"), (Cells{"migrate", "3.000 s", "-"}));
}

TEST(Transactions, AFailureIsSaidInFull) {
  Transaction tx = ended_evacuation();
  tx.outcome = Outcome::kRestored;
  tx.vms[0].at = Where::kSource;
  tx.vms[0].failure = Error{Code::kExhausted, "hv3: no free device of gres hca"};
  const std::string text = render_transaction(view_of(tx, {}));
  EXPECT_THAT(text, HasSubstr("restored"));
  EXPECT_THAT(text, HasSubstr("EXHAUSTED: hv3: no free device of gres hca"));
}

TEST(Transactions, TheProgressLineFitsTheTerminal) {
  const json tx = view_of(evacuation(), {});
  const std::string line = progress_line(tx, 1'700'000'005, 200);
  EXPECT_EQ(line, "evacuate 12 [5 s] migrate: v1");
  EXPECT_EQ(progress_line(tx, 1'700'000'005, 10), "evacuate 1");
  EXPECT_EQ(progress_line(tx, 0, 200).substr(0, 17), "evacuate 12 [0 s]");  // clocks differ
}

TEST(Lists, ShowOutcomeOrPhase) {
  const json answer = {
      {"transactions", {view_of(ended_evacuation(), {}), view_of(evacuation(), {})}}};
  const std::string text = render_list(answer);
  EXPECT_THAT(text, HasSubstr("done"));
  EXPECT_THAT(text, HasSubstr("migrate"));
  EXPECT_THAT(text, HasSubstr("v1 v2"));
  EXPECT_EQ(render_list(json::object()), "No transactions.\n");
}

TEST(Status, HostsVmsAndNotes) {
  const json answer = json::parse(R"({"schema_version":1,"generation":4,"slurm_answers":true,
    "slurm_error":"","hosts":[
      {"host":"hv1","slurm_state":"DRAINED","reason":"memory errors","answers":true,"vms":["v1"]},
      {"host":"hv2","slurm_state":"IDLE","reason":"x","answers":false,"vms":[],"error":"refused"}],
    "vms":[{"vm":"v1","class":"standard","host":"hv1","launcher_job":42,"slurm_state":"ALLOCATED",
            "transaction":12,"note":"no free host"}],
    "transactions":[]})");
  const std::string text = render_status(answer);
  EXPECT_THAT(text, HasSubstr("generation 4; slurmctld answers"));
  EXPECT_EQ(row(text, "hv1"), (Cells{"hv1", "DRAINED", "answers", "v1", "memory errors"}));
  EXPECT_EQ(row(text, "hv2"), (Cells{"hv2", "IDLE", "silent", "-", "x; refused"}));
  EXPECT_EQ(row(text, "v1"),
            (Cells{"v1", "standard", "hv1", "ALLOCATED", "42", "12", "no free host"}));
  EXPECT_THAT(text, HasSubstr("No transaction is running."));
}

TEST(Devices, OneARow) {
  const json answer = json::parse(R"({"devices":[{"host":"hv1","device":"0000:00:05.0","gres":"hca",
    "state":"attached","vm":"v1","numa_node":-1,"description":"Red Hat Virtio"},
    {"host":"hv2","device":"hca0","gres":"hca","state":"free","numa_node":1,"pci":"0000:5e:00.2",
    "pf":"0000:5e:00.0","vf":0,"iommu_group":12,"driver":"mlx5_core",
    "ports":[{"port":"ens3","state":"up"},{"port":"mlx5_0/1","state":"active"}],
    "problem":"PCI device 0000:5e:00.2 is described twice"}]})");
  const std::string text = render_devices(answer);
  EXPECT_EQ(row(text, "hv1"), (Cells{"hv1", "0000:00:05.0", "hca", "attached", "v1", "-", "-", "-",
                                     "-", "-", "-", "Red Hat Virtio"}));
  EXPECT_EQ(row(text, "hv2"),
            (Cells{"hv2", "hca0", "hca", "free", "-", "1", "0000:5e:00.2", "VF 0 of 0000:5e:00.0",
                   "12", "mlx5_core", "ens3 up, mlx5_0/1 active", "-"}));
  EXPECT_THAT(text, HasSubstr("hv2 hca0: cannot be given to a VM: PCI device 0000:5e:00.2 is "));
  EXPECT_THAT(render_devices(json::object()), HasSubstr("doctor"));
}

TEST(Doctor, BadOnesComeWithAdvice) {
  const json answer = json::parse(R"({"ok":false,"checks":[
    {"check":"slurmctld answers","ok":true,"detail":"yes"},
    {"check":"fence agent","ok":false,"detail":"none","advice":"set fence_command"}]})");
  const std::string text = render_doctor(answer);
  EXPECT_THAT(text, HasSubstr("ok   slurmctld answers: yes\n"));
  EXPECT_THAT(text, HasSubstr("BAD  fence agent: none\n"));
  EXPECT_THAT(text, HasSubstr("-> set fence_command\n"));
  EXPECT_THAT(text, HasSubstr("1 of 2"));
}

TEST(Events, MessagesAndProgress) {
  Event event;
  event.type = EventType::kStepDone;
  event.vm = "v1";
  event.phase = Phase::kMigrate;
  event.time_ns = 1'700'000'000 * kSecond;
  EXPECT_THAT(render_event(view_of(event, evacuation())),
              HasSubstr(" evacuate 12: v1 migrate done\n"));
  const json progress = {{"event", "progress"},
                         {"tx", 12},
                         {"vm", "v1"},
                         {"time_s", 1.7e9},
                         {"progress", {{"done_bytes", 1024}, {"total_bytes", 4096}}}};
  EXPECT_THAT(render_event(progress), HasSubstr(" 12: v1 25 % of 4.0 KiB\n"));
}

// Another version's answers, or a broken one's: text, whatever it says, and no exception.
TEST(Render, NothingInAnAnswerIsTrusted) {
  const json odd[] = {json(),
                      json::array(),
                      json("text"),
                      {{"vms", 3}, {"hosts", "x"}, {"transactions", {1, "a", nullptr}}},
                      {{"vms", {1, {{"vm", 3}, {"failure", "x"}, {"progress", 7}}}},
                       {"phases", {json::array()}},
                       {"jobs", {{{"a", 1}}}},
                       {"id", "12"},
                       {"begun_s", "now"}},
                      {{"checks", {5}}, {"devices", {nullptr}}, {"cause", "\xff\xfe"}}};
  for (const json& j : odd) {
    for (auto* render : {render_status, render_list, render_transaction, render_devices,
                         render_doctor, render_event})
      EXPECT_FALSE(render(j).empty());
    EXPECT_THAT(progress_line(j, 1, 80), Not(HasSubstr("\n")));
  }
}

}  // namespace
}  // namespace symvirt
