// From the description of a device in noded.toml to what libvirt attaches, and whether it can be
// attached: one code for a whole adapter, a virtual function with MAC and VLAN, a function that is
// no NIC, and a snippet of libvirt XML (which is also how tests put a stand-in in its place).
// Threads: any.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "common/result.h"
#include "node-helper/host/config.h"
#include "node-helper/host/pci_bus.h"

namespace symvirt::host {

struct PassthroughDevice {
  std::vector<std::string> snippets;  // for make_device_xml; empty when the device was not found
  std::vector<PciLook> functions;     // PCI functions it consists of; none for a stand-in
  // Why it cannot be given to a VM now. Says what to do; does not say which device and host.
  std::optional<Error> problem;

  // Model of its first function; empty for a stand-in.
  std::string model() const { return functions.empty() ? "" : functions.front().model; }
};

PassthroughDevice find_passthrough(const DeviceConfig& device, const PciBus& bus);

// libvirt's reason why an attach failed, with what to do about it.
Error explain_attach(Error error);

}  // namespace symvirt::host
