// What noded reads from and writes into libvirt's XML. Pure functions over libxml2; no libvirt
// here. Threads: any (libxml2 is initialised once, see init_xml).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "common/result.h"

namespace symvirt::host {

inline constexpr char kGuestPort[] = "org.symvirt.guest.0";
inline constexpr char kMetadataPrefix[] = "symvirt";
inline constexpr char kMetadataUri[] = "https://symvirt.org/xmlns/vm/1";

void init_xml();  // before threads

struct DeviceFill {
  std::string vm, slot, device, mac;
  int index = 0;
  std::string guest_address;  // "0000:06:00.0"; empty: the snippet's, or libvirt chooses
};

// One of our devices in a live domain: part `part` of the device in `slot`.
struct AttachedPart {
  std::string slot;
  int part = 0;
  std::string mac;  // empty: has none
  bool operator==(const AttachedPart&) const = default;
};

struct LiveDomain {
  std::string name, uuid;
  std::int64_t memory_bytes = 0;
  int vcpus = 0;
  std::vector<AttachedPart> parts;
  std::vector<std::string> foreign_blockers;  // host devices and guards that are not ours
  std::vector<std::string> overlays;  // files vm.start made for it; they follow it in its metadata
  // PCI models that the guest has met, by slot; they follow it, too.
  std::map<std::string, std::string> models;
  bool has_guest_port = false;
  bool guest_port_open = false;  // somebody in the guest has it open
};

Result<LiveDomain> parse_domain(const std::string& xml);

// "ua-symvirt-<slot>-<part>": libvirt keeps aliases that begin with "ua-" as they are.
std::string alias_of(const std::string& slot, int part);
std::optional<AttachedPart> parse_alias(const std::string& alias);
bool valid_slot_name(const std::string& slot);

// A snippet with its placeholders filled in and the alias set.
Result<std::string> make_device_xml(const std::string& snippet, const DeviceFill& fill,
                                    const std::string& alias);

// The host's PCI device that a piece of libvirt device XML passes through, "0000:5e:02.0". Nothing
// for devices of other kinds.
std::optional<std::string> source_pci_address(const std::string& snippet);

struct Pinning {
  std::vector<int> cpus;
  int numa_node = -1;
};

// The XML of vm.start: pinned, and with the list of overlays in its metadata.
Result<std::string> prepare_domain(const std::string& xml, const std::optional<Pinning>& pinning,
                                   const std::vector<std::string>& overlays);
// Overlays and models as an element for virDomainSetMetadata, which adds the namespace itself.
std::string vm_metadata(const LiveDomain& domain);
// The same domain without this host's CPU and NUMA numbers, for another host.
Result<std::string> without_pinning(const std::string& xml);

}  // namespace symvirt::host
