// The commands against a server that speaks the real protocol, with credentials that need no
// munged.
#include "spank-symvirt/cli/commands.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <sstream>

#include "tests/fakes/fake_credentials.h"

namespace symvirt {
namespace {

using fakes::FakeCredentials;
using nlohmann::json;
using testing::HasSubstr;

class Ctl : public testing::Test {
 protected:
  Ctl() : server_({.host = "ctl", .address = "127.0.0.1"}, server_credentials_) {
    auto anybody = [](uid_t) { return true; };
    auto nobody = [](uid_t) { return false; };
    auto remember = [this](const RpcRequest& r) {
      params_ = r.params;
      params_.erase("deadline_ms");
    };
    server_.add("status", {anybody, [](const RpcRequest&) -> Result<json> {
                             return json{{"schema_version", 1}, {"generation", 3}};
                           }});
    server_.add("doctor",
                {anybody, [](const RpcRequest&) -> Result<json> {
                   return json{{"ok", false}, {"checks", {{{"check", "fence"}, {"ok", false}}}}};
                 }});
    server_.add("migrate", {anybody, [=, this](const RpcRequest& r) -> Result<json> {
                              remember(r);
                              return transaction("running");
                            }});
    server_.add("evacuate",
                {anybody, [](const RpcRequest&) -> Result<json> {
                   return Error{Code::kPrecondition, "host hv1: no VM of ours runs there"};
                 }});
    server_.add("tx.show", {anybody, [=, this](const RpcRequest& r) -> Result<json> {
                              remember(r);
                              return transaction(++shown_ < 2 ? "running" : "restored");
                            }});
    server_.add("cancel", {nobody, [](const RpcRequest&) -> Result<json> { return json(); }});
    server_.add("events", {anybody, [](const RpcRequest& r) -> Result<json> {
                             for (int i = 1; i <= 3; ++i)
                               r.progress({{"seq", i}, {"message", "event " + std::to_string(i)}});
                             return json{{"next", 4}};
                           }});
    EXPECT_TRUE(server_.start());
  }

  static json transaction(const std::string& outcome) {
    return {{"schema_version", 1},
            {"id", 9},
            {"kind", "evacuate"},
            {"phase", "migrate"},
            {"outcome", outcome}};
  }

  int run(const std::vector<std::string>& words, int port = 0) {
    auto parsed = parse_options(words, "1");
    if (!std::holds_alternative<CtlOptions>(parsed)) return 100;
    const CtlOptions& options = std::get<CtlOptions>(parsed);
    RpcClient client({.host = "ctl", .address = "127.0.0.1", .port = port ? port : server_.port()},
                     client_credentials_);
    out_.str("");
    err_.str("");
    Console console{out_, err_};
    return static_cast<int>(Commands(options, client, client_credentials_, console).run());
  }

  FakeCredentials server_credentials_, client_credentials_;
  RpcServer server_;
  json params_;
  int shown_ = 0;
  std::ostringstream out_, err_;
};

TEST_F(Ctl, JsonIsOneLineAsTheServerSaidIt) {
  EXPECT_EQ(run({"status", "--json"}), 0);
  EXPECT_EQ(out_.str(), "{\"generation\":3,\"schema_version\":1}\n");
}

TEST_F(Ctl, MigrateWaitsForTheEnd) {
  EXPECT_EQ(run({"migrate", "v1", "--to", "hv3"}), 4);
  EXPECT_EQ(params_, (json{{"id", 9}}));
  EXPECT_EQ(shown_, 2);
  EXPECT_THAT(out_.str(), HasSubstr("evacuate 9: restored"));
}

TEST_F(Ctl, NoWaitReturnsAtOnce) {
  EXPECT_EQ(run({"migrate", "v1", "--no-wait"}), 0);
  EXPECT_EQ(params_, (json{{"vm", "v1"}}));  // `to` is not there when Slurm may choose
  EXPECT_EQ(shown_, 0);
  EXPECT_THAT(out_.str(), HasSubstr("symvirtctl show 9 --wait"));
}

TEST_F(Ctl, ARefusalIsSaidToPeopleAndPrograms) {
  EXPECT_EQ(run({"evacuate", "hv1", "--json"}), 3);
  EXPECT_THAT(err_.str(), HasSubstr("symvirtctl: host hv1: no VM of ours runs there"));
  const json j = json::parse(out_.str(), nullptr, false);
  ASSERT_TRUE(j.is_object());
  EXPECT_EQ(j["schema_version"], 1);
  EXPECT_EQ(j["error"]["code"], "PRECONDITION");
}

TEST_F(Ctl, WhoMayNotIsTold) {
  EXPECT_EQ(run({"cancel", "9"}), 3);
  EXPECT_THAT(err_.str(), HasSubstr("root"));
  EXPECT_EQ(out_.str(), "");
}

TEST_F(Ctl, NobodyThereIsTwo) {
  EXPECT_EQ(run({"status"}, 1), 2);
  EXPECT_THAT(err_.str(), HasSubstr("systemctl status symvirtd"));
}

TEST_F(Ctl, EventsAreALineEach) {
  EXPECT_EQ(run({"events"}), 0);
  const std::string text = out_.str();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 3);
  EXPECT_THAT(text, HasSubstr("event 3\n"));
}

TEST_F(Ctl, DoctorPutsItsOwnChecksFirst) {
  EXPECT_EQ(run({"doctor"}), 7);
  EXPECT_THAT(out_.str(), HasSubstr("ok   munged answers here"));
  EXPECT_THAT(out_.str(), HasSubstr("BAD  fence"));
  EXPECT_EQ(run({"doctor"}, 1), 2);
  EXPECT_THAT(out_.str(), HasSubstr("BAD  symvirtd answers"));
}

class CheckConfig : public testing::Test {
 protected:
  CheckConfig() {
    char name[] = "/tmp/symvirtctl-test-XXXXXX";
    folder_ = mkdtemp(name);
    std::ofstream(folder_ + "/vm.xml") << "<domain><name>@VM@</name></domain>";
  }
  ~CheckConfig() override {
    for (const char* file : {"/vm.xml", "/c.toml"}) unlink((folder_ + file).c_str());
    rmdir(folder_.c_str());
  }
  int check(const std::string& more) {
    std::ofstream(folder_ + "/c.toml")
        << "[[class]]\nname = \"s\"\nnodes = \"v[1-2]\"\nmemory_mib = 700\ndomain_template = \""
        << folder_ << "/vm.xml\"\n"
        << more;
    CtlOptions options;
    options.config = folder_ + "/c.toml";
    out_.str("");
    err_.str("");
    Console console{out_, err_};
    return static_cast<int>(check_config(options, console));
  }
  std::string folder_;
  std::ostringstream out_, err_;
};

TEST_F(CheckConfig, GoodBadAndAPatternThatFailsOnlyWhenUsed) {
  EXPECT_EQ(check(""), 0);
  EXPECT_THAT(out_.str(), HasSubstr("1 VM class(es), 2 VM(s)"));
  EXPECT_EQ(check("colour = 1\n"), 1);
  EXPECT_THAT(err_.str(), HasSubstr("c.toml:6:1: unknown key 'colour'"));
  std::ofstream(folder_ + "/vm.xml") << "<domain>@COLOUR@</domain>";
  EXPECT_EQ(check(""), 1);
  EXPECT_THAT(err_.str(), HasSubstr("COLOUR"));
}

}  // namespace
}  // namespace symvirt
