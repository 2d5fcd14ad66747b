// A folder that looks like /sys and /proc of a host with PCI devices, for unit tests.
#pragma once

#include <filesystem>
#include <fstream>
#include <string>

namespace symvirt::fakes {

class FakeSysfs {
 public:
  FakeSysfs() {
    char name[] = "/tmp/symvirt-sysfs-XXXXXX";
    root_ = mkdtemp(name);
    std::filesystem::create_directories(root_ + "/sys/bus/pci/devices");
  }
  ~FakeSysfs() { std::filesystem::remove_all(root_); }
  FakeSysfs(const FakeSysfs&) = delete;
  FakeSysfs& operator=(const FakeSysfs&) = delete;

  const std::string& root() const { return root_; }
  std::string at(const std::string& address) const {
    return root_ + "/sys/bus/pci/devices/" + address;
  }

  void write(const std::string& path, const std::string& line) {
    std::filesystem::create_directories(std::filesystem::path(path).parent_path());
    std::ofstream(path) << line << "\n";
  }
  void link(const std::string& path, const std::string& target) {
    std::filesystem::create_directories(std::filesystem::path(path).parent_path());
    std::filesystem::remove(path);
    std::filesystem::create_symlink(target, path);
  }

  // `model` "15b3:1018", `pci_class` "0x020000"; group -1: the host has no IOMMU.
  void device(const std::string& address, const std::string& model, const std::string& pci_class,
              int group, const std::string& driver = "", int numa_node = -1) {
    write(at(address) + "/vendor", "0x" + model.substr(0, 4));
    write(at(address) + "/device", "0x" + model.substr(5));
    write(at(address) + "/class", pci_class);
    write(at(address) + "/numa_node", std::to_string(numa_node));
    if (!driver.empty()) bind(address, driver);
    if (group < 0) return;
    const std::string folder = root_ + "/sys/kernel/iommu_groups/" + std::to_string(group);
    link(folder + "/devices/" + address, at(address));
    link(at(address) + "/iommu_group", folder);
  }
  void bind(const std::string& address, const std::string& driver) {
    link(at(address) + "/driver", "../../../bus/pci/drivers/" + driver);
  }
  void net(const std::string& address, const std::string& name, const std::string& state) {
    write(at(address) + "/net/" + name + "/operstate", state);
    link(root_ + "/sys/class/net/" + name, at(address) + "/net/" + name);
    link(at(address) + "/net/" + name + "/device", at(address));
  }
  void rdma(const std::string& address, const std::string& name, const std::string& state) {
    write(at(address) + "/infiniband/" + name + "/ports/1/state", state);
    link(root_ + "/sys/class/infiniband/" + name, at(address) + "/infiniband/" + name);
    link(at(address) + "/infiniband/" + name + "/device", at(address));
  }
  void virtual_function(const std::string& pf, int index, const std::string& vf) {
    link(at(pf) + "/virtfn" + std::to_string(index), at(vf));
    link(at(vf) + "/physfn", at(pf));
  }

 private:
  std::string root_;
};

}  // namespace symvirt::fakes
