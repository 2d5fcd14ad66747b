#include "node-helper/host/domain_xml.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace symvirt::host {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

constexpr char kLive[] = R"(<domain type='kvm' id='3'>
  <name>v1</name><uuid>77000000-0000-4000-9000-000000000001</uuid>
  <metadata><other xmlns='urn:x'>keep</other>
    <symvirt:vm xmlns:symvirt='https://symvirt.org/xmlns/vm/1'><symvirt:overlay path='/vms/v1.qcow2'/></symvirt:vm></metadata>
  <memory unit='KiB'>524288</memory><vcpu placement='static' cpuset='0-3'>2</vcpu>
  <cputune><vcpupin vcpu='0' cpuset='0'/><shares>7</shares></cputune>
  <numatune><memory mode='preferred' nodeset='1'/></numatune>
  <devices>
    <interface type='bridge'><mac address='52:54:00:78:00:01'/><alias name='ua-symvirt-ib0-0'/></interface>
    <shmem name='g' role='peer'><alias name='ua-symvirt-ib0-1'/></shmem>
    <interface type='bridge'><mac address='52:54:00:77:00:01'/><alias name='net0'/></interface>
    <channel type='unix'><target type='virtio' name='org.symvirt.guest.0' state='connected'/></channel>
  </devices></domain>)";

TEST(DomainXml, ReadsOurPartsAndPort) {
  auto d = parse_domain(kLive);
  ASSERT_TRUE(d) << d.error().message;
  EXPECT_EQ(d->name, "v1");
  EXPECT_EQ(d->memory_bytes, 512LL << 20);
  EXPECT_EQ(d->vcpus, 2);
  EXPECT_THAT(d->parts,
              ElementsAre(AttachedPart{"ib0", 0, "52:54:00:78:00:01"}, AttachedPart{"ib0", 1, ""}));
  EXPECT_THAT(d->overlays, ElementsAre("/vms/v1.qcow2"));
  EXPECT_TRUE(d->foreign_blockers.empty());
  EXPECT_TRUE(d->has_guest_port);
  EXPECT_TRUE(d->guest_port_open);
}

TEST(DomainXml, HostDevicesOfOthersBlockToo) {
  auto d = parse_domain(
      "<domain><name>v1</name><devices><hostdev mode='subsystem' type='pci'><alias "
      "name='hostdev0'/></hostdev>"
      "<interface type='hostdev'/></devices></domain>");
  ASSERT_TRUE(d);
  EXPECT_THAT(d->foreign_blockers, ElementsAre("hostdev0", "interface"));
}

TEST(DomainXml, WhatIsNoDomainIsAnError) {
  EXPECT_FALSE(parse_domain(""));
  EXPECT_FALSE(parse_domain("<domain>"));
  EXPECT_FALSE(parse_domain("<network><name>x</name></network>"));
  EXPECT_THAT(parse_domain("<domain><uuid>1</uuid></domain>").error().message, HasSubstr("<name>"));
}

TEST(DomainXml, NoEntityOfAFileIsRead) {
  auto d = parse_domain(
      "<!DOCTYPE d [<!ENTITY e SYSTEM 'file:///etc/hostname'>]><domain><name>&e;</name></domain>");
  EXPECT_TRUE(!d || d->name.empty() || d->name == "&e;");
}

TEST(DomainXml, AliasesGoBothWays) {
  EXPECT_EQ(alias_of("ib0", 12), "ua-symvirt-ib0-12");
  EXPECT_EQ(parse_alias("ua-symvirt-ib0-12"), (AttachedPart{"ib0", 12, ""}));
  for (const char* bad : {"", "net0", "ua-symvirt-", "ua-symvirt-ib0", "ua-symvirt--1",
                          "ua-symvirt-ib0-", "ua-symvirt-ib0-x", "ua-symvirt-ib0-99999"})
    EXPECT_FALSE(parse_alias(bad)) << bad;
  EXPECT_TRUE(valid_slot_name("ib0_a"));
  EXPECT_FALSE(valid_slot_name("ib-0"));
  EXPECT_FALSE(valid_slot_name("a'b"));
  EXPECT_FALSE(valid_slot_name(""));
}

