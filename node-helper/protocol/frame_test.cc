#include "node-helper/protocol/frame.h"

#include <gtest/gtest.h>

#include "tests/fakes/fake_credentials.h"

namespace symvirt {
namespace {

using fakes::FakeCredentials;
using nlohmann::json;

TEST(Frame, ComesBackFromSingleBytes) {
  const std::string bytes = encode_frame({"cred", "{\"a\":1}"}) + encode_frame({"c", "{}"});
  FrameReader reader;
  std::vector<Frame> frames;
  for (char byte : bytes) {
    reader.append({&byte, 1});
    auto frame = reader.next();
    ASSERT_TRUE(frame);
    if (*frame) frames.push_back(**frame);
  }
  ASSERT_EQ(frames.size(), 2u);
  EXPECT_EQ(frames[0].body, "{\"a\":1}");
  EXPECT_EQ(frames[1].credential, "c");
  EXPECT_TRUE(reader.empty());
}

TEST(Frame, LengthsOutOfBoundsAreRefusedBeforeAnythingIsRead) {
  auto refused = [](std::uint32_t credential, std::uint32_t body) {
    std::string header;
    for (std::uint32_t v : {credential, body}) {
      for (int s = 24; s >= 0; s -= 8) header.push_back(static_cast<char>(v >> s & 0xff));
    }
    FrameReader reader;
    reader.append(header);
    return !reader.next().has_value();
  };
  EXPECT_TRUE(refused(0, 5));
  EXPECT_TRUE(refused(5, 0));
  EXPECT_TRUE(refused(kMaxCredential + 1, 5));
  EXPECT_TRUE(refused(5, kMaxBody + 1));
  EXPECT_TRUE(refused(0xffffffff, 0xffffffff));
  EXPECT_FALSE(refused(kMaxCredential, kMaxBody));
}

TEST(Frame, Sha256IsTheKnownOne) {
  EXPECT_EQ(sha256_hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

// Seals a good request, lets `change` spoil it, and says what became of it.
Result<Opened> after(const std::function<void(Frame&)>& change,
                     const std::string& destination = "hv1") {
  FakeCredentials credentials;
  Frame frame = *seal(credentials, Envelope{"req", "hv1", new_nonce(), 0}, "{\"method\":\"x\"}");
  change(frame);
  return unseal(credentials, frame, "req", destination);
}

TEST(Envelope, GoodOneIsOpened) {
  auto opened = after([](Frame&) {});
  ASSERT_TRUE(opened) << opened.error().message;
  EXPECT_EQ(opened->uid, 0u);
  EXPECT_EQ(opened->body["method"], "x");
}

TEST(Envelope, AnythingElseIsRefused) {
  EXPECT_FALSE(after([](Frame&) {}, "hv2"));                                     // for another host
  EXPECT_FALSE(after([](Frame& f) { f.body = "{\"method\":\"y\"}"; }));          // body exchanged
  EXPECT_FALSE(after([](Frame& f) { f.credential = "other" + f.credential; }));  // other key
  EXPECT_FALSE(after([](Frame& f) { f.credential.clear(); }));
  FakeCredentials credentials;
  Frame frame = *seal(credentials, Envelope{"req", "hv1", new_nonce(), 0}, "{}");
  EXPECT_FALSE(unseal(credentials, frame, "rep", "hv1"));  // a request sent back as an answer
  frame = *seal(credentials, Envelope{"req", "hv1", new_nonce(), 0}, "{}");
  EXPECT_TRUE(unseal(credentials, frame, "req", "hv1"));
  auto replayed = unseal(credentials, frame, "req", "hv1");
  ASSERT_FALSE(replayed);
  EXPECT_EQ(replayed.error().code, Code::kPermission);
}

// The library's copies recurse: a caller of any uid would end the daemon.
TEST(Envelope, BracketsWithoutEndAreRefused) {
  const std::string deep(1'000'000, '[');
  auto opened = after([](Frame&) {});
  ASSERT_TRUE(opened);
  FakeCredentials credentials;
  for (const std::string& body :
       {"{\"id\":" + deep + std::string(deep.size(), ']') + "}", "{\"id\":" + deep}) {
    Frame frame = *seal(credentials, Envelope{"req", "hv1", new_nonce(), 0}, body);
    auto result = unseal(credentials, frame, "req", "hv1");
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().message, "body is nested too deeply");
  }
}

TEST(Envelope, EveryFieldMissingOrWrongIsRefused) {
  const json good = {{"v", 1},       {"dir", "req"},
                     {"dst", "hv1"}, {"nonce", std::string(32, 'a')},
                     {"seq", 0},     {"sha256", sha256_hex("{}")}};
  auto accepted = [](const json& payload) {
    FakeCredentials credentials;
    return unseal(credentials, Frame{*credentials.encode(payload.dump()), "{}"}, "req", "hv1")
        .has_value();
  };
  ASSERT_TRUE(accepted(good));
  for (const auto& [key, value] : good.items()) {
    json without = good;
    without.erase(key);
    EXPECT_FALSE(accepted(without)) << key;
    for (const json& wrong : {json(), json("wrong"), json(-7), json::array(), json::object()}) {
      if (wrong.type() == value.type() && key == "seq") continue;
      if (key == "seq" && wrong.is_number_integer()) continue;
      json with = good;
      with[key] = wrong;
      EXPECT_FALSE(accepted(with)) << key << " = " << wrong;
    }
  }
  EXPECT_FALSE(accepted(json::array()));
}

}  // namespace
}  // namespace symvirt
