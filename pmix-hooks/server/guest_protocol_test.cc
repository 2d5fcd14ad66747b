#include "pmix-hooks/server/guest_protocol.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "pmix-hooks/json.h"

namespace symvirt::hooks {
namespace {

using testing::HasSubstr;

const Json kQuiesce = {
    {"id", "7"},
    {"method", "step.quiesce"},
    {"params", {{"epoch", 3}, {"round", 2}, {"timeout_ms", 500}, {"payloads", {{"1", "x"}}}}}};

TEST(GuestProtocol, ReadsAQuiesce) {
  const Result<GuestMessage> message = parse_guest_line(dump(kQuiesce));
  ASSERT_TRUE(message);
  const auto& request = std::get<GuestRequest>(*message);
  EXPECT_EQ(request.kind, RequestKind::kQuiesce);
  EXPECT_EQ(request.round.id, "7");
  EXPECT_EQ(request.round.epoch, 3u);
  EXPECT_EQ(request.round.round, 2u);
  EXPECT_EQ(request.round.payloads, (Payloads{{"1", "x"}}));
  EXPECT_EQ(request.timeout_ms, 500u);
  EXPECT_TRUE(request.round.device_leaves);
  Json stays = kQuiesce;
  stays["params"]["device_leaves"] = false;
  EXPECT_FALSE(std::get<GuestRequest>(*parse_guest_line(dump(stays))).round.device_leaves);
}

TEST(GuestProtocol, EachParameterMissingOrWrongIsNamedInTheAnswer) {
  const std::vector<std::pair<std::string, std::vector<Json>>> wrong = {
      {"epoch", {-1, "3", nullptr, 2.5}},
      {"round", {0, -1, 1'000'001, "1", nullptr}},
      {"timeout_ms", {0, -1, 86'400'001, "1", nullptr}},
      {"payloads", {"x", 1, Json::array(), {{"", "y"}}, {{"1", 2}}}},
      {"device_leaves", {"no", 0, nullptr}},
  };
  for (const auto& [field, values] : wrong) {
    std::vector<Json> lines;
    for (const Json& value : values) {
      lines.push_back(kQuiesce);
      lines.back()["params"][field] = value;
    }
    if (field != "payloads" && field != "device_leaves") {
      lines.push_back(kQuiesce);
      lines.back()["params"].erase(field);
    }
    for (const Json& line : lines) {
      const Result<GuestMessage> message = parse_guest_line(dump(line));
      ASSERT_TRUE(message);
      const auto* bad = std::get_if<BadRequest>(&*message);
      ASSERT_NE(bad, nullptr) << dump(line);
      EXPECT_EQ(bad->id, "7");
      EXPECT_EQ(bad->error.code, Code::kInvalidArgument);
      EXPECT_THAT(bad->error.message, HasSubstr("'" + field + "'"));
    }
  }
}

TEST(GuestProtocol, UnknownMethodsAndMissingParamsAreAnswered) {
  for (const char* line : {R"({"id":"1","method":"step.dance","params":{}})",
                           R"({"id":"1","method":5})", R"({"id":"1","method":"step.resume"})",
                           R"({"id":"1","method":"step.resume","params":[]})"}) {
    const Result<GuestMessage> message = parse_guest_line(line);
    ASSERT_TRUE(message) << line;
    EXPECT_TRUE(std::holds_alternative<BadRequest>(*message)) << line;
  }
}

TEST(GuestProtocol, WhatCannotBeAnsweredIsAnError) {
  for (const char* line :
       {"", "x", "[]", "{}", R"({"id":5,"method":"step.members"})", R"({"method":"step.members"})",
        R"({"id":"1"})", R"({"id":"1","result":5})"}) {
    EXPECT_FALSE(parse_guest_line(line)) << line;
  }
}

TEST(GuestProtocol, UnknownFieldsAreIgnored) {
  const auto message =
      parse_guest_line(R"({"id":"1","method":"step.members","params":{"new":1},"more":2})");
  ASSERT_TRUE(message);
  EXPECT_EQ(std::get<GuestRequest>(*message).kind, RequestKind::kMembers);
}

GuestReply reply(const char* line) { return std::get<GuestReply>(*parse_guest_line(line)); }

TEST(GuestProtocol, ReadsTheAnswerToARegistration) {
  const auto good = parse_registered(reply(R"({"id":"1","result":{"epoch":4,"at_rest":true}})"));
  ASSERT_TRUE(good);
  EXPECT_EQ(good->epoch, 4u);
  EXPECT_TRUE(good->at_rest);
  for (const char* line :
       {R"({"id":"1","result":{"at_rest":true}})", R"({"id":"1","result":{"epoch":4}})",
        R"({"id":"1","result":{"epoch":4,"at_rest":1}})", R"({"id":"1","error":5})"}) {
    EXPECT_FALSE(parse_registered(reply(line))) << line;
  }
}

TEST(GuestProtocol, ErrorsKeepTheirCode) {
  const auto refused =
      parse_registered(reply(R"({"id":"1","error":{"code":"PERMISSION","message":"not root"}})"));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::kPermission);
  EXPECT_EQ(refused.error().message, "not root");
}

TEST(GuestProtocol, ReadsANodeCheck) {
  const auto good = parse_node_check(reply(
      R"({"id":"1","result":{"healthy":true,"reason":"","network":["10.78.0.0/24"],"quiesce":"tcp"}})"));
  ASSERT_TRUE(good);
  EXPECT_TRUE(good->healthy);
  EXPECT_THAT(good->networks, testing::ElementsAre("10.78.0.0/24"));
  EXPECT_EQ(good->quiesce, "tcp");
  const auto verbs = parse_node_check(reply(
      R"({"id":"1","result":{"healthy":true,"reason":"","quiesce":"verbs","rdma":["rxe_eth0:1"],"soft_roce":true}})"));
  ASSERT_TRUE(verbs);
  EXPECT_THAT(verbs->rdma, testing::ElementsAre("rxe_eth0:1"));
  EXPECT_TRUE(verbs->soft_roce);
  const auto least =
      parse_node_check(reply(R"({"id":"1","result":{"healthy":false,"reason":"no device"}})"));
  ASSERT_TRUE(least);
  EXPECT_EQ(least->reason, "no device");
  for (const char* line : {R"({"id":"1","result":{}})", R"({"id":"1","result":{"healthy":"yes"}})",
                           R"({"id":"1","result":{"healthy":true,"network":"10.0.0.0/8"}})",
                           R"({"id":"1","result":{"healthy":true,"network":[1]}})",
                           R"({"id":"1","result":{"healthy":true,"rdma":"mlx5_0:1"}})"}) {
    EXPECT_FALSE(parse_node_check(reply(line))) << line;
  }
}

TEST(GuestProtocol, AnswersCarryWhatTheDocumentSays) {
  RoundResult result;
  result.answers = {{1, 55, "rest", "pay"}, {2, 56, "left", ""}, {3, 57, "more", "", "a send"}};
  result.held = 1;
  EXPECT_EQ(
      Json::parse(encode_reply({"9", result}, RequestKind::kQuiesce)),
      Json::parse(
          R"({"id":"9","result":{"held":1,"answers":[{"rank":1,"pid":55,"state":"rest","payload":"pay"},
                            {"rank":2,"pid":56,"state":"left"},{"rank":3,"pid":57,"state":"more","why":"a send"}]}})"));
  EXPECT_FALSE(
      Json::parse(encode_reply({"9", result}, RequestKind::kResume))["result"].contains("held"));
  EXPECT_EQ(Json::parse(encode_reply({"9", Error{Code::kDeadline, "late"}}, RequestKind::kQuiesce)),
            Json::parse(R"({"id":"9","error":{"code":"DEADLINE","message":"late"}})"));
  EXPECT_EQ(
      Json::parse(encode_members("3", {{4, 77, ""}, {5, 78, "why"}}, 2)),
      Json::parse(
          R"({"id":"3","result":{"members":[{"rank":4,"pid":77},{"rank":5,"pid":78,"immovable":"why"}],"tasks":2}})"));
  EXPECT_EQ(
      Json::parse(encode_register("r", {1, 2, 3, "ns", 4, 5}, 6)),
      Json::parse(
          R"({"id":"r","method":"step.register","params":{"job":1,"step":2,"uid":3,"nspace":"ns",
                            "tasks":4,"pid":5,"epoch_at_rest":6}})"));
  EXPECT_EQ(
      Json::parse(encode_task_enter("e", 1, 2, 3)),
      Json::parse(R"({"id":"e","method":"task.enter","params":{"job":1,"step":2,"task":3}})"));
}

}  // namespace
}  // namespace symvirt::hooks
