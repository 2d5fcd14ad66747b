#include "spank-symvirt/cli/options.h"

#include <gtest/gtest.h>

namespace symvirt {
namespace {

using Words = std::vector<std::string>;

CtlOptions good(const Words& words) {
  auto parsed = parse_options(words, "1.2.3");
  if (const ParseEnd* end = std::get_if<ParseEnd>(&parsed)) {
    ADD_FAILURE() << end->err << end->out;
    return {};
  }
  return std::get<CtlOptions>(parsed);
}

ParseEnd bad(const Words& words) {
  auto parsed = parse_options(words, "1.2.3");
  if (const ParseEnd* end = std::get_if<ParseEnd>(&parsed)) return *end;
  ADD_FAILURE() << "accepted";
  return {};
}

TEST(Options, EveryCommandIsKnown) {
  EXPECT_EQ(good({"status"}).command, Command::kStatus);
  EXPECT_EQ(good({"list"}).command, Command::kList);
  EXPECT_EQ(good({"show", "7"}).command, Command::kShow);
  EXPECT_EQ(good({"evacuate", "hv1"}).command, Command::kEvacuate);
  EXPECT_EQ(good({"migrate", "v1"}).command, Command::kMigrate);
  EXPECT_EQ(good({"cancel", "7"}).command, Command::kCancel);
  EXPECT_EQ(good({"events"}).command, Command::kEvents);
  EXPECT_EQ(good({"devices"}).command, Command::kDevices);
  EXPECT_EQ(good({"doctor"}).command, Command::kDoctor);
  EXPECT_EQ(good({"check-config"}).command, Command::kCheckConfig);
}

TEST(Options, GlobalOnesStandBeforeOrBehindTheCommand) {
  for (const Words& words :
       {Words{"--json", "--server", "ctl:7", "status"}, Words{"status", "--server=ctl:7", "-j"}}) {
    const CtlOptions o = good(words);
    EXPECT_TRUE(o.json);
    EXPECT_EQ(o.server, "ctl:7");
  }
}

TEST(Options, MovesAreWaitedForUnlessToldOtherwise) {
  EXPECT_TRUE(good({"evacuate", "hv1"}).wait);
  EXPECT_FALSE(good({"evacuate", "hv1", "--no-wait"}).wait);
  EXPECT_TRUE(good({"migrate", "v1", "--to", "hv3"}).wait);
  EXPECT_FALSE(good({"migrate", "--no-wait", "v1"}).wait);
  EXPECT_FALSE(good({"show", "3"}).wait);
  EXPECT_TRUE(good({"show", "3", "--wait"}).wait);
  EXPECT_FALSE(good({"status"}).wait);
}

TEST(Options, Values) {
  const CtlOptions m = good({"migrate", "v1", "--to", "hv3", "--timeout", "60"});
  EXPECT_EQ(m.vm, "v1");
  EXPECT_EQ(m.to, "hv3");
  EXPECT_EQ(m.timeout_s, 60);
  EXPECT_EQ(good({"cancel", "12"}).id, 12);
  const CtlOptions e = good({"events", "--follow", "--since", "44"});
  EXPECT_TRUE(e.follow);
  EXPECT_EQ(e.since, 44);
  EXPECT_TRUE(good({"list", "--all"}).all);
  EXPECT_EQ(good({"check-config", "-c", "/x.toml"}).config, "/x.toml");
}

TEST(Options, WrongOnesExitWithOneAndAReason) {
  for (const Words& words :
       {Words{}, Words{"explode"}, Words{"show"}, Words{"show", "x"}, Words{"show", "-3"},
        Words{"show", "0"}, Words{"evacuate"}, Words{"evacuate", "a", "b"}, Words{"migrate"},
        Words{"migrate", "v1", "--to"}, Words{"cancel"}, Words{"events", "--since", "many"},
        Words{"status", "--colour"}, Words{"status", "list"}}) {
    const ParseEnd end = bad(words);
    EXPECT_EQ(end.exit_code, 1) << testing::PrintToString(words);
    EXPECT_FALSE(end.err.empty()) << testing::PrintToString(words);
  }
}

TEST(Options, ANumberThatIsNoneIsNamed) {
  EXPECT_NE(bad({"show", "-3"}).err.find("not -3"), std::string::npos) << bad({"show", "-3"}).err;
  EXPECT_LT(bad({"show", "x"}).err.size(), 200u);
}

TEST(Options, HelpAndVersionAreNoErrors) {
  const ParseEnd help = bad({"--help"});
  EXPECT_EQ(help.exit_code, 0);
  EXPECT_NE(help.out.find("Exit codes:"), std::string::npos);
  EXPECT_NE(help.out.find("evacuate"), std::string::npos);
  const ParseEnd of_command = bad({"migrate", "--help"});
  EXPECT_EQ(of_command.exit_code, 0);
  EXPECT_NE(of_command.out.find("--no-wait"), std::string::npos);
  const ParseEnd version = bad({"--version"});
  EXPECT_EQ(version.exit_code, 0);
  EXPECT_NE(version.out.find("1.2.3"), std::string::npos);
}

}  // namespace
}  // namespace symvirt