TEST(DomainXml, SnippetsAreFilledInAndKeepTheirAddress) {
  const DeviceFill fill{"v1", "ib0", "hca0", "52:54:00:78:00:01", 0, ""};
  auto xml = make_device_xml(
      "<interface type='bridge'><mac address='{mac}'/><source bridge='br-{slot}'/><alias name='x'/>"
      "<address type='pci' bus='0x05' slot='0x00'/></interface>",
      fill, "ua-symvirt-ib0-0");
  ASSERT_TRUE(xml) << xml.error().message;
  EXPECT_THAT(*xml, HasSubstr("address=\"52:54:00:78:00:01\""));
  EXPECT_THAT(*xml, HasSubstr("bridge=\"br-ib0\""));
  EXPECT_THAT(*xml, HasSubstr("bus=\"0x05\""));
  EXPECT_THAT(*xml, HasSubstr("<alias name=\"ua-symvirt-ib0-0\"/>"));
  EXPECT_THAT(*xml, Not(HasSubstr("name=\"x\"")));
}

TEST(DomainXml, ValuesOfRequestsCannotAddXml) {
  const DeviceFill fill{"v1", "ib0", "hca0", "'/><hostdev/><x y='", 0, ""};
  auto xml =
      make_device_xml("<interface><mac address='{mac}'/></interface>", fill, "ua-symvirt-ib0-0");
  ASSERT_TRUE(xml);
  EXPECT_THAT(*xml, Not(HasSubstr("<hostdev")));
}

TEST(DomainXml, UnknownPlaceholdersAndBrokenSnippetsAreErrors) {
  const DeviceFill fill{"v1", "ib0", "hca0", "", 0, ""};
  EXPECT_THAT(make_device_xml("<a b='{whatever}'/>", fill, "ua-symvirt-ib0-0").error().message,
              HasSubstr("{whatever}"));
  EXPECT_FALSE(make_device_xml("<a", fill, "ua-symvirt-ib0-0"));
  DeviceFill addressed = fill;
  addressed.guest_address = "0000:06:00.0";
  EXPECT_THAT(*make_device_xml("<a/>", addressed, "ua-symvirt-ib0-0"), HasSubstr("bus=\"0x06\""));
  addressed.guest_address = "6:0";
  EXPECT_FALSE(make_device_xml("<a/>", addressed, "ua-symvirt-ib0-0"));
}

TEST(DomainXml, PinnedAndUnpinned) {
  auto pinned = prepare_domain(
      "<domain><name>v1</name><vcpu>2</vcpu><metadata><other "
      "xmlns='urn:x'>keep</other></metadata></domain>",
      Pinning{{4, 6}, 1}, {"/vms/a", "/vms/b"});
  ASSERT_TRUE(pinned) << pinned.error().message;
  EXPECT_THAT(*pinned, HasSubstr("cpuset=\"4,6\""));
  EXPECT_THAT(*pinned, HasSubstr("<vcpupin vcpu=\"1\" cpuset=\"6\"/>"));
  EXPECT_THAT(*pinned, HasSubstr("<memory mode=\"preferred\" nodeset=\"1\"/>"));
  EXPECT_THAT(*pinned, HasSubstr("keep"));
  EXPECT_THAT(parse_domain(*pinned)->overlays, ElementsAre("/vms/a", "/vms/b"));
  auto plain = without_pinning(kLive);
  ASSERT_TRUE(plain);
  EXPECT_THAT(*plain, Not(HasSubstr("vcpupin")));
  EXPECT_THAT(*plain, Not(HasSubstr("numatune")));
  EXPECT_THAT(*plain, Not(HasSubstr("cpuset")));
  EXPECT_THAT(*plain, HasSubstr("<shares>7</shares>"));
}

}  // namespace
}  // namespace symvirt::host
