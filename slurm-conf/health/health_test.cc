#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "slurm-conf/health/config.h"
#include "slurm-conf/health/hardware.h"
#include "slurm-conf/health/history.h"
#include "slurm-conf/health/site_checks.h"
#include "slurm-conf/programs/own_node.h"
#include "common/subprocess.h"

namespace symvirt::health {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

constexpr std::int64_t kHour = 3'600'000;

class Folder : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "symvirt-health-XXXXXX";
    root_ = mkdtemp(pattern.data());
  }
  void TearDown() override { fs::remove_all(root_); }

  void write(const fs::path& file, const std::string& text) {
    fs::create_directories((root_ / file).parent_path());
    std::ofstream(root_ / file) << text;
  }
  void script(const fs::path& file, const std::string& body, mode_t mode = 0755) {
    write(file, "#!/bin/sh\n" + body + "\n");
    chmod((root_ / file).c_str(), mode);
  }
  std::string read(const fs::path& file) {
    std::stringstream text;
    text << std::ifstream(root_ / file).rdbuf();
    return text.str();
  }

  fs::path root_;
};

// --- configuration ---

TEST(HealthConfig, TheTemplateIsGood) {
  const auto config = load_config(SYMVIRT_HEALTH_TEMPLATE);
  ASSERT_TRUE(config) << config.error().message;
  // It says that it shows the defaults.
  const Config defaults;
  EXPECT_EQ(config->window_ms, defaults.window_ms);
  EXPECT_EQ(config->state_file, defaults.state_file);
  EXPECT_EQ(config->memory.corrected, defaults.memory.corrected);
  EXPECT_EQ(config->memory.uncorrected, defaults.memory.uncorrected);
  EXPECT_EQ(config->checks.folder, defaults.checks.folder);
  EXPECT_EQ(config->checks.timeout_ms, defaults.checks.timeout_ms);
}

TEST(HealthConfig, Ports) {
  const auto config = parse_config(
      "[[port]]\ndevice = \"eth9\"\ndown_seconds = 5\n[[port]]\nkind = \"infiniband\"\ndevice = "
      "\"mlx5_0\"\nport = 2\n"
      "counters = [\"symbol_error\"]\nmay_be_absent = false\n",
      "f");
  ASSERT_TRUE(config) << config.error().message;
  ASSERT_THAT(config->ports, SizeIs(2));
  EXPECT_EQ(config->ports[0].down_ms, 5000);
  EXPECT_EQ(config->ports[0].counters, default_counters(PortKind::kNet));
  EXPECT_EQ(config->ports[1].kind, PortKind::kInfiniband);
  EXPECT_EQ(config->ports[1].port, 2u);
  EXPECT_THAT(config->ports[1].counters, testing::ElementsAre("symbol_error"));
  EXPECT_FALSE(config->ports[1].may_be_absent);
}

struct Wrong {
  const char* text;
  const char* where;
  const char* what;
};

class HealthConfigWrong : public testing::TestWithParam<Wrong> {};

TEST_P(HealthConfigWrong, IsNamedWithItsLine) {
  const auto config = parse_config(GetParam().text, "health.toml");
  ASSERT_FALSE(config);
  EXPECT_EQ(config.error().code, Code::kInvalidArgument);
  EXPECT_THAT(config.error().message,
              testing::StartsWith(fmt::format("health.toml:{}:", GetParam().where)));
  EXPECT_THAT(config.error().message, HasSubstr(GetParam().what));
}

INSTANTIATE_TEST_SUITE_P(
    All, HealthConfigWrong,
    testing::Values(Wrong{"not ] toml", "1", ""},
                    Wrong{"\nwindow = 3\n", "2", "unknown key 'window'"},
                    Wrong{"[memory]\ncorected = 3\n", "2", "unknown key 'corected'"},
                    Wrong{"[memory]\ncorrected = -3\n", "2", "corrected"},
                    Wrong{"[memory]\nenabled = 1\n", "2", "enabled"},
                    Wrong{"window_seconds = 3\n", "1", "window_seconds: 60 to"},
                    Wrong{"[checks]\ntimeout = 60\n", "2", "timeout: 1 to 40"},
                    Wrong{"[checks]\nfolder = 3\n", "2", "folder"},
                    Wrong{"[[port]]\nkind = \"net\"\n", "1", "device"},
                    Wrong{"[[port]]\ndevice = \"a/../b\"\n", "1", "device"},
                    Wrong{"[[port]]\ndevice = \"a\"\nkind = \"fc\"\n", "3", "kind"},
                    Wrong{"[[port]]\ndevice = \"a\"\ncounters = [\"../x\"]\n", "3", "counters"},
                    Wrong{"[[port]]\ndevice = \"a\"\nport = 1\n", "3", "unknown key 'port'"},
                    Wrong{"[port]\ndevice = \"a\"\n", "1", "[[port]]"}));

