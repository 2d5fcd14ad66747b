// The worked examples are good configurations, fit together, and are what the manual shows.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "node-helper/host/passthrough.h"
#include "spank-symvirt/coordinator/config.h"
#include "tests/fakes/fake_sysfs.h"

namespace symvirt {
namespace {

namespace fs = std::filesystem;
using host::NodedConfig;
using testing::AllOf;
using testing::HasSubstr;

const fs::path kSource = SYMVIRT_SOURCE_DIR;

std::string text_of_file(const fs::path& path) {
  std::ifstream file(path);
  EXPECT_TRUE(file) << path;
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

NodedConfig noded(const std::string& name) {
  const fs::path path = kSource / "slurm-conf/examples" / (name + ".noded.toml");
  auto config = host::parse_config(text_of_file(path), path);
  EXPECT_TRUE(config) << config.error().message;
  return config ? *config : NodedConfig();
}

Config symvirtd(const std::string& name) {
  const fs::path path = kSource / "slurm-conf/examples" / (name + ".symvirtd.toml");
  std::string text = text_of_file(path);
  // The site's own file.
  const fs::path xml = testing::TempDir() + "symvirt-example-" + name + ".xml";
  std::ofstream(xml) << "<domain><name>@VM@</name></domain>";
  const std::string key = "domain_template = \"";
  const std::size_t at = text.find(key) + key.size();
  text.replace(at, text.find('"', at) - at, xml.string());
  auto config = parse_config(text, path);
  EXPECT_TRUE(config) << config.error().message;
  fs::remove(xml);
  return config ? *config : Config();
}

// A host as section 7 of the manual describes it.
class Examples : public testing::TestWithParam<const char*> {
 protected:
  Examples() {
    sys_.device("0000:af:00.0", "15b3:101b", "0x020700", 7, "mlx5_core");
    function("0000:5e:00.0", "15b3:101d", "0x020000", "ens3f0");
    function("0000:86:00.0", "8086:1592", "0x020000", "ens5f0");
    function("0000:d8:00.0", "15b3:101b", "0x020700", "ibs2");
    sys_.rdma("0000:d8:00.0", "mlx5_0", "4: ACTIVE");
  }
  void function(const std::string& pf, const std::string& model, const std::string& pci_class,
                const std::string& interface) {
    sys_.device(pf, model, pci_class, ++group_, "driver");
    sys_.net(pf, interface, "up");
    for (int i = 0; i < 2; ++i) {
      const std::string vf = pf.substr(0, pf.size() - 1) + std::to_string(i + 1);
      sys_.device(vf, "15b3:101e", pci_class, ++group_, "driver");
      sys_.virtual_function(pf, i, vf);
    }
  }
  fakes::FakeSysfs sys_;
  int group_ = 100;
};

TEST_P(Examples, DevicesAndClassFitTogether) {
  const std::string name = GetParam();
  const NodedConfig hosts = noded(name);
  const Config control = symvirtd(name);
  ASSERT_FALSE(hosts.devices.empty());
  ASSERT_EQ(control.classes.size(), 1u);
  ASSERT_EQ(control.classes[0].slots.size(), 1u);
  const bool ethernet = name == "roce-vf" || name == "ethernet-vf";
  for (const host::DeviceConfig& device : hosts.devices) {
    EXPECT_EQ(device.gres, control.classes[0].slots[0].gres);
    const host::PassthroughDevice found = find_passthrough(device, host::PciBus(sys_.root()));
    EXPECT_FALSE(found.problem) << found.problem->message;
    ASSERT_EQ(found.snippets.size(), 1u);
    EXPECT_THAT(found.snippets[0], HasSubstr(ethernet ? "<interface type='hostdev'" : "<hostdev"));
  }
}

TEST_P(Examples, TheManualShowsThem) {
  const std::string name = GetParam();
  const std::string manual = text_of_file(kSource / "docs/host-preparation.md");
  std::istringstream lines(text_of_file(kSource / "slurm-conf/examples" / (name + ".noded.toml")));
  std::string block;  // the first device
  for (std::string line; std::getline(lines, line);) {
    if (line.empty() && !block.empty()) break;
    if (!line.empty() && line[0] != '#') block += "    " + line + "\n";
  }
  EXPECT_THAT(manual, AllOf(HasSubstr("(`" + name + "`)"), HasSubstr("\n" + block + "\n")));
}

INSTANTIATE_TEST_SUITE_P(All, Examples,
                         testing::Values("infiniband-hca", "infiniband-vf", "roce-vf",
                                         "ethernet-vf"),
                         [](const auto& example) {
                           std::string name = example.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(ExampleFiles, EachFileIsTested) {
  std::size_t files = 0;
  for (const auto& entry : fs::directory_iterator(kSource / "slurm-conf/examples"))
    files += entry.path().extension() == ".toml" ? 1 : 0;
  EXPECT_EQ(files, 8u);
}

}  // namespace
}  // namespace symvirt
