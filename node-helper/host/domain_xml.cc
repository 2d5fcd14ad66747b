#include "node-helper/host/domain_xml.h"

#include <fmt/format.h>
#include <libxml/parser.h>
#include <libxml/tree.h>
#include <libxml/xpath.h>

#include <algorithm>
#include <cstring>
#include <memory>

namespace symvirt::host {
namespace {

constexpr char kAliasPrefix[] = "ua-symvirt-";

struct FreeDoc {
  void operator()(xmlDocPtr doc) const { xmlFreeDoc(doc); }
};
using Doc = std::unique_ptr<xmlDoc, FreeDoc>;

const xmlChar* x(const char* s) { return reinterpret_cast<const xmlChar*>(s); }

Result<Doc> parse(const std::string& xml, const char* what) {
  // No network, no external entities; libxml2's own messages would go to stderr.
  Doc doc(xmlReadMemory(xml.data(), static_cast<int>(xml.size()), "domain.xml", nullptr,
                        XML_PARSE_NONET | XML_PARSE_NOERROR | XML_PARSE_NOWARNING));
  if (!doc || xmlDocGetRootElement(doc.get()) == nullptr) {
    const auto* e = xmlGetLastError();
    std::string why = e != nullptr && e->message != nullptr ? e->message : "no element";
    while (!why.empty() && why.back() == '\n') why.pop_back();
    return Error{Code::kInvalidArgument,
                 fmt::format("{}: not XML: line {}: {}", what, e == nullptr ? 0 : e->line, why)};
  }
  return doc;
}

bool is(const xmlNode* node, const char* name) {
  return node->type == XML_ELEMENT_NODE &&
         std::strcmp(reinterpret_cast<const char*>(node->name), name) == 0;
}

xmlNodePtr child(const xmlNode* parent, const char* name) {
  if (parent == nullptr) return nullptr;
  for (xmlNodePtr n = parent->children; n != nullptr; n = n->next) {
    if (is(n, name)) return n;
  }
  return nullptr;
}

std::string attribute(const xmlNode* node, const char* name) {
  if (node == nullptr) return "";
  xmlChar* value = xmlGetProp(const_cast<xmlNodePtr>(node), x(name));
  if (value == nullptr) return "";
  std::string text = reinterpret_cast<char*>(value);
  xmlFree(value);
  return text;
}

std::string content(const xmlNode* node) {
  if (node == nullptr) return "";
  xmlChar* value = xmlNodeGetContent(const_cast<xmlNodePtr>(node));
  std::string text = value == nullptr ? "" : reinterpret_cast<char*>(value);
  xmlFree(value);
  return text;
}

std::string dump(xmlDocPtr doc) {
  xmlBufferPtr buffer = xmlBufferCreate();
  xmlNodeDump(buffer, doc, xmlDocGetRootElement(doc), 0, 0);
  std::string text = reinterpret_cast<const char*>(xmlBufferContent(buffer));
  xmlBufferFree(buffer);
  return text;
}

void remove_child(xmlNodePtr parent, const char* name) {
  while (xmlNodePtr node = child(parent, name)) {
    xmlUnlinkNode(node);
    xmlFreeNode(node);
  }
}

std::int64_t memory_of(const xmlNode* memory) {
  const std::string unit = attribute(memory, "unit");
  const std::int64_t value = std::strtoll(content(memory).c_str(), nullptr, 10);
  if (unit == "b" || unit == "bytes") return value;
  if (unit == "M" || unit == "MiB") return value << 20;
  if (unit == "G" || unit == "GiB") return value << 30;
  return value << 10;  // KiB is libvirt's default, and what it prints
}

std::string replace_all(std::string text, const std::string& from, const std::string& to) {
  for (std::size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
    text.replace(at, from.size(), to);
  return text;
}

// Values come from requests; none of them may add XML of its own.
std::string escape(const std::string& text) {
  std::string out;
  for (char c : text) {
    if (c == '<')
      out += "&lt;";
    else if (c == '&')
      out += "&amp;";
    else if (c == '\'')
      out += "&apos;";
    else if (c == '"')
      out += "&quot;";
    else
      out += c;
  }
  return out;
}

Status set_guest_address(xmlNodePtr root, const std::string& text) {
  unsigned domain = 0, bus = 0, slot = 0, function = 0;
  char rest = 0;
  if (std::sscanf(text.c_str(), "%4x:%2x:%2x.%1x%c", &domain, &bus, &slot, &function, &rest) != 4) {
    return Error{Code::kInvalidArgument,
                 fmt::format("guest address {}: must look like 0000:06:00.0", text)};
  }
  remove_child(root, "address");
  xmlNodePtr node = xmlNewChild(root, nullptr, x("address"), nullptr);
  xmlNewProp(node, x("type"), x("pci"));
  xmlNewProp(node, x("domain"), x(fmt::format("{:#06x}", domain).c_str()));
  xmlNewProp(node, x("bus"), x(fmt::format("{:#04x}", bus).c_str()));
  xmlNewProp(node, x("slot"), x(fmt::format("{:#04x}", slot).c_str()));
  xmlNewProp(node, x("function"), x(fmt::format("{:#x}", function).c_str()));
  return {};
}

void read_devices(const xmlNode* devices, LiveDomain& domain) {
  if (devices == nullptr) return;
  for (const xmlNode* n = devices->children; n != nullptr; n = n->next) {
    if (n->type != XML_ELEMENT_NODE) continue;
    const std::string alias = attribute(child(n, "alias"), "name");
    if (auto part = parse_alias(alias)) {
      part->mac = attribute(child(n, "mac"), "address");
      domain.parts.push_back(*part);
      continue;
    }
    if (is(n, "hostdev") || (is(n, "interface") && attribute(n, "type") == "hostdev") ||
        (is(n, "shmem") && attribute(n, "role") == "peer"))
      domain.foreign_blockers.push_back(alias.empty() ? reinterpret_cast<const char*>(n->name)
                                                      : alias);
    if (is(n, "channel") && attribute(child(n, "target"), "name") == kGuestPort) {
      domain.has_guest_port = true;
      domain.guest_port_open = attribute(child(n, "target"), "state") == "connected";
    }
  }
}

// "0-3,5": libvirt's form of a CPU set.
std::string cpu_set(const std::vector<int>& cpus) {
  std::string text;
  for (int cpu : cpus) text += fmt::format("{}{}", text.empty() ? "" : ",", cpu);
  return text;
}

void pin(xmlNodePtr root, const Pinning& pinning) {
  xmlNodePtr vcpu = child(root, "vcpu");
  if (!pinning.cpus.empty() && vcpu != nullptr) {
    const std::string all = cpu_set(pinning.cpus);
    xmlSetProp(vcpu, x("placement"), x("static"));
    xmlSetProp(vcpu, x("cpuset"), x(all.c_str()));
    const std::size_t count = std::strtoul(content(vcpu).c_str(), nullptr, 10);
    xmlNodePtr tune = child(root, "cputune");
    if (tune == nullptr) tune = xmlNewChild(root, nullptr, x("cputune"), nullptr);
    remove_child(tune, "vcpupin");
    remove_child(tune, "emulatorpin");
    for (std::size_t i = 0; i < count && count <= pinning.cpus.size(); ++i) {
      xmlNodePtr p = xmlNewChild(tune, nullptr, x("vcpupin"), nullptr);
      xmlNewProp(p, x("vcpu"), x(std::to_string(i).c_str()));
      xmlNewProp(p, x("cpuset"), x(std::to_string(pinning.cpus[i]).c_str()));
    }
    xmlNodePtr emulator = xmlNewChild(tune, nullptr, x("emulatorpin"), nullptr);
    xmlNewProp(emulator, x("cpuset"), x(all.c_str()));
  }
  if (pinning.numa_node >= 0) {
    remove_child(root, "numatune");
    xmlNodePtr memory = xmlNewChild(xmlNewChild(root, nullptr, x("numatune"), nullptr), nullptr,
                                    x("memory"), nullptr);
    // Slurm counts memory by host, not by node: "strict" could fail where Slurm said yes.
    xmlNewProp(memory, x("mode"), x("preferred"));
    xmlNewProp(memory, x("nodeset"), x(std::to_string(pinning.numa_node).c_str()));
  }
}

// Children are of their parent's namespace.
void fill_metadata(xmlNodePtr vm, const std::vector<std::string>& overlays,
                   const std::map<std::string, std::string>& models) {
  for (const std::string& path : overlays) {
    xmlNodePtr overlay = xmlNewChild(vm, nullptr, x("overlay"), nullptr);
    xmlNewProp(overlay, x("path"), x(path.c_str()));
  }
  for (const auto& [slot, model] : models) {
    xmlNodePtr node = xmlNewChild(vm, nullptr, x("slot"), nullptr);
    xmlNewProp(node, x("name"), x(slot.c_str()));
    xmlNewProp(node, x("model"), x(model.c_str()));
  }
}

void add_overlays(xmlNodePtr root, const std::vector<std::string>& overlays) {
  xmlNodePtr metadata = child(root, "metadata");
  if (metadata == nullptr) metadata = xmlNewChild(root, nullptr, x("metadata"), nullptr);
  remove_child(metadata, "vm");
  xmlNodePtr vm = xmlNewChild(metadata, nullptr, x("vm"), nullptr);
  xmlSetNs(vm, xmlNewNs(vm, x(kMetadataUri), x(kMetadataPrefix)));
  fill_metadata(vm, overlays, {});
}

}  // namespace

void init_xml() { xmlInitParser(); }

std::string alias_of(const std::string& slot, int part) {
  return fmt::format("{}{}-{}", kAliasPrefix, slot, part);
}

bool valid_slot_name(const std::string& slot) {
  return !slot.empty() && slot.size() <= 32 && std::all_of(slot.begin(), slot.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
  });
}

std::optional<AttachedPart> parse_alias(const std::string& alias) {
  if (!alias.starts_with(kAliasPrefix)) return std::nullopt;
  const std::string rest = alias.substr(std::strlen(kAliasPrefix));
  const std::size_t dash = rest.rfind('-');
  if (dash == std::string::npos || dash == 0 || dash + 1 == rest.size() || rest.size() - dash > 4)
    return std::nullopt;
  AttachedPart part{rest.substr(0, dash), 0, ""};
  for (char c : rest.substr(dash + 1)) {
    if (c < '0' || c > '9') return std::nullopt;
    part.part = part.part * 10 + (c - '0');
  }
  return part;
}

Result<LiveDomain> parse_domain(const std::string& xml) {
  auto doc = parse(xml, "domain");
  if (!doc) return doc.error();
  const xmlNode* root = xmlDocGetRootElement(doc->get());
  if (!is(root, "domain"))
    return Error{Code::kInvalidArgument, "domain: the XML's outermost element must be <domain>"};
  LiveDomain domain;
  domain.name = content(child(root, "name"));
  domain.uuid = content(child(root, "uuid"));
  if (domain.name.empty()) return Error{Code::kInvalidArgument, "domain: <name> is missing"};
  domain.memory_bytes = memory_of(child(root, "memory"));
  domain.vcpus = static_cast<int>(std::strtol(content(child(root, "vcpu")).c_str(), nullptr, 10));
  read_devices(child(root, "devices"), domain);
  const xmlNode* vm = child(child(root, "metadata"), "vm");
  for (const xmlNode* n = vm == nullptr ? nullptr : vm->children; n != nullptr; n = n->next) {
    if (is(n, "overlay")) domain.overlays.push_back(attribute(n, "path"));
    if (is(n, "slot")) domain.models[attribute(n, "name")] = attribute(n, "model");
  }
  return domain;
}

Result<std::string> make_device_xml(const std::string& snippet, const DeviceFill& fill,
                                    const std::string& alias) {
  std::string text = snippet;
  text = replace_all(std::move(text), "{vm}", escape(fill.vm));
  text = replace_all(std::move(text), "{slot}", escape(fill.slot));
  text = replace_all(std::move(text), "{device}", escape(fill.device));
  text = replace_all(std::move(text), "{mac}", escape(fill.mac));
  text = replace_all(std::move(text), "{index}", std::to_string(fill.index));
  if (const std::size_t brace = text.find('{'); brace != std::string::npos) {
    return Error{Code::kInvalidArgument,
                 fmt::format("unknown placeholder {}; {{vm}} {{slot}} {{device}} {{mac}} {{index}} "
                             "are known",
                             text.substr(brace, text.find('}', brace) - brace + 1))};
  }
  auto doc = parse(text, "device");
  if (!doc) return doc.error();
  xmlNodePtr root = xmlDocGetRootElement(doc->get());
  remove_child(root, "alias");
  xmlNewProp(xmlNewChild(root, nullptr, x("alias"), nullptr), x("name"), x(alias.c_str()));
  if (!fill.guest_address.empty()) {
    if (Status s = set_guest_address(root, fill.guest_address); !s) return s.error();
  }
  return dump(doc->get());
}

std::optional<std::string> source_pci_address(const std::string& snippet) {
  auto doc = parse(snippet, "device");
  if (!doc) return std::nullopt;
  const xmlNode* root = xmlDocGetRootElement(doc->get());
  if (!(is(root, "hostdev") && attribute(root, "type") == "pci") &&
      !(is(root, "interface") && attribute(root, "type") == "hostdev"))
    return std::nullopt;
  const xmlNode* address = child(child(root, "source"), "address");
  if (address == nullptr) return std::nullopt;
  auto part = [&](const char* name) {
    return std::strtoul(attribute(address, name).c_str(), nullptr, 0);
  };
  return fmt::format("{:04x}:{:02x}:{:02x}.{:x}", part("domain"), part("bus"), part("slot"),
                     part("function"));
}

std::string vm_metadata(const LiveDomain& domain) {
  Doc doc(xmlNewDoc(x("1.0")));
  xmlNodePtr vm = xmlNewNode(nullptr, x("vm"));
  xmlDocSetRootElement(doc.get(), vm);
  fill_metadata(vm, domain.overlays, domain.models);
  return dump(doc.get());
}

Result<std::string> prepare_domain(const std::string& xml, const std::optional<Pinning>& pinning,
                                   const std::vector<std::string>& overlays) {
  auto doc = parse(xml, "domain");
  if (!doc) return doc.error();
  xmlNodePtr root = xmlDocGetRootElement(doc->get());
  if (pinning) pin(root, *pinning);
  add_overlays(root, overlays);
  return dump(doc->get());
}

Result<std::string> without_pinning(const std::string& xml) {
  auto doc = parse(xml, "domain");
  if (!doc) return doc.error();
  xmlNodePtr root = xmlDocGetRootElement(doc->get());
  remove_child(root, "numatune");
  if (xmlNodePtr tune = child(root, "cputune")) {
    for (const char* name : {"vcpupin", "emulatorpin", "iothreadpin"}) remove_child(tune, name);
  }
  if (xmlNodePtr vcpu = child(root, "vcpu")) xmlUnsetProp(vcpu, x("cpuset"));
  return dump(doc->get());
}

}  // namespace symvirt::host
