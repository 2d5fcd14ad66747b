#include "spank-symvirt/coordinator/config.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>

#include "spank-symvirt/coordinator/domain.h"

namespace symvirt {
namespace {

class ConfigFile : public testing::Test {
 protected:
  ConfigFile() {
    template_ = testing::TempDir() + "symvirt-domain-" + std::to_string(getpid()) + ".xml";
    std::ofstream(template_) << "<domain><name>@VM@</name><uuid>@UUID@</uuid><disk "
                                "file='@OVERLAY@'/>mail@example.org @INDEX+100@</domain>";
  }
  ~ConfigFile() override { std::filesystem::remove(template_); }
  std::string class_text(const std::string& extra = "",
                         const std::string& device_extra = "") const {
    return "[[class]]\nname = \"standard\"\nnodes = \"v[1-2]\"\nmemory_mib = 600\ndomain_template "
           "= \"" +
           template_ + "\"\noverlay = \"/shared/{vm}.qcow2\"\n" + extra +
           "\n[[class.device]]\nslot = \"ib0\"\ngres = \"hca\"\nquiesce = \"tcp\"\nmac = "
           "\"52:54:00:78:00:{index:02x}\"\naddresses = "
           "[\"10.78.0.{100+index}/24\"]\n" +
           device_extra;
  }
  std::string error_of(const std::string& text) {
    auto config = parse_config(text, "symvirtd.toml");
    return config ? "" : config.error().message;
  }
  std::string template_;
};

TEST_F(ConfigFile, EmptyFileIsAllDefaults) {
  auto config = parse_config("", "symvirtd.toml");
  ASSERT_TRUE(config);
  EXPECT_EQ(config->listen, "0.0.0.0:6820");
  EXPECT_EQ(config->policy.quiesce_ms, 30'000);
}

TEST_F(ConfigFile, GoodOneIsRead) {
  auto config = parse_config("[control]\npoll_ms = 500\n[policy]\nquiesce_s = 7\n" + class_text(),
                             "symvirtd.toml");
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->poll_ms, 500);
  EXPECT_EQ(config->policy.quiesce_ms, 7000);
  int index = 0;
  ASSERT_NE(config->class_of_vm("v2", &index), nullptr);
  EXPECT_EQ(index, 2);
  EXPECT_EQ(config->class_of_vm("v3"), nullptr);
}

TEST_F(ConfigFile, UnknownKeysAreNamedWithTheirPlace) {
  EXPECT_NE(error_of("[control]\npol_ms = 500\n").find("symvirtd.toml:2:1: unknown key 'pol_ms'"),
            std::string::npos);
  EXPECT_NE(error_of("colour = 1\n").find("unknown key 'colour'"), std::string::npos);
  EXPECT_NE(error_of(class_text("colour = 1")).find("unknown key 'colour'"), std::string::npos);
  EXPECT_NE(error_of(class_text("", "colour = 1")).find("unknown key 'colour'"), std::string::npos);
}

TEST_F(ConfigFile, WrongTypesAndRangesAreRefused) {
  for (const char* text :
       {"[control]\npoll_ms = \"fast\"", "[control]\npoll_ms = 1", "[control]\npoll_ms = -5",
        "[control]\nadmin_uids = [\"root\"]", "[control]\nadmin_uids = 0", "[hosts]\ncapacity = 1",
        "[hosts]\nfence_command = \"ipmitool\"", "[hosts]\nfence_command = [\"ipmitool\"]",
        "[hosts.addresses]\nhv1 = 5", "control = 5", "class = 5",
        "[policy]\nslowest_migration_bytes_s = 0", "[[class]]\n", "this is not toml"}) {
    EXPECT_NE(error_of(text).find("symvirtd.toml:"), std::string::npos) << text;
  }
}

TEST_F(ConfigFile, ClassesNeedTheirPartsAndOwnNodes) {
  for (const char* key :
       {"name", "nodes", "memory_mib", "domain_template", "slot", "gres", "quiesce"}) {
    std::string text = class_text();
    const std::size_t at = text.find(std::string("\n") + key + " =");
    ASSERT_NE(at, std::string::npos) << key;
    text.erase(at, text.find('\n', at + 1) - at);
    EXPECT_NE(error_of(text).find(key), std::string::npos) << key;
  }
  EXPECT_NE(error_of(class_text() + class_text()).find("class standard twice"), std::string::npos);
  std::string second = class_text();
  second.replace(second.find("standard"), 8, "second");
  EXPECT_NE(error_of(class_text() + second).find("belongs to two classes"), std::string::npos);
  EXPECT_NE(error_of(class_text("", "mtu = -1")).find("mtu"), std::string::npos);
}

TEST_F(ConfigFile, TemplateThatIsNotThereIsSaid) {
  std::string text = class_text();
  text.replace(text.find(template_), template_.size(), "/no/such/file.xml");
  EXPECT_NE(error_of(text).find("/no/such/file.xml"), std::string::npos);
}

TEST_F(ConfigFile, DomainIsFilledInAndEscaped) {
  auto config = parse_config(class_text(), "symvirtd.toml");
  ASSERT_TRUE(config);
  auto xml = fill_domain(config->classes[0], "v2", 2);
  ASSERT_TRUE(xml) << xml.error().message;
  EXPECT_NE(xml->find("<name>v2</name>"), std::string::npos);
  EXPECT_NE(xml->find("/shared/v2.qcow2"), std::string::npos);
  EXPECT_NE(xml->find("mail@example.org 102"), std::string::npos);
  EXPECT_EQ(fill_domain(config->classes[0], "v2", 2).value(), *xml);  // the same on every host
  EXPECT_NE(fill_domain(config->classes[0], "v1", 1).value(), *xml);
  config->classes[0].overlay = "/a&b/{vm}";
  EXPECT_NE(fill_domain(config->classes[0], "v2", 2)->find("/a&amp;b/v2"), std::string::npos);
  config->classes[0].domain_xml = "@COLOUR@";
  EXPECT_FALSE(fill_domain(config->classes[0], "v2", 2));
}

TEST(Pattern, KnownOnesAreFilledInOthersRefused) {
  EXPECT_EQ(fill_pattern("{vm}-{index}-{100+index}-{index:02x}-{200+index:02x}", "v12", 12).value(),
            "v12-12-112-0c-d4");
  EXPECT_EQ(fill_pattern("plain", "v1", 1).value(), "plain");
  for (const char* bad : {"{", "{vm", "{colour}", "{1+vm}", "{x+index}", "{index+1}", "{}"})
    EXPECT_FALSE(fill_pattern(bad, "v1", 1)) << bad;
}

TEST(Nodes, ListsAreExpandedOrRefused) {
  EXPECT_EQ(expand_nodes("v[1-3,07-08],w,x9").value(),
            (std::vector<std::string>{"v1", "v2", "v3", "v07", "v08", "w", "x9"}));
  for (const char* bad :
       {"", "[1-2]", "v[", "v[1", "v[2-1]", "v[a-b]", "v[1-2]x", "v[1-99999999]", "v[-1]", ",v"}) {
    EXPECT_FALSE(expand_nodes(bad)) << bad;
  }
}

}  // namespace
}  // namespace symvirt
