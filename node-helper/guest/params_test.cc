#include "node-helper/guest/params.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <functional>

#include "node-helper/guest/address.h"
#include "node-helper/guest/config.h"
#include "node-helper/guest/message.h"
#include "node-helper/guest/state.h"

namespace symvirt::guest {
namespace {

using testing::HasSubstr;

struct Case {
  const char* name;
  const char* good;  // every field, required ones and optional ones
  std::vector<std::string> required;
  std::function<Status(const Json&)> parse;
};

template <typename T>
std::function<Status(const Json&)> status_of(Result<T> (*parse)(const Json&)) {
  return [parse](const Json& json) {
    const auto r = parse(json);
    return r ? Status() : Status(r.error());
  };
}

const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      {"configure",
       R"({"node":"v1","slots":[{"slot":"hca0","match":{"mac":"52:54:00:00:00:01","driver":"e1000e","pci":"0000:07:00.0"},
         "addresses":["10.78.0.101/24"],"mtu":1500,"routes":["default via 10.78.0.1"],"soft_roce":true,"quiesce":"tcp"}]})",
       {"node", "slots"},
       status_of(parse_configure)},
      {"quiesce",
       R"({"job":1,"epoch":2,"round":1,"lease_ms":5,"timeout_ms":6,"payloads":{"0":"x"}})",
       {"job", "epoch", "round", "lease_ms", "timeout_ms"},
       status_of(parse_quiesce)},
      {"resume",
       R"({"job":1,"epoch":2,"round":1,"timeout_ms":6,"payloads":{"0":"x"}})",
       {"job", "epoch", "round", "timeout_ms"},
       status_of(parse_resume)},
      {"renew",
       R"({"job":1,"epoch":2,"lease_ms":5})",
       {"job", "epoch", "lease_ms"},
       status_of(parse_renew)},
      {"let_go", R"({"epoch":2,"slots":["hca0"]})", {"epoch", "slots"}, status_of(parse_let_go)},
      {"ready", R"({"slots":["hca0"],"timeout_ms":5})", {"slots"}, status_of(parse_ready)},
      {"register",
       R"({"job":1,"step":0,"uid":3,"nspace":"n","tasks":4,"pid":5,"epoch_at_rest":6})",
       {"job", "step", "uid", "nspace", "tasks", "pid"},
       status_of(parse_register)},
      {"enter", R"({"job":1,"step":0,"task":3})", {"job", "step", "task"}, status_of(parse_enter)},
      {"set_clock", R"({"time_ns":1790000000000000000})", {"time_ns"}, status_of(parse_set_clock)},
      {"step_answers",
       R"({"answers":[{"rank":0,"pid":5,"state":"rest","payload":"x"}],"held":1})",
       {"answers"},
       [](const Json& j) {
         const auto r = parse_step_answers(j, 0);
         return r ? Status() : Status(r.error());
       }},
      {"step_members",
       R"({"members":[{"rank":0,"pid":5}],"tasks":1})",
       {"members"},
       status_of(parse_step_members)},
      {"state",
       R"({"boot_id":"b","configuration":{"node":"v1","slots":[]},"saved":{"hca0":{"name":"eth0","mtu":1500,"bus":"x","addresses":[],
         "routes":[],"neighbours":[]}},"jobs":[{"job":1,"highest":5,"at_rest":5,"round":1,"let_go":true,"lease_end_ms":9}],
         "node_started":true})",
       {"boot_id"},
       status_of(parse_state)},
  };
  return all;
}

class EveryMethod : public testing::TestWithParam<Case> {};

TEST_P(EveryMethod, AcceptsWhatIsRight) {
  const Status s = GetParam().parse(Json::parse(GetParam().good));
  EXPECT_TRUE(s) << s.error().message;
}

TEST_P(EveryMethod, NamesEachFieldThatIsMissing) {
  for (const std::string& field : GetParam().required) {
    Json json = Json::parse(GetParam().good);
    json.erase(field);
    const Status s = GetParam().parse(json);
    ASSERT_FALSE(s) << field;
    EXPECT_EQ(s.error().code, Code::kInvalidArgument);
    EXPECT_THAT(s.error().message, HasSubstr(field + ": missing"));
  }
}

