#include "node-helper/guest/devices.h"

#include <fmt/format.h>
#include <linux/rtnetlink.h>
#include <sys/epoll.h>

#include <algorithm>

#include "common/log.h"
#include "node-helper/guest/holders.h"
#include "node-helper/guest/sockets.h"

namespace symvirt::guest {
namespace {

constexpr Milliseconds kRetry{100};
constexpr unsigned kMostTries = 50;
constexpr Milliseconds kSecondAnnouncement{250};
// The kernel tells nobody without a verbs context that a port is active or has a new GID.
constexpr Milliseconds kRdmaPoll{20};
constexpr Milliseconds kRdmaPollUnasked{500};

std::string rdma_missing(const std::string& netdev, const std::vector<Address>& addresses) {
  const RdmaPort port = rdma_port_of(netdev);
  if (!port.device.empty()) return rdma_not_ready(port, addresses);
  return fmt::format("{} has no RDMA device: is the driver for it loaded ({})?", netdev,
                     driver_of(netdev).driver);
}

}  // namespace

Devices::Devices(EventLoop& loop, Events events, Netlink route, Netlink listener)
    : loop_(loop),
      events_(std::move(events)),
      route_(std::move(route)),
      listener_(std::move(listener)) {}

Result<std::unique_ptr<Devices>> Devices::create(EventLoop& loop, Events events) {
  auto route = Netlink::open(NETLINK_ROUTE);
  if (!route) return route.error();
  auto listener = Netlink::open(NETLINK_ROUTE, RTMGRP_LINK);
  if (!listener) return listener.error();
  std::unique_ptr<Devices> devices(
      new Devices(loop, std::move(events), std::move(*route), std::move(*listener)));
  auto watch = loop.watch(devices->listener_.fd(), EPOLLIN,
                          [d = devices.get()](std::uint32_t) { d->on_netlink(); });
  if (!watch) return watch.error();
  devices->watch_ = *watch;
  return devices;
}

void Devices::configure(const std::vector<Slot>& slots) {
  std::vector<std::unique_ptr<Held>> before = std::exchange(held_, {});
  for (const Slot& slot : slots) {
    auto it = std::find_if(before.begin(), before.end(), [&](const auto& h) {
      return h && h->slot.name == slot.name && fits(slot.match, h->link, driver_of(h->link.name));
    });
    // Configured again (noded does so after each attach): an interface that is in use is left as it
    // is.
    held_.push_back(it == before.end() ? std::make_unique<Held>() : std::move(*it));
    held_.back()->slot = slot;
  }
  look_again();
}

void Devices::look_again() {
  const auto links = list_links(route_);
  if (!links) return log_error(links.error().message);
  for (const auto& held : held_) {
    const bool there = std::any_of(links->begin(), links->end(),
                                   [&](const Link& l) { return l.index == held->link.index; });
    if (held->link.index != 0 && !there) link_gone(held->link.index);
  }
  for (const Link& link : *links) link_seen(link);
  settle();
}

void Devices::on_netlink() {
  const bool complete = listener_.receive([this](const nlmsghdr* h) {
    if (h->nlmsg_type != RTM_NEWLINK && h->nlmsg_type != RTM_DELLINK) return;
    // A port leaving a bridge is told as RTM_DELLINK of family AF_BRIDGE.
    if (h->nlmsg_len < mnl_nlmsg_size(sizeof(ifinfomsg))) return;
    if (static_cast<const ifinfomsg*>(mnl_nlmsg_get_payload(h))->ifi_family != AF_UNSPEC) return;
    const auto link = parse_link(h);
    if (!link) return;
    if (h->nlmsg_type == RTM_DELLINK) {
      link_gone(link->index);
    } else {
      link_seen(*link);
    }
  });
  if (!complete) return look_again();
  settle();
}

Devices::Held* Devices::slot_for(const Link& link) {
  const DriverInfo driver = driver_of(link.name);
  Held* found = nullptr;
  for (const auto& held : held_) {
    if (held->link.index != 0 || !fits(held->slot.match, link, driver)) continue;
    const auto saved = saved_.find(held->slot.name);
    // Of several slots that fit, the one whose device stood at this place before.
    if (saved != saved_.end() && !driver.bus.empty() && saved->second.bus == driver.bus)
      return held.get();
    if (!found) found = held.get();
  }
  return found;
}

void Devices::link_seen(const Link& link) {
  for (const auto& held : held_) {
    if (held->link.index != link.index) continue;
    held->link = link;
    return evaluate(*held);
  }
  Held* held = slot_for(link);
  if (!held) return;
  held->link = link;
  held->set_up = held->announced = false;
  held->tries = 0;
  held->link_up_ms = 0;
  held->appeared_ms = loop_.now_ms();
  log_info(fmt::format("slot {}: {} ({}) is there", held->slot.name, link.name, link.mac));
  prepare(*held);
}

void Devices::link_gone(int index) {
  for (const auto& held : held_) {
    if (held->link.index != index) continue;
    log_info(fmt::format("slot {}: {} is gone", held->slot.name, held->link.name));
    held->link = Link{};
    held->set_up = held->announced = false;
    held->problem.clear();
    held->retry.reset();
  }
}

void Devices::prepare(Held& held) {
  held.retry.reset();
  const Status status = try_prepare(held);
  held.set_up = static_cast<bool>(status);
  held.problem = status ? "" : status.error().message;
  if (status) return evaluate(held);
  // udev may be renaming the interface at this moment, or a gateway's route needs another slot's
  // interface first.
  const bool again = ++held.tries < kMostTries;
  if (held.tries == 1 || !again) {
    log_warning(fmt::format("slot {}: {}: {}", held.slot.name, held.link.name, held.problem));
  }
  if (!again) return;
  held.retry = loop_.after(kRetry, [this, h = &held] {
    prepare(*h);
    settle();
  });
}

Status Devices::take_name(Held& held, const std::string& name) {
  const auto links = list_links(route_);
  if (!links) return links.error();
  for (const Link& other : *links) {
    if (other.name != name || other.index == held.link.index) continue;
    // Two devices came back in another order and hold each other's names. Only a slot's interface
    // is pushed aside.
    for (const auto& h : held_) {
      if (h->link.index != other.index) continue;
      const Status s = rename_link(route_, other.index, fmt::format("symvirt{}", other.index));
      if (!s) return s;
      h->set_up = false;
      h->tries = 0;
      h->retry = loop_.after(Milliseconds(0), [this, slot = h.get()] {
        prepare(*slot);
        settle();
      });
    }
  }
  if (const Status s = rename_link(route_, held.link.index, name); !s) return s;
  held.link.name = name;
  return {};
}

Status Devices::try_prepare(Held& held) {
  const auto it = saved_.find(held.slot.name);
  const SavedLink* saved = it == saved_.end() || it->second.empty() ? nullptr : &it->second;
  if (saved && saved->name != held.link.name) {
    if (const Status s = take_name(held, saved->name); !s) return s;
  }
  const std::uint32_t mtu = saved ? saved->mtu : held.slot.mtu;
  if (mtu != 0 && mtu != held.link.mtu) {
    if (const Status s = set_mtu(route_, held.link.index, mtu); !s) return s;
  }
  if (const Status s = set_up(route_, held.link.index); !s) return s;
  // Addresses and routes need "up", not the carrier: they are in place when the link comes.
  const Status s = saved ? restore_link(route_, *saved, held.link.index)
                         : configure_link(route_, held.slot, held.link.index);
  if (!s) return s;
  held.addresses.clear();
  if (const auto set = addresses_of(route_, held.link.index)) {
    for (const Cidr& cidr : *set) held.addresses.push_back(cidr.address);
  }
  return held.slot.soft_roce ? add_soft_roce(held.link.name) : Status();
}

void Devices::evaluate(Held& held) {
  if (!held.link.carrier) held.announced = false;
  if (!held.set_up || !held.link.carrier || held.announced) return;
  held.announced = true;
  held.link_up_ms = loop_.now_ms() - held.appeared_ms;
  log_info(fmt::format("slot {}: {} has carrier, {} ms after it appeared", held.slot.name,
                       held.link.name, held.link_up_ms));
  if (const auto addresses = addresses_of(route_, held.link.index)) {
    announce(held.link, *addresses);
    // Once more: the first frame after a link comes up is the one a learning switch likes to drop.
    held.retry =
        loop_.after(kSecondAnnouncement, [link = held.link, a = *addresses] { announce(link, a); });
  }
}

void Devices::settle() {
  std::vector<Waiter> waiting = std::exchange(waiters_, {});
  for (Waiter& waiter : waiting) {
    if (!*waiter.over && !answer(waiter)) waiters_.push_back(std::move(waiter));
  }
  poll_rdma();
  const bool present = all_present();
  if (present != was_present_) {
    was_present_ = present;
    if (present && events_.returned) events_.returned();
  }
}

// Looks again later while a link is up whose RDMA port is not.
void Devices::poll_rdma() {
  rdma_poll_.reset();
  const bool waits = std::any_of(held_.begin(), held_.end(), [this](const auto& held) {
    return held->wants_rdma() && held->set_up && held->link.carrier && !missing(*held).empty();
  });
  if (!waits) return;
  rdma_poll_ = loop_.after(waiters_.empty() ? kRdmaPollUnasked : kRdmaPoll, [this] { settle(); });
}

std::string Devices::missing(const Held& held) const {
  if (held.link.index == 0) {
    const Match& m = held.slot.match;
    return fmt::format("slot {}: no interface matching{}{}{}{}{}{}", held.slot.name,
                       m.mac.empty() ? "" : " mac ", m.mac, m.driver.empty() ? "" : " driver ",
                       m.driver, m.pci.empty() ? "" : " pci ", m.pci);
  }
  if (!held.set_up)
    return fmt::format("slot {}: {}: {}", held.slot.name, held.link.name, held.problem);
  if (!held.link.carrier)
    return fmt::format("slot {}: {} has no carrier", held.slot.name, held.link.name);
  if (!held.wants_rdma()) return {};
  const std::string why = rdma_missing(held.link.name, held.addresses);
  return why.empty() ? why : fmt::format("slot {}: {}", held.slot.name, why);
}

std::string Devices::unhealthy() const {
  for (const auto& held : held_) {
    if (std::string why = missing(*held); !why.empty()) return why;
  }
  return {};
}

Devices::Held* Devices::find(const std::string& slot) {
  for (const auto& held : held_) {
    if (held->slot.name == slot) return held.get();
  }
  return nullptr;
}

// The layer has closed those of the members. What is left would keep the unplug waiting for ever,
// and nobody would tell its process.
Status Devices::refuse_contexts(const Held& held) {
  const RdmaPort port = rdma_port_of(held.link.name);
  if (port.device.empty()) return {};
  const auto contexts = verbs_contexts(port.device);
  if (!contexts) return contexts.error().with("device.let_go");
  if (*contexts == 0) return {};
  std::string who;
  if (const auto holders = list_verbs_holders({{verbs_file_of(port.device), port.device}})) {
    for (const Holder& h : *holders)
      who += fmt::format("{}{} (pid {})", who.empty() ? "" : ", ", h.name, h.pid);
  }
  return Error{
      Code::kPrecondition,
      fmt::format("device.let_go: slot {}: {} verbs context(s) of {} are open: {}", held.slot.name,
                  *contexts, port.device, who.empty() ? "by a process that cannot be found" : who)};
}

Status Devices::let_go(const std::vector<std::string>& slots) {
  for (const std::string& name : slots) {
    if (!find(name)) {
      return Error{Code::kNotFound, fmt::format("device.let_go: slot {}: not configured", name)};
    }
  }
  for (const std::string& name : slots) {
    const Held& held = *find(name);
    // Only what is complete is worth keeping: an interface that never got its addresses back would
    // replace them by none.
    if (held.link.index == 0 || !held.set_up) continue;
    if (Status free = refuse_contexts(held); !free) return free;
    auto saved = save_link(route_, held.link);
    if (!saved) return saved.error().with(fmt::format("device.let_go: slot {}", name));
    log_info(fmt::format("slot {}: {} let go, {} address(es), {} route(s) kept", name,
                         held.link.name, saved->addresses.size(), saved->routes.size()));
    saved_[name] = std::move(*saved);
  }
  if (events_.saved) events_.saved();
  return {};
}

bool Devices::answer(const Waiter& waiter) {
  Json out = Json::array();
  for (const std::string& name : waiter.slots) {
    const Held* held = find(name);
    if (!held) {
      waiter.reply(
          Error{Code::kNotFound, fmt::format("device.ready: slot {}: not configured", name)});
      return true;
    }
    if (!missing(*held).empty()) return false;
    out.push_back({{"slot", name},
                   {"netdev", held->link.name},
                   {"mac", held->link.mac},
                   {"link_up_ms", held->link_up_ms}});
  }
  waiter.reply(Json{{"slots", std::move(out)}});
  return true;
}

void Devices::ready(const SlotsParams& p, Reply reply) {
  Waiter waiter{p.slots, once(std::move(reply)), nullptr};
  // Something that was given up on is worth another try now that it is asked for.
  for (const std::string& name : p.slots) {
    Held* held = find(name);
    if (held && held->link.index != 0 && !held->set_up) {
      held->tries = 0;
      prepare(*held);
    }
  }
  if (answer(waiter)) return settle();
  waiter.timer =
      loop_.after(p.timeout, [this, slots = p.slots, late = waiter.reply, over = waiter.over, p] {
        *over = true;
        std::string why;
        for (const std::string& name : slots) {
          if (const Held* held = find(name); held && why.empty()) why = missing(*held);
        }
        late(Error{Code::kDeadline,
                   fmt::format("device.ready: not within {} ms: {}", p.timeout.count(), why)});
      });
  std::erase_if(waiters_, [](const Waiter& w) { return *w.over; });
  waiters_.push_back(std::move(waiter));
  poll_rdma();
}

Json Devices::task_facts() const {
  Json networks = Json::array(), ports = Json::array();
  bool soft_roce = false;
  Quiesce most = Quiesce::kImmovable;
  for (const auto& held : held_) {
    most = std::min(most, held->slot.quiesce);
    soft_roce = soft_roce || held->slot.soft_roce;
    if (held->wants_rdma() && held->link.index != 0) {
      const RdmaPort port = rdma_port_of(held->link.name);
      if (!port.device.empty()) ports.push_back(fmt::format("{}:{}", port.device, port.port));
    }
    for (const std::string& address : held->slot.addresses) {
      if (const auto cidr = parse_cidr(address)) networks.push_back(network_of(*cidr));
    }
  }
  return {{"network", std::move(networks)},
          {"quiesce", quiesce_name(most)},
          {"rdma", std::move(ports)},
          {"soft_roce", soft_roce}};
}

std::vector<std::string> Devices::immovable() const {
  std::vector<std::string> names;
  for (const auto& held : held_) {
    if (held->slot.quiesce == Quiesce::kImmovable) names.push_back(held->slot.name);
  }
  return names;
}

bool Devices::uses_tcp() const {
  return std::any_of(held_.begin(), held_.end(),
                     [](const auto& h) { return h->slot.quiesce == Quiesce::kTcp; });
}

bool Devices::Reach::covers(const Address& local, int interface) const {
  return std::find(addresses.begin(), addresses.end(), local) != addresses.end() ||
         (interface != 0 &&
          std::find(interfaces.begin(), interfaces.end(), interface) != interfaces.end());
}

Devices::Reach Devices::reach() {
  Reach reach;
  for (const auto& held : held_) {
    for (const std::string& address : held->slot.addresses) {
      if (const auto cidr = parse_cidr(address)) reach.addresses.push_back(cidr->address);
    }
    if (held->link.index == 0) continue;
    reach.interfaces.push_back(held->link.index);
    const auto addresses = addresses_of(route_, held->link.index);
    for (const Cidr& cidr : addresses ? *addresses : std::vector<Cidr>()) {
      reach.addresses.push_back(cidr.address);
    }
    const RdmaPort port = rdma_port_of(held->link.name);
    if (port.device.empty()) continue;
    const auto contexts = verbs_contexts(port.device);
    if (!contexts) log_warning(contexts.error().message);
    // Not known: looked for.
    if (!contexts || *contexts > 0) reach.verbs_files[verbs_file_of(port.device)] = port.device;
  }
  return reach;
}

Result<std::vector<std::string>> Devices::unacknowledged() {
  const auto sockets = list_tcp();
  if (!sockets) return sockets.error();
  const Reach where = reach();
  std::vector<std::string> out;
  for (const InetSocket& s : *sockets) {
    if (where.covers(s.local, s.interface) && !at_rest(s)) out.push_back(describe(s));
  }
  return out;
}

}  // namespace symvirt::guest
