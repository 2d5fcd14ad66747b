#include "spank-symvirt/coordinator/doctor.h"

#include <fmt/format.h>

#include <map>
#include <sstream>

#include "spank-symvirt/coordinator/json_access.h"

namespace symvirt {

using nlohmann::json;

namespace {

int int_of(const json& j, const char* field, int otherwise) {
  auto it = j.find(field);
  return it != j.end() && it->is_number_integer() ? it->get<int>() : otherwise;
}

// What the host's kernel says of a device: "0000:5e:00.2, VF 0 of 0000:5e:00.0, IOMMU group 12,
// driver mlx5_core, NUMA node 0, ens3f0 up".
std::string facts_of(const json& device) {
  std::string text = text_of(device, "pci");
  if (const std::string pf = text_of(device, "pf"); !pf.empty())
    text += fmt::format(", VF {} of {}", int_of(device, "vf", -1), pf);
  if (const int group = int_of(device, "iommu_group", -1); group >= 0)
    text += fmt::format(", IOMMU group {}", group);
  const std::string driver = text_of(device, "driver");
  text += driver.empty() ? ", no driver" : ", driver " + driver;
  if (const int numa = int_of(device, "numa_node", -1); numa >= 0)
    text += fmt::format(", NUMA node {}", numa);
  for (const json& port : objects_of(device, "ports"))
    text += fmt::format(", {} {}", text_of(port, "port"), text_of(port, "state"));
  return text;
}

// "hca:2" of "gpu:tesla:1,hca:2(S:0)".
bool promises(const std::string& gres, const std::string& name, int count) {
  std::istringstream items(gres);
  for (std::string item; std::getline(items, item, ',');) {
    if (item.substr(0, item.find('(')) == fmt::format("{}:{}", name, count)) return true;
  }
  return false;
}

}  // namespace

json check(const std::string& name, bool ok, const std::string& detail, const std::string& advice) {
  json j = {{"check", name}, {"ok", ok}, {"detail", detail}};
  if (!ok && !advice.empty()) j["advice"] = advice;
  return j;
}

json host_checks(const std::string& host, const std::string& gres, const json& info) {
  json checks = json::array();
  const std::string name = "host " + host;
  const bool libvirt = flag_of(info, "libvirt_ok");
  checks.push_back(check(name + " libvirt", libvirt, libvirt ? "answers" : "does not answer",
                         "systemctl status libvirtd on the host"));
  std::map<std::string, int> counts;
  for (const json& d : objects_of(info, "devices")) {
    ++counts[text_of(d, "gres")];
    const std::string what = fmt::format("{} device {}", name, text_of(d, "device"));
    const std::string problem = text_of(d, "problem");
    if (!problem.empty())
      checks.push_back(
          check(what, false, problem, "no VM gets it before; docs/host-preparation.md"));
    else if (d.contains("pci"))
      checks.push_back(check(what, true, fmt::format("{}: {}", text_of(d, "state"), facts_of(d))));
  }
  for (const json& vm : objects_of(info, "vms")) {
    auto slots = vm.find("unplugs_pending");
    if (slots == vm.end() || !slots->is_array() || slots->empty()) continue;
    checks.push_back(check(
        fmt::format("{} VM {}", name, text_of(vm, "vm")), false,
        fmt::format("was asked for its device, has not given it up, and still may: slots {}",
                    slots->dump(-1, ' ', false, json::error_handler_t::replace)),
        "does the guest hang? look at its console; noded gives back what it gives up too late"));
  }
  for (const auto& [kind, count] : counts) {
    checks.push_back(
        check(fmt::format("{} devices of gres {}", name, kind), promises(gres, kind, count),
              fmt::format("noded has {}, slurm.conf says {}", count, gres.empty() ? "none" : gres),
              "make Gres= in slurm.conf and [[device]] in noded.toml agree"));
  }
  return checks;
}

}  // namespace symvirt