// Every value of the good message, however deep, replaced by values of every other kind.
TEST_P(EveryMethod, RefusesEachFieldOfAnotherKindOrSize) {
  const Json good = Json::parse(GetParam().good);
  const std::vector<Json> others = {true,
                                    -1,
                                    1.5,
                                    "\0x",
                                    std::string(100000, 'x'),
                                    Json::array({1, 2}),
                                    Json::array({Json::object()}),
                                    Json{{"a", 1}},
                                    UINT64_MAX,
                                    ""};
  const Json flat = good.flatten();
  for (const auto& [pointer, value] : flat.items()) {
    int refused = 0;
    for (const Json& other : others) {
      Json json = good;
      json[Json::json_pointer(pointer)] = other;
      const Status s = GetParam().parse(json);
      if (s) continue;
      ++refused;
      EXPECT_EQ(s.error().code, Code::kInvalidArgument) << pointer;
      EXPECT_LT(s.error().message.size(), 300000u);
    }
    // A rank's number or text fits a few of the others; most never do.
    const bool ignored = pointer == "/members/0/rank";  // not read by guestd
    EXPECT_GE(refused, ignored ? 0 : 5) << pointer;
  }
}

TEST_P(EveryMethod, RefusesWhatIsNoObject) {
  for (const char* text : {"null", "3", "[]", "\"x\"", "true"})
    EXPECT_FALSE(GetParam().parse(Json::parse(text))) << text;
}

INSTANTIATE_TEST_SUITE_P(Params, EveryMethod, testing::ValuesIn(cases()),
                         [](const auto& one) { return one.param.name; });

TEST(Configure, ChecksWhatItIsGiven) {
  const auto with = [](const char* field, Json value) {
    Json json = Json::parse(cases()[0].good);
    json["slots"][0][field] = std::move(value);
    return parse_configure(json);
  };
  for (const char* bad : {"10.78.0.101", "10.78.0.101/33", "10.78.0.300/24", "fd00::1/129", "x/24",
                          "10.78.0.101/24 "}) {
    EXPECT_FALSE(with("addresses", Json::array({bad}))) << bad;
  }
  EXPECT_TRUE(with("addresses", Json::array({"fd00::1/64"})));
  for (const char* bad : {"default", "10.0.0.0/8 via", "10.0.0.0/8 via x", "10.0.0.0"}) {
    EXPECT_FALSE(with("routes", Json::array({bad}))) << bad;
  }
  EXPECT_FALSE(with("match", Json::object()));
  EXPECT_FALSE(with("quiesce", "fast"));
  Json twice = Json::parse(cases()[0].good);
  twice["slots"].push_back(twice["slots"][0]);
  EXPECT_THAT(parse_configure(twice).error().message, HasSubstr("two of one name"));
}

TEST(Ready, AnswersBeforeTheDeadlineOfTheRequest) {
  EXPECT_EQ(parse_ready(Json::parse(R"({"slots":[],"deadline_ms":1000})"))->timeout.count(), 900);
  EXPECT_EQ(parse_ready(Json::parse(R"({"slots":[],"deadline_ms":1000,"timeout_ms":20})"))
                ->timeout.count(),
            20);
}

TEST(Message, TellsRequestsAnswersAndEventsApart) {
  EXPECT_TRUE(
      std::holds_alternative<Request>(*parse_message(R"({"id":"1","method":"m","params":{}})")));
  EXPECT_TRUE(std::holds_alternative<Request>(*parse_message(R"({"id":"1","method":"m"})")));
  EXPECT_TRUE(std::holds_alternative<Answer>(*parse_message(R"({"id":"1","result":null})")));
  EXPECT_TRUE(std::holds_alternative<Event>(*parse_message(R"({"event":"hello"})")));
  const auto answer = parse_message(R"({"id":"1","error":{"code":"DEADLINE","message":"late"}})");
  EXPECT_EQ(std::get<Answer>(*answer).result.error(), (Error{Code::kDeadline, "late"}));
  const auto future = parse_message(R"({"id":"1","error":{"code":"NEWER","message":"x"}})");
  EXPECT_EQ(std::get<Answer>(*future).result.error().code, Code::kInternal);
}

