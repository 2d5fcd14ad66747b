#include "spank-symvirt/plugin/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

namespace symvirt::plugin {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

Options::Environment environment(std::map<std::string, std::string> variables = {}) {
  return [variables = std::move(variables)](const char* name) -> std::optional<std::string> {
    const auto found = variables.find(name);
    if (found == variables.end()) return std::nullopt;
    return found->second;
  };
}

Result<Decision> job(const Options& options, std::map<std::string, std::string> variables = {}) {
  return options.decide(environment(std::move(variables)), false);
}
Result<Decision> step(const Options& options, std::map<std::string, std::string> variables = {}) {
  return options.decide(environment(std::move(variables)), true);
}

TEST(Options, NothingGivenIsNotWanted) {
  const Result<Decision> decision = job({});
  ASSERT_TRUE(decision);
  EXPECT_FALSE(decision->wanted());
}

TEST(Options, WithoutAClassItIsTheDefault) {
  for (const char* argument : {static_cast<const char*>(nullptr), "", "(null)", "1"}) {
    Options options;
    ASSERT_TRUE(options.give(OptionId::kSymvirt, argument));
    EXPECT_EQ(job(options)->vm_class, "default");
  }
}

TEST(Options, AllOfThemTogether) {
  Options options;
  ASSERT_TRUE(options.give(OptionId::kSymvirt, "hca-1.x_y"));
  ASSERT_TRUE(options.give(OptionId::kFt, "none"));
  ASSERT_TRUE(options.give(OptionId::kQuiesceTimeout, "90"));
  EXPECT_EQ(*job(options), (Decision{"hca-1.x_y", Ft::kNone, 90}));
}

TEST(Options, LaterOnesWin) {
  Options off;
  ASSERT_TRUE(off.give(OptionId::kSymvirt, "a"));
  ASSERT_TRUE(off.give(OptionId::kNoSymvirt, nullptr));
  EXPECT_FALSE(job(off, {{"SYMVIRT", "b"}})->wanted());
  Options on;
  ASSERT_TRUE(on.give(OptionId::kNoSymvirt, nullptr));
  ASSERT_TRUE(on.give(OptionId::kSymvirt, "a"));
  ASSERT_TRUE(on.give(OptionId::kSymvirt, "c"));
  EXPECT_EQ(job(on)->vm_class, "c");
}

TEST(Options, EveryBadValueIsRefusedInTheUsersWords) {
  const std::vector<std::tuple<OptionId, std::string, std::string>> bad = {
      {OptionId::kSymvirt, "a b", "--symvirt=a b"},
      {OptionId::kSymvirt, "-x", "--symvirt=-x"},
      {OptionId::kSymvirt, ".x", "--symvirt=.x"},
      {OptionId::kSymvirt, "../etc", "--symvirt=../etc"},
      {OptionId::kSymvirt, "ä", "--symvirt=ä"},
      {OptionId::kSymvirt, "0", "--symvirt=0: use --no-symvirt"},
      {OptionId::kSymvirt, std::string(65, 'x'), "--symvirt=xxx"},
      {OptionId::kFt, "", "--symvirt-ft: valid are"},
      {OptionId::kFt, "often", "--symvirt-ft=often: valid are"},
      {OptionId::kFt, "NONE", "--symvirt-ft=NONE"},
      {OptionId::kQuiesceTimeout, "", "--symvirt-quiesce-timeout:"},
      {OptionId::kQuiesceTimeout, "0", "--symvirt-quiesce-timeout=0:"},
      {OptionId::kQuiesceTimeout, "3601", "--symvirt-quiesce-timeout=3601:"},
      {OptionId::kQuiesceTimeout, "-1", "--symvirt-quiesce-timeout=-1:"},
      {OptionId::kQuiesceTimeout, "1.5", "--symvirt-quiesce-timeout=1.5:"},
      {OptionId::kQuiesceTimeout, "10s", "--symvirt-quiesce-timeout=10s:"},
      {OptionId::kQuiesceTimeout, "99999999999", "--symvirt-quiesce-timeout=99999999999:"},
  };
  for (const auto& [id, argument, begin] : bad) {
    Options options;
    const Status status = options.give(id, argument.c_str());
    ASSERT_FALSE(status) << argument;
    EXPECT_THAT(status.error().message, StartsWith(begin));
  }
}

TEST(Options, TwinsCountWhereTheCommandLineIsSilent) {
  EXPECT_EQ(*job({}, {{"SYMVIRT", "vf"}, {"SYMVIRT_FT", "none"}, {"SYMVIRT_QUIESCE_TIMEOUT", "7"}}),
            (Decision{"vf", Ft::kNone, 7}));
  EXPECT_EQ(job({}, {{"SYMVIRT", "1"}})->vm_class, "default");
  EXPECT_FALSE(job({}, {{"SYMVIRT", "0"}})->wanted());
  EXPECT_FALSE(job({}, {{"SYMVIRT", ""}})->wanted());
  // Somebody's profile sets the policy, the job is an ordinary one: nothing is wrong.
  EXPECT_FALSE(job({}, {{"SYMVIRT_FT", "none"}, {"SYMVIRT_QUIESCE_TIMEOUT", "x"}})->wanted());
  Options options;
  ASSERT_TRUE(options.give(OptionId::kSymvirt, "hca"));
  ASSERT_TRUE(options.give(OptionId::kFt, "proactive"));
  ASSERT_TRUE(options.give(OptionId::kQuiesceTimeout, "5"));
  EXPECT_EQ(
      *job(options, {{"SYMVIRT", "!"}, {"SYMVIRT_FT", "none"}, {"SYMVIRT_QUIESCE_TIMEOUT", "x"}}),
      (Decision{"hca", Ft::kProactive, 5}));
}

TEST(Options, BadTwinsAreRefusedInTheirOwnWords) {
  EXPECT_THAT(job({}, {{"SYMVIRT", "a/b"}}).error().message, StartsWith("SYMVIRT=a/b: "));
  EXPECT_THAT(job({}, {{"SYMVIRT", "1"}, {"SYMVIRT_FT", "x"}}).error().message,
              StartsWith("SYMVIRT_FT=x: "));
  EXPECT_THAT(job({}, {{"SYMVIRT", "1"}, {"SYMVIRT_QUIESCE_TIMEOUT", "x"}}).error().message,
              StartsWith("SYMVIRT_QUIESCE_TIMEOUT=x: "));
}

TEST(Options, PolicyNeedsTheFlag) {
  Options ft;
  ASSERT_TRUE(ft.give(OptionId::kFt, "none"));
  EXPECT_THAT(job(ft).error().message, HasSubstr("needs --symvirt"));
  Options timeout;
  ASSERT_TRUE(timeout.give(OptionId::kQuiesceTimeout, "5"));
  EXPECT_THAT(job(timeout).error().message, HasSubstr("needs --symvirt"));
  ASSERT_TRUE(timeout.give(OptionId::kNoSymvirt, nullptr));
  EXPECT_FALSE(job(timeout)->wanted());
}

const std::map<std::string, std::string> kInside = {{"SLURM_SPANK_SYMVIRT", "hca"},
                                                    {"SLURM_SPANK_SYMVIRT_FT", "none"},
                                                    {"SLURM_SPANK_SYMVIRT_QUIESCE_TIMEOUT", "9"}};

TEST(Options, AStepInheritsWhatItsJobGot) {
  EXPECT_EQ(*step({}, kInside), (Decision{"hca", Ft::kNone, 9}));
  Options same;
  ASSERT_TRUE(same.give(OptionId::kSymvirt, nullptr));
  EXPECT_EQ(step(same, kInside)->vm_class, "hca");
  // The twin was for the job; an allocation made with --no-symvirt stays one.
  EXPECT_FALSE(step({}, {{"SYMVIRT", "hca"}})->wanted());
}

TEST(Options, AStepMayDoWithoutButCannotChange) {
  Options without;
  ASSERT_TRUE(without.give(OptionId::kNoSymvirt, nullptr));
  EXPECT_FALSE(step(without, kInside)->wanted());
  Options other;
  ASSERT_TRUE(other.give(OptionId::kSymvirt, "vf"));
  EXPECT_THAT(step(other, kInside).error().message, HasSubstr("the allocation is of class hca"));
  EXPECT_THAT(step(other).error().message, HasSubstr("the allocation was made without it"));
}

TEST(Options, SlurmstepdReadsWhatTheCommandHandedOn) {
  EXPECT_EQ(*decision_from_job(environment(kInside)), (Decision{"hca", Ft::kNone, 9}));
  EXPECT_FALSE(decision_from_job(environment())->wanted());
  EXPECT_FALSE(decision_from_job(environment({{"SLURM_SPANK_SYMVIRT", "0"}}))->wanted());
  EXPECT_FALSE(decision_from_job(environment({{"SLURM_SPANK_SYMVIRT_FT", "broken"}}))->wanted());
  for (const auto& [name, value] :
       std::map<std::string, std::string>{{"SLURM_SPANK_SYMVIRT", "a b"},
                                          {"SLURM_SPANK_SYMVIRT_FT", "x"},
                                          {"SLURM_SPANK_SYMVIRT_QUIESCE_TIMEOUT", "x"}}) {
    std::map<std::string, std::string> broken = kInside;
    broken[name] = value;
    EXPECT_FALSE(decision_from_job(environment(broken))) << name;
  }
}

TEST(Options, TheTableIsAManual) {
  for (const OptionSpec& spec : option_table()) {
    EXPECT_EQ(find_option(static_cast<int>(spec.id)), &spec);
    EXPECT_THAT(spec.name, HasSubstr("symvirt"));
    EXPECT_THAT(spec.usage, StartsWith("[symvirt] "));
    EXPECT_THAT(spec.usage, HasSubstr("Environment: "));
    if (spec.variable != nullptr) {
      EXPECT_THAT(spec.usage, HasSubstr(spec.variable));
    }
    EXPECT_EQ(spec.argument == Argument::kNone, spec.arginfo == nullptr);
  }
  EXPECT_EQ(find_option(0), nullptr);
}

}  // namespace
}  // namespace symvirt::plugin