// --- history ---

TEST_F(Folder, GrowthIsCountedOverTheWindow) {
  const std::string file = root_ / "h.json";
  const auto at = [&](std::int64_t minutes, std::uint64_t value, const std::string& boot = "a") {
    History history({boot, 1'000'000 + minutes * 60'000}, kHour);
    history.load(file);
    const std::uint64_t grown = history.growth("c", value);
    EXPECT_TRUE(history.save(file));
    return grown;
  };
  EXPECT_EQ(at(0, 500), 0u) << "what was there at first sight has no time";
  EXPECT_EQ(at(1, 510), 10u);
  EXPECT_EQ(at(30, 520), 20u);
  EXPECT_EQ(at(61, 520), 10u) << "the first ten are older than an hour, by now";
  EXPECT_EQ(at(300, 520), 0u);
  EXPECT_EQ(at(301, 7), 7u) << "reset: counts from 0";
  EXPECT_EQ(at(302, 9), 9u);
  EXPECT_EQ(at(1, 3, "b"), 3u) << "another boot: counts from 0, and old times mean nothing";
}

TEST_F(Folder, AWindowNeedsFewPoints) {
  const std::string file = root_ / "h.json";
  for (int i = 0; i < 2000; ++i) {
    History history({"a", 1'000'000 + i * 10'000}, kHour);
    history.load(file);
    const std::uint64_t grown = history.growth("c", 5 * i);
    ASSERT_TRUE(history.save(file));
    // 360 runs an hour; the edge of the window is a step of 1/24 wide.
    if (i > 400) {
      ASSERT_NEAR(static_cast<double>(grown), 1800, 1800 / 24.0 + 5);
    }
  }
  EXPECT_LT(fs::file_size(file), 2000u);
}

TEST_F(Folder, ABrokenHistoryIsAsGoodAsNone) {
  for (const char* text :
       {"", "{", "[]", "{\"format\":1}", "{\"format\":2,\"counters\":{},\"conditions\":{}}",
        "{\"format\":1,\"boot_id\":\"a\",\"counters\":{\"c\":[[1,2,3],[-1,\"x\"],7]},"
        "\"conditions\":{\"d\":-1}}",
        "{\"format\":1,\"boot_id\":\"a\",\"counters\":{\"c\":3},\"conditions\":{}}"}) {
    write("h.json", text);
    History history({"a", 1'000'000}, kHour);
    history.load(root_ / "h.json");
    EXPECT_EQ(history.growth("c", 50), 0u) << text;
    EXPECT_EQ(history.lasting("d", true), 0) << text;
  }
}

TEST_F(Folder, ConditionsLast) {
  const std::string file = root_ / "h.json";
  const auto at = [&](std::int64_t ms, bool down) {
    History history({"a", ms}, kHour);
    history.load(file);
    const std::int64_t lasts = history.lasting("link", down);
    EXPECT_TRUE(history.save(file));
    return lasts;
  };
  EXPECT_EQ(at(1000, true), 0);
  EXPECT_EQ(at(31'000, true), 30'000);
  EXPECT_EQ(at(32'000, false), 0);
  EXPECT_EQ(at(33'000, true), 0) << "it was up in between";
}

TEST_F(Folder, AHistoryThatCannotBeWrittenIsAnError) {
  History history({"a", 1}, kHour);
  const Status status = history.save("/proc/symvirt/health.json");
  ASSERT_FALSE(status);
  EXPECT_THAT(status.error().message, HasSubstr("/proc/symvirt/health.json"));
}

// --- memory and ports, in a fake sysfs ---

class Hardware : public Folder {
 protected:
  std::vector<Failure> memory(std::int64_t ms, const MemoryLimits& limits = {}) {
    return look(ms, [&](History& h) { return check_memory(limits, kHour, root_ / "sys", h); });
  }
  std::vector<Failure> port(std::int64_t ms, const Port& p) {
    return look(ms, [&](History& h) { return check_port(p, kHour, root_ / "sys", h); });
  }
  static Port net(const std::string& device) {
    Port p;
    p.device = device;
    p.counters = default_counters(PortKind::kNet);
    return p;
  }
  static Port infiniband() {
    Port p;
    p.kind = PortKind::kInfiniband;
    p.device = "mlx5_0";
    p.counters = default_counters(PortKind::kInfiniband);
    return p;
  }
  void count(const std::string& file, int value) {
    write("sys/" + file, fmt::format("{}\n", value));
  }

 private:
  template <typename F>
  std::vector<Failure> look(std::int64_t ms, F check) {
    History history({"boot", 1'000'000 + ms}, kHour);
    history.load(root_ / "h.json");
    auto failures = check(history);
    EXPECT_TRUE(history.save(root_ / "h.json"));
    return failures;
  }
};

TEST_F(Hardware, MachinesWithoutEdacAreHealthy) { EXPECT_THAT(memory(0), IsEmpty()); }

TEST_F(Hardware, CorrectedErrorsByRate) {
  count("devices/system/edac/mc/mc0/ce_count", 10'000);
  count("devices/system/edac/mc/mc0/ue_count", 0);
  EXPECT_THAT(memory(0), IsEmpty());
  count("devices/system/edac/mc/mc0/ce_count", 10'100);
  EXPECT_THAT(memory(10'000), IsEmpty()) << "the limit itself is allowed";
  count("devices/system/edac/mc/mc0/ce_count", 10'101);
  const auto failures = memory(20'000);
  ASSERT_THAT(failures, SizeIs(1));
  EXPECT_EQ(failures[0].check, "memory");
  EXPECT_EQ(failures[0].reason, "mc0: corrected errors: 101 within 60 min, limit 100");
  EXPECT_THAT(memory(2 * kHour), IsEmpty()) << "an hour of silence";
}

TEST_F(Hardware, OneUncorrectedErrorIsEnough) {
  count("devices/system/edac/mc/mc1/ue_count", 3);
  EXPECT_THAT(memory(0), IsEmpty());
  count("devices/system/edac/mc/mc1/ue_count", 4);
  ASSERT_THAT(memory(10'000), SizeIs(1));
  MemoryLimits off;
  off.enabled = false;
  EXPECT_THAT(memory(10'000, off), IsEmpty());
}

TEST_F(Hardware, LinkDownForSomeTime) {
  write("sys/class/net/p0/operstate", "up\n");
  EXPECT_THAT(port(0, net("p0")), IsEmpty());
  write("sys/class/net/p0/operstate", "down\n");
  EXPECT_THAT(port(10'000, net("p0")), IsEmpty());
  EXPECT_THAT(port(39'000, net("p0")), IsEmpty());
  const auto failures = port(40'000, net("p0"));
  ASSERT_THAT(failures, SizeIs(1));
  EXPECT_EQ(failures[0].reason, "p0: link down for 30 s");
  Port any = net("p0");
  any.link_up = false;
  EXPECT_THAT(port(50'000, any), IsEmpty());
  Port strict = net("p1");
  strict.down_ms = 0;
  write("sys/class/net/p1/operstate", "lowerlayerdown\n");
  ASSERT_THAT(port(0, strict), SizeIs(1));
}

TEST_F(Hardware, DriversThatDoNotTellTheirState) {
  Port p = net("p0");
  p.down_ms = 0;
  write("sys/class/net/p0/operstate", "unknown\n");
  write("sys/class/net/p0/carrier", "1\n");
  EXPECT_THAT(port(0, p), IsEmpty());
  write("sys/class/net/p0/carrier", "0\n");
  EXPECT_THAT(port(0, p), SizeIs(1));
}

TEST_F(Hardware, APortThatWasGivenAwayIsNotMissed) {
  EXPECT_THAT(port(0, net("gone")), IsEmpty());
  Port needed = net("gone");
  needed.may_be_absent = false;
  const auto failures = port(0, needed);
  ASSERT_THAT(failures, SizeIs(1));
  EXPECT_EQ(failures[0].reason, "gone: not there");
}

TEST_F(Hardware, ErrorsAndLinkChangesOfANic) {
  write("sys/class/net/p0/operstate", "up\n");
  count("class/net/p0/statistics/rx_errors", 5);
  count("class/net/p0/carrier_changes", 2);
  EXPECT_THAT(port(0, net("p0")), IsEmpty());
  count("class/net/p0/statistics/rx_errors", 2000);
  count("class/net/p0/carrier_changes", 30);
  const auto failures = port(10'000, net("p0"));
  ASSERT_THAT(failures, SizeIs(2));
  EXPECT_EQ(failures[0].reason, "p0: rx_errors: 1995 within 60 min, limit 1000");
  EXPECT_EQ(failures[1].reason, "p0: link changes: 28 within 60 min, limit 20");
}

TEST_F(Hardware, Infiniband) {
  write("sys/class/infiniband/mlx5_0/ports/1/state", "4: ACTIVE\n");
  count("class/infiniband/mlx5_0/ports/1/counters/symbol_error", 0);
  Port p = infiniband();
  p.down_ms = 0;
  EXPECT_THAT(port(0, p), IsEmpty());
  count("class/infiniband/mlx5_0/ports/1/counters/symbol_error", 1001);
  write("sys/class/infiniband/mlx5_0/ports/1/state", "1: DOWN\n");
  const auto failures = port(10'000, p);
  ASSERT_THAT(failures, SizeIs(2));
  EXPECT_EQ(failures[0].reason, "mlx5_0/1: port state 1: DOWN");
  EXPECT_EQ(failures[1].reason, "mlx5_0/1: symbol_error: 1001 within 60 min, limit 1000");
}

// --- site checks ---

class Checks : public Folder {
 protected:
  SiteFindings run(std::int64_t timeout_ms = 5000,
                   std::chrono::milliseconds all = std::chrono::seconds(20)) {
    return run_site_checks({root_.string(), timeout_ms}, Deadline::after(all));
  }
};

TEST_F(Checks, FirstLineIsTheReason) {
  script("b", "echo fan 3 stands; echo more; exit 4");
  script("a", "exit 1");
  script("good", "echo all is well");
  const SiteFindings found = run();
  ASSERT_THAT(found.failures, SizeIs(2));
  EXPECT_EQ(found.failures[0].check + "|" + found.failures[0].reason, "a|exit code 1");
  EXPECT_EQ(found.failures[1].check + "|" + found.failures[1].reason, "b|fan 3 stands");
  EXPECT_THAT(found.errors, IsEmpty());
}

TEST_F(Checks, WhatIsNoCheckIsNotRun) {
  for (const char* name : {"a~", ".b", "c.dpkg-old", "d.rpmsave"}) script(name, "exit 1");
  script("README.md", "exit 1", 0644);
  fs::create_directory(root_ / "folder");
  const SiteFindings found = run();
  EXPECT_THAT(found.failures, IsEmpty());
  EXPECT_THAT(found.errors, IsEmpty());
}

TEST_F(Checks, NoFolderIsNoError) {
  const SiteFindings found =
      run_site_checks({(root_ / "none").string(), 1000}, Deadline::after(std::chrono::seconds(5)));
  EXPECT_THAT(found.failures, IsEmpty());
  EXPECT_THAT(found.errors, IsEmpty());
}

TEST_F(Checks, FilesOthersMayWriteAreNotRun) {
  script("open", "touch " + (root_ / "was-run").string() + "; exit 1", 0777);
  const SiteFindings found = run();
  EXPECT_THAT(found.failures, IsEmpty());
  ASSERT_THAT(found.errors, SizeIs(1));
  EXPECT_FALSE(fs::exists(root_ / "was-run"));
}

TEST_F(Checks, WhatCannotBeStartedIsNoFailure) {
  write("broken", "#!/no/such/interpreter\n");
  chmod((root_ / "broken").c_str(), 0755);
  const SiteFindings found = run();
  EXPECT_THAT(found.failures, IsEmpty());
  EXPECT_THAT(found.errors, SizeIs(1));
}

TEST_F(Checks, HangingOnesFailAllAtOnce) {
  for (int i = 0; i < 8; ++i) script(fmt::format("hang{}", i), "trap '' TERM; sleep 600");
  const auto start = std::chrono::steady_clock::now();
  const SiteFindings found = run(1000);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(6));
  ASSERT_THAT(found.failures, SizeIs(8));
  EXPECT_EQ(found.failures[0].reason, "no answer within 1 s");
}

TEST_F(Checks, AllTogetherHaveADeadline) {
  for (int i = 0; i < 30; ++i) script(fmt::format("hang{}", i), "sleep 600");
  const auto start = std::chrono::steady_clock::now();
  run(20'000, std::chrono::seconds(2));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(15));
}

// --- the program, with a fake scontrol ---

class Program : public Folder {
 protected:
  void SetUp() override {
    Folder::SetUp();
    script("bin/scontrol",
           "echo \"$*\" >> " + (root_ / "asked").string() + "\n" +
               "case \"$*\" in *show*) echo \"NodeName=hvX Arch=x86_64 State=$(cat " +
               (root_ / "state").string() + ") ThreadsPerCore=1 Reason=$(cat " +
               (root_ / "reason").string() + ") [root@2026-11-23T02:00:00]\";; esac\n" +
               "exit $(cat " + (root_ / "exit").string() + ")");
    write("state", "IDLE");
    write("reason", "");
    write("exit", "0");
    write("health.toml",
          fmt::format("state_file = \"{0}/h.json\"\n[checks]\nfolder = \"{0}/health.d\"\n",
                      root_.string()));
    fs::create_directory(root_ / "sys");
    saved_path_ = std::getenv("PATH");
    setenv("PATH", ((root_ / "bin").string() + ":" + saved_path_).c_str(), 1);
    setenv("SLURMD_NODENAME", "hvX", 1);
  }
  void TearDown() override {
    setenv("PATH", saved_path_.c_str(), 1);
    unsetenv("SLURMD_NODENAME");
    Folder::TearDown();
  }

  ProgramResult run(std::vector<std::string> more = {}) {
    std::vector<std::string> argv = {SYMVIRT_HEALTH_PROGRAM, "--config", root_ / "health.toml",
                                     "--sysfs-root", root_ / "sys"};
    argv.insert(argv.end(), more.begin(), more.end());
    auto result = run_program(argv, Deadline::after(std::chrono::seconds(60)));
    EXPECT_TRUE(result);
    return result ? *result : ProgramResult{};
  }
  bool drained() { return read("asked").find("update") != std::string::npos; }

 private:
  std::string saved_path_;
};

TEST_F(Program, AHealthyHostAsksNobody) {
  const auto result = run();
  EXPECT_EQ(result.exit_code, 0) << result.output;
  EXPECT_EQ(read("asked"), "");
}

TEST_F(Program, AFailingHostDrainsItself) {
  script("health.d/fan", "echo fan 3 \\\"stands\\\"; exit 1");
  const auto result = run();
  EXPECT_EQ(result.exit_code, 1) << result.output;
  EXPECT_THAT(read("asked"),
              HasSubstr("update nodename=hvX state=drain reason=symvirt: fan: fan 3  stands \n"));
}

TEST_F(Program, SomebodyElsesReasonIsLeftAlone) {
  script("health.d/fan", "exit 1");
  for (const char* state :
       {"MIXED+DRAIN", "IDLE+DRAIN", "DOWN", "DOWN+NOT_RESPONDING", "ALLOCATED+FAIL"}) {
    write("state", state);
    write("reason", "bad disk, do not touch");
    const auto result = run();
    EXPECT_EQ(result.exit_code, 1) << state << result.output;
    EXPECT_FALSE(drained()) << state;
  }
}

TEST_F(Program, ABrokenConfigurationDoesNotDrain) {
  script("health.d/fan", "exit 1");
  write("health.toml", "[memory]\ncorected = 3\n");
  const auto result = run();
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.output, HasSubstr("health.toml:2:"));
  EXPECT_EQ(read("asked"), "");
  fs::remove(root_ / "health.toml");
  EXPECT_EQ(run().exit_code, 2);
  EXPECT_EQ(read("asked"), "");
}

TEST_F(Program, ASlurmctldThatIsAwayIsAnError) {
  script("health.d/fan", "exit 1");
  write("exit", "1");
  const auto result = run();
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.output, HasSubstr("not drained"));
}

TEST_F(Program, DryRunDrainsNothingAndRemembersNothing) {
  script("health.d/fan", "exit 1");
  EXPECT_EQ(run({"--dry-run"}).exit_code, 1);
  EXPECT_EQ(read("asked"), "");
  EXPECT_FALSE(fs::exists(root_ / "h.json"));
}

TEST_F(Program, Json) {
  script("health.d/fan", "echo stands; exit 1");
  const auto out = nlohmann::json::parse(run({"--json", "--dry-run"}).output, nullptr, false);
  ASSERT_TRUE(out.is_object());
  EXPECT_EQ(out["schema_version"], 1);
  EXPECT_EQ(out["node"], "hvX");
  EXPECT_EQ(out["healthy"], false);
  EXPECT_EQ(out["failures"][0]["check"], "fan");
  EXPECT_EQ(out["failures"][0]["reason"], "stands");
  EXPECT_EQ(out["drain"], "would");
}

TEST_F(Program, MemoryErrorsDrainAndForgetForgets) {
  write("sys/devices/system/edac/mc/mc0/ue_count", "0\n");
  EXPECT_EQ(run().exit_code, 0);
  write("sys/devices/system/edac/mc/mc0/ue_count", "1\n");
  EXPECT_EQ(run().exit_code, 1);
  EXPECT_TRUE(drained());
  EXPECT_THAT(read("asked"),
              HasSubstr("symvirt: memory: mc0: uncorrected errors: 1 within 60 min, limit 0"));
  EXPECT_EQ(run({"--forget"}).exit_code, 0);
  EXPECT_EQ(run().exit_code, 0);
}

TEST_F(Program, WrongArgumentsAreErrors) { EXPECT_EQ(run({"--drain"}).exit_code, 2); }

}  // namespace
}  // namespace symvirt::health
