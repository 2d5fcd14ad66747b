#include "pmix-hooks/message.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "pmix-hooks/json.h"
#include "pmix-hooks/pmix_api.h"

namespace symvirt::hooks {
namespace {

using testing::HasSubstr;

TEST(Message, CommandSurvivesTheWay) {
  for (const bool leaves : {true, false}) {
    const Command command{42, 3, {{"5.0.0.77", "a"}, {"5.0.7.78", "\"quoted\"\n"}}, leaves};
    const Result<Command> back = parse_command(encode_command(command));
    ASSERT_TRUE(back) << back.error().message;
    EXPECT_EQ(*back, command);
  }
  EXPECT_TRUE(parse_command(R"({"epoch":1,"round":1})")->device_leaves);
  EXPECT_FALSE(parse_command(R"({"epoch":1,"round":1,"device_leaves":0})"));
}

TEST(Message, AnswerSurvivesTheWay) {
  for (AnswerState state : {AnswerState::kMore, AnswerState::kRest, AnswerState::kDone}) {
    for (const char* why : {"", "queue pair 0x11 to 0x12: 5 sends wait"}) {
      const Answer answer{1ull << 40, 2, 4711, state, "payload", why};
      const Result<Answer> back = parse_answer(encode_answer(answer));
      ASSERT_TRUE(back) << back.error().message;
      EXPECT_EQ(*back, answer);
    }
  }
  const std::string long_text(100'000, 'x');
  EXPECT_EQ(parse_answer(encode_answer({1, 1, 1, AnswerState::kMore, "", long_text}))->why.size(),
            1024u);
}

TEST(Message, PresenceSurvivesTheWay) {
  const Result<Presence> presence = parse_presence(encode_presence(99));
  ASSERT_TRUE(presence);
  EXPECT_EQ(presence->pid, 99);
  EXPECT_EQ(presence->immovable, "");
  EXPECT_EQ(parse_presence(encode_presence(99, "multicast"))->immovable, "multicast");
  EXPECT_FALSE(parse_presence(R"({"pid":1,"immovable":2})"));
}

TEST(Message, PayloadThatIsNotUtf8DoesNotThrow) {
  const Result<Answer> back =
      parse_answer(encode_answer({1, 1, 1, AnswerState::kMore, "\xff\xfe"}));
  EXPECT_TRUE(back);
}

TEST(Message, EachFieldOfAnAnswerMissingOrWrongIsNamed) {
  const Json good = {{"epoch", 1}, {"round", 1}, {"pid", 5}, {"state", "rest"}, {"payload", "x"}};
  ASSERT_TRUE(parse_answer(dump(good)));
  const std::vector<std::pair<std::string, std::vector<Json>>> wrong = {
      {"epoch", {-1, 1.5, "1", nullptr, true, Json::array(), 1e300}},
      {"round", {0, -1, 1'000'001, "1", nullptr}},
      {"pid", {0, -5, 1ll << 40, "5", nullptr}},
      {"state", {"", "resting", 1, nullptr}},
      {"payload", {1, Json::object(), true}},
      {"why", {1, Json::object(), true}},
  };
  for (const auto& [field, values] : wrong) {
    for (const Json& value : values) {
      Json bad = good;
      bad[field] = value;
      const Result<Answer> parsed = parse_answer(dump(bad));
      ASSERT_FALSE(parsed) << dump(bad);
      EXPECT_EQ(parsed.error().code, Code::kInvalidArgument);
      EXPECT_THAT(parsed.error().message, HasSubstr("'" + field + "'"));
    }
    if (field == "payload" || field == "why") continue;  // optional
    Json bad = good;
    bad.erase(field);
    const Result<Answer> parsed = parse_answer(dump(bad));
    ASSERT_FALSE(parsed) << field;
    EXPECT_THAT(parsed.error().message, HasSubstr("'" + field + "'"));
  }
}

TEST(Message, EachFieldOfACommandMissingOrWrongIsNamed) {
  const Json good = {{"epoch", 1}, {"round", 1}, {"payload", {{"0", "x"}}}};
  ASSERT_TRUE(parse_command(dump(good)));
  const std::vector<std::pair<std::string, Json>> wrong = {
      {"epoch", "1"},           {"round", 0},
      {"payload", "x"},         {"payload", Json::array({"x"})},
      {"payload", {{"", "x"}}}, {"payload", {{std::string(kMaxPayloadKeyBytes + 1, '1'), "x"}}},
      {"payload", {{"0", 1}}},
  };
  for (const auto& [field, value] : wrong) {
    Json bad = good;
    bad[field] = value;
    const Result<Command> parsed = parse_command(dump(bad));
    ASSERT_FALSE(parsed) << dump(bad);
    EXPECT_THAT(parsed.error().message, HasSubstr("'" + field + "'"));
  }
}

TEST(Message, WhatIsNoObjectIsRefused) {
  for (const char* text : {"", "null", "[]", "{", "\"x\"", "{}x", "\xff", "12"}) {
    EXPECT_FALSE(parse_command(text)) << text;
    EXPECT_FALSE(parse_answer(text)) << text;
    EXPECT_FALSE(parse_presence(text)) << text;
  }
}

TEST(Message, TooLongIsRefused) {
  const std::string text = R"({"pid":1,"x":")" + std::string(kMaxMessageBytes, 'x') + "\"}";
  const Result<Presence> parsed = parse_presence(text);
  ASSERT_FALSE(parsed);
  EXPECT_THAT(parsed.error().message, HasSubstr("bytes"));
}

TEST(EventInfo, CarriesTheThreeInfosEveryEventNeeds) {
  EventInfo info("hello");
  bool non_default = false;
  bool no_cache = false;
  for (std::size_t i = 0; i < info.size(); ++i) {
    const pmix_info_t& one = info.data()[i];
    if (std::string(one.key) == PMIX_EVENT_NON_DEFAULT) non_default = one.value.data.flag;
    if (std::string(one.key) == PMIX_EVENT_DO_NOT_CACHE) no_cache = one.value.data.flag;
  }
  EXPECT_TRUE(non_default);
  EXPECT_TRUE(no_cache);
  EXPECT_EQ(event_message(info.data(), info.size()), "hello");
}

TEST(EventInfo, ListsRanksAndProcessesOfItsRecipients) {
  EventInfo info("x", "slurm.pmix.1.0", {{3, 300}, {5, 500}});
  const auto second_of = [&info](const char* key) {
    for (std::size_t i = 0; i < info.size(); ++i) {
      const pmix_info_t& one = info.data()[i];
      if (std::string(one.key) == key && one.value.data.darray->size == 2)
        return static_cast<const pmix_proc_t*>(one.value.data.darray->array)[1];
    }
    return make_proc("none of two", 0);
  };
  for (const auto& [key, number] :
       {std::pair{PMIX_EVENT_CUSTOM_RANGE, 5u}, {PMIX_EVENT_AFFECTED_PROCS, 500u}}) {
    EXPECT_STREQ(second_of(key).nspace, "slurm.pmix.1.0") << key;
    EXPECT_EQ(second_of(key).rank, number) << key;
  }
}

TEST(PmixApi, IsIncompleteWhereNoPmixIsLoaded) { EXPECT_FALSE(PmixApi::find().complete()); }

}  // namespace
}  // namespace symvirt::hooks
