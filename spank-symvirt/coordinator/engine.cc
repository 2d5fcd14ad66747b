#include "spank-symvirt/coordinator/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "common/log.h"
#include "spank-symvirt/coordinator/json_access.h"

namespace symvirt {
namespace {

constexpr std::size_t kKeptTransactions = 1000;
constexpr std::int64_t kRenewalsALease = 4;

std::string key_of(const Event& e) {
  return fmt::format("{}/{}/{}/{}/{}", e.tx, name_of(e.phase), e.round, e.vm, e.tries);
}
std::string key_of(const Action& a) {
  return fmt::format("{}/{}/{}/{}/{}", a.tx, name_of(a.phase), a.round, a.vm, a.tries);
}

bool holds_ranks(const Transaction& tx) {
  return !tx.ended() &&
         std::any_of(tx.vms.begin(), tx.vms.end(), [](const VmPart& v) { return v.rest_begun; }) &&
         tx.phase != Phase::kResume && tx.phase != Phase::kRelease;
}

}  // namespace

Engine::Engine(Parts parts) : p_(std::move(parts)) {}

Status Engine::recover() {
  std::size_t unreadable = 0;
  Status replayed = p_.journal->replay([&](const nlohmann::json& record) {
    if (text_of(record, "type") == "vm_forgotten") {
      vms_.erase(text_of(record, "vm"));
      return;
    }
    Result<Event> event = event_from_json(record);
    if (!event) {
      ++unreadable;
      log_error(event.error().with("journal: record set aside").message);
      return;
    }
    std::optional<Transaction> tx;
    if (auto it = transactions_.find(event->tx); it != transactions_.end())
      tx = std::move(it->second);
    symvirt::apply(tx, *event);
    last_id_ = std::max(last_id_, event->tx);
    if (!tx) return;
    if (tx->ended()) {
      if (live_.erase(tx->id) > 0) fold_end(*tx);
    } else {
      live_.insert(tx->id);
    }
    transactions_[event->tx] = std::move(*tx);
  });
  if (!replayed) return replayed;
  Result<std::int64_t> generation = p_.journal->next_generation();
  if (!generation) return generation.error();
  generation_ = *generation;
  drop_old();
  log_info(
      fmt::format("journal: {} transactions, {} under way, {} unreadable records; generation {}",
                  transactions_.size(), live_.size(), unreadable, generation_));
  const std::set<std::int64_t> live = live_;
  for (std::int64_t id : live) {
    Event event;
    event.type = EventType::kRecovered;
    event.tx = id;
    event.time_ns = p_.clock->now_ns();
    if (Status status = commit(event); !status) return status;
  }
  return {};
}

Status Engine::commit(const Event& event) {
  if (Status status = p_.journal->append(to_json(event)); !status)
    return status.error().with("journal");
  std::optional<Transaction> tx;
  if (auto it = transactions_.find(event.tx); it != transactions_.end()) tx = std::move(it->second);
  symvirt::apply(tx, event);
  if (!tx) return {};
  if (!tx->ended()) {
    live_.insert(tx->id);
  } else if (live_.erase(tx->id) > 0) {
    fold_end(*tx);
    renewed_ns_.erase(tx->id);
    forget_actions(tx->id);
    if (p_.forget) p_.forget(tx->id);
  }
  const Transaction& kept = transactions_[event.tx] = std::move(*tx);
  if (p_.observe) p_.observe(event, kept);
  if (kept.ended()) drop_old();
  return {};
}

void Engine::fold_end(const Transaction& tx) {
  for (const VmPart& vm : tx.vms) {
    VmRecord record{vm.vm, vm.vm_class, "", 0, tx.ended_ns};
    if (vm.at == Where::kTarget) {
      record.host = vm.to;
      record.launcher_job = vm.to_job;
    } else if (vm.at == Where::kSource) {
      record.host = vm.from;
      record.launcher_job = vm.from_job;
    }
    vms_[vm.vm] = record;
  }
}

// Some are never answered: a wait that was given up, an aborted migration's second key.
void Engine::forget_actions(std::int64_t tx) {
  const std::string prefix = std::to_string(tx) + "/";
  auto it = in_flight_.lower_bound(prefix);
  while (it != in_flight_.end() && it->compare(0, prefix.size(), prefix) == 0)
    it = in_flight_.erase(it);
}

void Engine::drop_old() {
  for (auto it = transactions_.begin();
       it != transactions_.end() && transactions_.size() > kKeptTransactions;) {
    it = it->second.ended() ? transactions_.erase(it) : std::next(it);
  }
}

Result<std::int64_t> Engine::begin(Transaction tx) {
  for (const VmPart& vm : tx.vms) {
    if (const Transaction* other = live_transaction_of(vm.vm)) {
      return Error{Code::kPrecondition,
                   fmt::format("{} is in transaction {} ({}, {}); wait for it or cancel it", vm.vm,
                               other->id, name_of(other->kind), name_of(other->phase))};
    }
  }
  Event event;
  event.type = EventType::kBegun;
  tx.id = event.tx = ++last_id_;
  event.time_ns = p_.clock->now_ns();
  event.begun = std::move(tx);
  if (Status status = commit(event); !status) return status.error();
  if (p_.wake) p_.wake();
  return event.tx;
}

Status Engine::cancel(std::int64_t id) {
  auto it = transactions_.find(id);
  if (it == transactions_.end())
    return Error{Code::kNotFound,
                 fmt::format("transaction {}: not known; see symvirtctl list", id)};
  if (it->second.ended())
    return Error{Code::kPrecondition, fmt::format("transaction {} has ended", id)};
  if (it->second.kind == TxKind::kStop)
    return Error{Code::kPrecondition,
                 fmt::format("transaction {}: a stop cannot be cancelled", id)};
  Event event;
  event.type = EventType::kCancel;
  event.tx = id;
  event.time_ns = p_.clock->now_ns();
  if (p_.forget) p_.forget(id);
  Status status = commit(event);
  if (p_.wake) p_.wake();
  return status;
}

Status Engine::forget_vm(const std::string& vm, const std::string& why) {
  log_warning(fmt::format("{}: {}", vm, why));
  if (Status status = p_.journal->append({{"type", "vm_forgotten"}, {"vm", vm}, {"why", why}});
      !status)
    return status;
  vms_.erase(vm);
  return {};
}

void Engine::post(Event event) {
  {
    std::lock_guard lock(mutex_);
    posted_.push_back(std::move(event));
  }
  if (p_.wake) p_.wake();
}

Status Engine::turn() {
  for (;;) {
    std::deque<Event> events;
    {
      std::lock_guard lock(mutex_);
      events.swap(posted_);
    }
    if (events.empty()) break;
    for (const Event& event : events) {
      in_flight_.erase(key_of(event));
      if (Status status = commit(event); !status) return status;
    }
  }
  const std::int64_t now = p_.clock->now_ns();
  const std::set<std::int64_t> live = live_;
  for (std::int64_t id : live) {
    for (const Event& event : overdue(transactions_.at(id), now)) {
      if (Status status = commit(event); !status) return status;
      if (p_.forget) p_.forget(id);
    }
    if (live_.count(id) > 0) start_due(transactions_.at(id), now);
  }
  for (std::int64_t id : live_) {
    const Transaction& tx = transactions_.at(id);
    if (!p_.renew || !holds_ranks(tx)) continue;
    // Each has leases of its own: two evacuations at a time must not take each other's turn.
    const auto last = renewed_ns_.find(id);
    const std::int64_t every = tx.policy.lease_ms * 1'000'000 / kRenewalsALease;
    if (last != renewed_ns_.end() && now - last->second < every) continue;
    p_.renew(tx, generation_);
    renewed_ns_[id] = now;
  }
  return {};
}

void Engine::start_due(const Transaction& tx, std::int64_t now) {
  for (const Action& action : next_actions(tx)) {
    if (action.not_before_ns > now) continue;
    // Cancelling a migration is a second action beside the one that waits for it.
    const std::string key = key_of(action) + (action.abort ? "/abort" : "");
    if (!in_flight_.insert(key).second) continue;
    p_.start(tx, action, generation_);
  }
}

std::int64_t Engine::next_wakeup_ns() const {
  std::int64_t next = std::numeric_limits<std::int64_t>::max();
  const std::int64_t now = p_.clock->now_ns();
  for (std::int64_t id : live_) {
    const Transaction& tx = transactions_.at(id);
    for (const Action& action : next_actions(tx)) {
      if (action.not_before_ns > now) next = std::min(next, action.not_before_ns);
    }
    // Overdue waits and lease renewals are looked at now and then.
    next = std::min(next, now + 1'000'000'000);
  }
  return next;
}

const Transaction* Engine::live_transaction_of(const std::string& vm) const {
  for (std::int64_t id : live_) {
    const Transaction& tx = transactions_.at(id);
    if (tx.find(vm) != nullptr) return &tx;
  }
  return nullptr;
}

}  // namespace symvirt