TEST(Message, RefusesWhatIsNone) {
  const std::string long_id =
      R"({"id":")" + std::string(kMaxIdBytes + 1, 'x') + R"(","method":"m"})";
  const std::string deep = R"({"id":"1","method":"m","params":{"a":)" + std::string(1000, '[') +
                           std::string(1000, ']') + "}}";
  for (const std::string& text :
       {std::string(""), std::string("{"), std::string("[]"), std::string("7"),
        std::string(R"({"id":1,"method":"m"})"), std::string(R"({"method":"m"})"),
        std::string(R"({"id":"1"})"), std::string(R"({"id":"1","method":"m","params":[]})"),
        std::string(R"({"id":"1","method":"m","result":1})"),
        std::string(R"({"id":"1","result":1,"error":{}})"),
        std::string("{\"id\":\"\xff\",\"method\":\"m\"}"), std::string(1 << 20, '['), long_id,
        deep}) {
    const auto m = parse_message(text);
    ASSERT_FALSE(m) << text.substr(0, 80);
    EXPECT_EQ(m.error().code, Code::kInvalidArgument);
  }
  EXPECT_FALSE(std::get<Answer>(*parse_message(R"({"id":"1","error":7})")).result);
}

TEST(Message, WhatIsWrittenIsReadBack) {
  const auto request =
      std::get<Request>(*parse_message(format_request("7", "m", {{"a", "\xff\n"}})));
  EXPECT_EQ(request.method, "m");
  EXPECT_EQ(format_answer("7", Json{{"a", 1}}), "{\"id\":\"7\",\"result\":{\"a\":1}}\n");
  const auto answer =
      std::get<Answer>(*parse_message(format_answer("7", Error{Code::kRefused, "no"})));
  EXPECT_EQ(answer.result.error(), (Error{Code::kRefused, "no"}));
}

TEST(SavedLink, NothingMangledReachesTheKernel) {
  const auto with = [](Json messages) {
    return parse_saved_link(
        {{"name", "eth0"}, {"mtu", 1500}, {"bus", ""}, {"addresses", std::move(messages)}});
  };
  // An RTM_NEWADDR of 24 bytes, right; then its length, its type and its digits wrong.
  const std::string right =
      "18000000"
      "1400"
      "0000"
      "00000000"
      "00000000"
      "0218800000000000";
  EXPECT_TRUE(with(Json::array({right}))) << with(Json::array({right})).error().message;
  EXPECT_FALSE(with(Json::array({"19000000" + right.substr(8)})));
  EXPECT_FALSE(with(Json::array({right.substr(0, 8) + "1500" + right.substr(12)})));
  EXPECT_FALSE(with(Json::array({right.substr(0, 20)})));
  EXPECT_FALSE(with(Json::array({right + "0"})));
  EXPECT_FALSE(with(Json::array({"zz" + right.substr(2)})));
}

TEST(Config, DefaultsAndMistakes) {
  const auto empty = parse_config("", "f");
  ASSERT_TRUE(empty);
  EXPECT_EQ(empty->port, "org.symvirt.guest.0");
  const auto full = parse_config(
      "socket='/s'\nstate='/t'\nport='p'\nport_path='/d'\nstart_command=['/bin/"
      "a','b']\nlog_level='debug'",
      "f");
  ASSERT_TRUE(full) << full.error().message;
  EXPECT_EQ(full->start_command, (std::vector<std::string>{"/bin/a", "b"}));
  for (const auto& [text, where] : std::vector<std::pair<std::string, std::string>>{
           {"\n sokcet='/s'", "f:2:"},
           {"socket=3", "socket"},
           {"start_command='x'", "start_command"},
           {"start_command=['a']", "absolute"},
           {"start_command=[1]", "start_command"},
           {"log_level='loud'", "log_level"},
           {"port=''", "port"},
           {"a=", "f:1:"},
           {"[#", "f:1:"},
           {"socket='" + std::string(200, 'x') + "'", "socket"}}) {
    const auto config = parse_config(text, "f");
    ASSERT_FALSE(config) << text;
    EXPECT_THAT(config.error().message, HasSubstr(where));
  }
}

TEST(Address, NetworksAndMappedAddresses) {
  EXPECT_EQ(network_of(*parse_cidr("10.78.3.101/22")), "10.78.0.0/22");
  EXPECT_EQ(network_of(*parse_cidr("fd00::1:2/64")), "fd00::/64");
  EXPECT_EQ(network_of(*parse_cidr("1.2.3.4/0")), "0.0.0.0/0");
  const unsigned char mapped[16] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 2, 3};
  EXPECT_EQ(make_address(AF_INET6, mapped), *parse_address("10.1.2.3"));
}

}  // namespace
}  // namespace symvirt::guest
