#include "node-helper/host/passthrough.h"

#include <fmt/format.h>

#include "node-helper/host/domain_xml.h"

namespace symvirt::host {
namespace {

// Drivers that VFIO takes for nobody: they do not touch the device.
bool leaves_alone(const std::string& driver) {
  return driver.empty() || driver == "vfio-pci" || driver == "pci-stub" ||
         driver.ends_with("-vfio-pci") || driver.ends_with("_vfio_pci");
}

std::optional<Error> problem_of(const PciLook& look) {
  auto problem = [&](const std::string& why) {
    return Error{Code::kPrecondition, fmt::format("PCI device {} {}", look.address, why)};
  };
  if (look.is_bridge()) return problem("is a bridge: only what is behind it can be given to a VM");
  if (look.iommu_group < 0) {
    return problem(
        "is in no IOMMU group: the host runs without an IOMMU; switch on VT-d or AMD-Vi in its "
        "firmware, and add intel_iommu=on to the kernel's command line where the processor is "
        "Intel's");
  }
  for (const PciSibling& s : look.siblings) {
    if (leaves_alone(s.driver)) continue;
    return problem(
        fmt::format("shares IOMMU group {} with {}, which the host uses with {}: VFIO gives away "
                    "whole groups; bind {} to vfio-pci at boot too, or put the card into a slot "
                    "whose port isolates it (ACS)",
                    look.iommu_group, s.address, s.driver, s.address));
  }
  if (look.vfs > 0) {
    return problem(
        fmt::format("has {} virtual functions, which would vanish with it; give those to VMs, or "
                    "echo 0 > /sys/bus/pci/devices/{}/sriov_numvfs",
                    look.vfs, look.address));
  }
  for (const PciPort& port : look.ports) {
    if (port.taken.empty()) continue;
    return problem(
        fmt::format("is {} to the host, which is {}; free it first, or describe another "
                    "device",
                    port.name, port.taken));
  }
  return std::nullopt;
}

// libvirt sets MAC and VLAN of a virtual function through its physical one before it gives it away.
bool as_interface(const DeviceSource& source, const PciLook& look) {
  if (!source.as.empty()) return source.as == "interface";
  return look.vf >= 0 && look.is_ethernet();
}

std::string snippet_for(const DeviceSource& source, const PciLook& look) {
  unsigned domain = 0, bus = 0, slot = 0, function = 0;
  std::sscanf(look.address.c_str(), "%4x:%2x:%2x.%1x", &domain, &bus, &slot, &function);
  const std::string where =
      fmt::format("domain='{:#06x}' bus='{:#04x}' slot='{:#04x}' function='{:#x}'", domain, bus,
                  slot, function);
  if (!as_interface(source, look)) {
    return fmt::format(
        "<hostdev mode='subsystem' type='pci' managed='yes'><source><address {}/></source>"
        "</hostdev>",
        where);
  }
  const std::string vlan =
      source.vlan == 0 ? "" : fmt::format("<vlan><tag id='{}'/></vlan>", source.vlan);
  return fmt::format(
      "<interface type='hostdev' managed='yes'><mac address='{{mac}}'/><source><address "
      "type='pci' {}/></source>{}</interface>",
      where, vlan);
}

Result<std::string> address_of(const DeviceSource& source, const PciBus& bus) {
  if (!source.pci.empty()) return source.pci;
  if (!source.pf.empty()) return bus.virtual_function(source.pf, source.vf);
  const std::vector<std::string> found = bus.of_model(source.model);
  if (static_cast<std::size_t>(source.nth) < found.size())
    return found[static_cast<std::size_t>(source.nth)];
  return Error{Code::kNotFound,
               fmt::format("the host has {} PCI devices of model {}: there is no number {} "
                           "(counted from 0); lspci -D -d {} shows them",
                           found.size(), source.model, source.nth, source.model)};
}

}  // namespace

PassthroughDevice find_passthrough(const DeviceConfig& device, const PciBus& bus) {
  PassthroughDevice out;
  std::vector<std::string> addresses;
  if (device.source.empty()) {
    out.snippets = device.snippets;
    for (const std::string& snippet : device.snippets) {
      if (auto address = source_pci_address(snippet)) addresses.push_back(*address);
    }
  } else {
    auto address = address_of(device.source, bus);
    if (!address) {
      out.problem = address.error();
      return out;
    }
    addresses.push_back(*address);
  }
  for (const std::string& address : addresses) {
    auto look = bus.look(address);
    if (!look) {
      if (!out.problem) out.problem = look.error();
      continue;
    }
    if (!out.problem) out.problem = problem_of(*look);
    out.functions.push_back(std::move(*look));
  }
  if (device.source.empty() || out.functions.empty()) return out;
  const PciLook& look = out.functions.front();
  out.snippets = {snippet_for(device.source, look)};
  if (!out.problem && as_interface(device.source, look)) {
    if (look.vf < 0) {
      out.problem = Error{Code::kPrecondition,
                          fmt::format("PCI device {} is no virtual function: its MAC and VLAN "
                                      "cannot be set from the host; leave out as and vlan",
                                      look.address)};
    } else if (!look.pf_has_net) {
      out.problem = Error{
          Code::kPrecondition,
          fmt::format("PCI device {}: its physical function {} has no network interface, through "
                      "which its MAC is set; load that one's driver",
                      look.address, look.pf)};
    }
  }
  return out;
}

Error explain_attach(Error error) {
  struct Known {
    const char* words;
    Code code;
    const char* advice;
  };
  // As libvirt 9 and QEMU 7 word them. tests/vfio meets the first, the second and the one without
  // an IOMMU; the others are what noded's own look at the device is to prevent.
  static constexpr Known kKnown[] = {
      {"No more available PCI slots", Code::kExhausted,
       "the VM has no free PCIe port: add <controller type='pci' model='pcie-root-port'/> to its "
       "class's domain template, one for each device"},
      {"in use by driver", Code::kPrecondition, "detach it there, or stop that VM"},
      {"is not viable", Code::kPrecondition,
       "every function of its IOMMU group must be free of host drivers"},
      {"Device or resource busy", Code::kPrecondition,
       "another program has its IOMMU group open: fuser -v /dev/vfio/*"},
      {"support passthrough", Code::kPrecondition,
       "switch on VT-d or AMD-Vi in the host's firmware, and intel_iommu=on on its kernel's "
       "command "
       "line"},
      {"Failed to lock", Code::kExhausted,
       "the whole memory of the VM is pinned: more is needed, or a higher limit of locked memory"},
  };
  for (const Known& known : kKnown) {
    if (error.message.find(known.words) == std::string::npos) continue;
    return Error{known.code, fmt::format("{}; {}", error.message, known.advice)};
  }
  return error;
}

}  // namespace symvirt::host
