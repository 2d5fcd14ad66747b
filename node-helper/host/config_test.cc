#include "node-helper/host/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace symvirt::host {
namespace {

using testing::HasSubstr;

std::string error_of(const std::string& toml) {
  auto c = parse_config(toml, "noded.toml");
  return c ? "" : c.error().message;
}

TEST(NodedConfig, ReadsAll) {
  auto c = parse_config(R"(
listen = "10.0.0.1:7000"
host = "hv1"
allowed_uids = [0, 64030]
state_dir = "/s"
[libvirt]
uri = "qemu:///x"
pin = false
memory_reserve_mib = 512
[migration]
uri = "qemu+tls://{host}/system"
unsafe = true
parallel = 2
bandwidth_mib_s = 100
[[device]]
name = "hca0"
gres = "hca"
numa_node = 1
snippets = ["<hostdev/>", "<shmem name='{vm}'/>"]
)",
                        "noded.toml");
  ASSERT_TRUE(c) << c.error().message;
  EXPECT_EQ(c->address, "10.0.0.1");
  EXPECT_EQ(c->port, 7000);
  EXPECT_EQ(c->allowed_uids, (std::vector<uid_t>{0, 64030}));
  EXPECT_FALSE(c->pin);
  EXPECT_TRUE(c->migrate_unsafe);
  ASSERT_NE(c->find_device("hca0"), nullptr);
  EXPECT_EQ(c->find_device("hca0")->snippets.size(), 2u);
  EXPECT_EQ(c->find_device("hca1"), nullptr);
}

TEST(NodedConfig, EmptyIsGood) {
  auto c = parse_config("", "noded.toml");
  ASSERT_TRUE(c);
  EXPECT_FALSE(c->host.empty());
  EXPECT_EQ(c->port, 6821);
}

TEST(NodedConfig, ErrorsNameLineAndColumn) {
  EXPECT_THAT(error_of("\nlisten = 5\n"), HasSubstr("noded.toml:2:"));
  EXPECT_THAT(error_of("listn = \"x\"\n"), HasSubstr("noded.toml:1:1: unknown key 'listn'"));
  EXPECT_THAT(error_of("listen = \"nowhere\"\n"), HasSubstr("ADDRESS:PORT"));
  EXPECT_THAT(error_of("listen = \"0.0.0.0:99999\"\n"), HasSubstr("ADDRESS:PORT"));
  EXPECT_THAT(error_of("allowed_uids = [-1]\n"), HasSubstr("noded.toml:1:"));
  EXPECT_THAT(error_of("[libvirt]\npin = \"yes\"\n"), HasSubstr("noded.toml:2:"));
  EXPECT_THAT(error_of("[migration]\nuri = \"qemu+tcp://hv1/system\"\n"), HasSubstr("{host}"));
  EXPECT_THAT(error_of("[migration]\nparallel = 1000\n"), HasSubstr("255"));
  EXPECT_THAT(error_of("[[device]]\ngres = \"hca\"\nsnippets = [\"<a/>\"]\n"), HasSubstr("name"));
  EXPECT_THAT(error_of("[[device]]\nname = \"a\"\ngres = \"hca\"\n"), HasSubstr("snippets"));
  EXPECT_THAT(error_of("[[device]]\nname = \"a\"\ngres = \"hca\"\nsnippets = [\"<a b='{x}'/>\"]\n"),
              HasSubstr("{x}"));
  EXPECT_THAT(error_of("[[device]]\nname = \"a\"\ngres = \"h\"\nsnippets = "
                       "[\"<a/>\"]\n[[device]]\nname = \"a\"\ngres = \"h\"\n"
                       "snippets = [\"<a/>\"]\n"),
              HasSubstr("twice"));
  auto device = [](const std::string& how) {
    return error_of("[[device]]\nname = \"a\"\ngres = \"h\"\n" + how + "\n");
  };
  EXPECT_EQ(device("pci = \"5e:00.0\""), "");
  EXPECT_EQ(device("model = \"15b3:1018\"\nnth = 1\ncompatible = [\"15b3:1017\"]"), "");
  EXPECT_EQ(device("pf = \"ens3f0\"\nvf = 0\nvlan = 7"), "");
  EXPECT_THAT(device("pci = \"5e:00\""), HasSubstr("noded.toml:4:7: pci: a PCI address"));
  EXPECT_THAT(device("model = \"mlx5\""), HasSubstr("VENDOR:DEVICE"));
  EXPECT_THAT(device("pf = \"ens3f0\""), HasSubstr("come together"));
  EXPECT_THAT(device("vf = 0"), HasSubstr("come together"));
  EXPECT_THAT(device("pci = \"5e:00.0\"\nmodel = \"15b3:1018\""), HasSubstr("in one way"));
  EXPECT_THAT(device("pci = \"5e:00.0\"\nsnippets = [\"<a/>\"]"), HasSubstr("in one way"));
  EXPECT_THAT(device("pci = \"5e:00.0\"\nnth = 1"), HasSubstr("nth"));
  EXPECT_THAT(device("pci = \"5e:00.0\"\nas = \"nic\""), HasSubstr("as: "));
  EXPECT_THAT(device("pci = \"5e:00.0\"\nvlan = 5"), HasSubstr("vlan"));
  EXPECT_THAT(device("pf = \"ens3f0\"\nvf = 0\nvlan = 4095"), HasSubstr("4094"));
  EXPECT_THAT(device("snippets = [\"<a/>\"]\nas = \"hostdev\""), HasSubstr("as and vlan"));
  EXPECT_THAT(device("pci = \"5e:00.0\"\ncompatible = [\"x\"]"), HasSubstr("compatible"));
  EXPECT_THAT(error_of("= 3"), HasSubstr("noded.toml:1:"));
}

}  // namespace
}  // namespace symvirt::host
