// The slots of this VM and the interfaces that fill them: found, set up, watched, saved, given back
// what was theirs.
//
// Nothing here waits to be asked: an interface is set up when the kernel announces it
// (RTM_NEWLINK), before device.ready arrives, since training the link is the longest part of an
// application's pause (docs/link-up.md) and starts with "up".
//
// Threads: the event loop's.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "node-helper/guest/event_loop.h"
#include "node-helper/guest/link.h"
#include "node-helper/guest/params.h"
#include "node-helper/guest/peer.h"
#include "node-helper/guest/rdma.h"
#include "node-helper/guest/transactions.h"

namespace symvirt::guest {

class Devices : public DeviceState {
 public:
  struct Events {
    std::function<void()> saved;     // saved() has changed
    std::function<void()> returned;  // all_present() has become true
  };
  static Result<std::unique_ptr<Devices>> create(EventLoop& loop, Events events);

  // Replaces the slots. What was saved for a slot of the same name stays.
  void configure(const std::vector<Slot>& slots);
  void set_saved(std::map<std::string, SavedLink> saved) { saved_ = std::move(saved); }
  const std::map<std::string, SavedLink>& saved() const { return saved_; }

  Status let_go(const std::vector<std::string>& slots);
  void ready(const SlotsParams& p, Reply reply);

  // Empty when every slot has its device, set up and with carrier; otherwise what is missing where.
  std::string unhealthy() const;
  // {"network": ["10.78.0.0/24"], "quiesce": "verbs", "rdma": ["mlx5_0:1"], "soft_roce": false}:
  // what the plugin sets the tasks' environment from.
  Json task_facts() const;
  std::vector<std::string> immovable() const;  // names of slots

  bool uses_tcp() const override;
  bool all_present() const override { return unhealthy().empty(); }
  Result<std::vector<std::string>> unacknowledged() override;
  // Where a socket counts as "over a device": local addresses (those there now and those
  // configured) and indices. Files that who has a verbs context of a device has open, with the
  // device; only of devices of which there are contexts.
  struct Reach {
    std::vector<Address> addresses;
    std::vector<int> interfaces;
    std::map<std::string, std::string> verbs_files = {};
    bool covers(const Address& local, int interface) const;
  };
  Reach reach();

 private:
  struct Held {
    Slot slot;
    Link link;  // index 0: none
    bool set_up = false;
    bool announced = false;
    std::string problem;  // of the last try to set it up
    unsigned tries = 0;
    Handle retry;
    std::uint64_t appeared_ms = 0;
    std::uint64_t link_up_ms = 0;
    std::vector<Address> addresses;  // as they were set
    bool wants_rdma() const { return slot.soft_roce || slot.quiesce == Quiesce::kVerbs; }
  };
  struct Waiter {
    std::vector<std::string> slots;
    Reply reply;
    Handle timer;
    std::shared_ptr<bool> over = std::make_shared<bool>(false);  // answered by its timer
  };

  Devices(EventLoop& loop, Events events, Netlink route, Netlink listener);
  void on_netlink();
  void look_again();
  void link_seen(const Link& link);
  void link_gone(int index);
  Held* slot_for(const Link& link);
  void prepare(Held& held);
  Status try_prepare(Held& held);
  Status take_name(Held& held, const std::string& name);
  void evaluate(Held& held);
  void settle();
  std::string missing(const Held& held) const;
  Held* find(const std::string& slot);
  bool answer(const Waiter& waiter);
  Status refuse_contexts(const Held& held);
  void poll_rdma();

  EventLoop& loop_;
  Events events_;
  Netlink route_;
  Netlink listener_;
  Handle watch_;
  std::vector<std::unique_ptr<Held>> held_;
  std::map<std::string, SavedLink> saved_;
  std::vector<Waiter> waiters_;
  Handle rdma_poll_;
  bool was_present_ = false;
};

}  // namespace symvirt::guest
