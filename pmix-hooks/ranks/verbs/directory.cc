#include "pmix-hooks/ranks/verbs/directory.h"

namespace symvirt::hooks::verbs {

Directory::Directory(std::map<std::string, Statement> statements)
    : statements_(std::move(statements)) {
  for (const auto& [rank, statement] : statements_) {
    auto rkeys = std::make_unique<KeyTable>(statement.keys.size());
    for (const auto& [known, now] : statement.keys) rkeys->put(known, now);
    for (const PortStatement& port : statement.ports) {
      add(port, Address::by_lid(port.virtual_lid), statement, rkeys.get());
      for (const auto& [known, now] : port.gids) {
        add(port, Address::by_gid(known), statement, rkeys.get());
        places_[Address::by_gid(known)].real_gid = now;
      }
      for (const QpStatement& qp : port.qps) {
        if (qp.type != IBV_QPT_UD) continue;
        for (const auto& [known, now] : port.gids)
          sources_[now].put(qp.real_number, qp.virtual_number);
        if (port.real_lid != 0) lid_sources_[port.real_lid].put(qp.real_number, qp.virtual_number);
        const auto [it, fresh] = only_sources_.try_emplace(qp.real_number, qp.virtual_number);
        if (!fresh && it->second != qp.virtual_number) it->second.reset();
      }
    }
    process_rkeys_.push_back(std::move(rkeys));
  }
}

void Directory::add(const PortStatement& port, const Address& known, const Statement& statement,
                    const KeyTable* rkeys) {
  // RoCE ports have no LID: zero is nobody's address.
  if (!known.has_gid && known.lid == 0) return;
  Place& place = places_[known];
  place.real_lid = port.real_lid;
  place.mtu = port.mtu;
  place.left = place.left || !statement.stays;
  for (const QpStatement& qp : port.qps) {
    place.numbers.put(qp.virtual_number, qp.real_number);
    qps_.insert({{known, qp.virtual_number}, {&qp, &port, rkeys, !statement.stays}});
  }
  for (const auto& [from, to] : statement.keys) place.rkeys.put(from, to);
}

std::optional<Directory::Found> Directory::find(const Address& there, std::uint32_t number,
                                                std::uint32_t mine) const {
  const auto [begin, end] = qps_.equal_range({there, number});
  if (begin == end) return std::nullopt;
  auto best = begin;
  for (auto it = begin; it != end; ++it) {
    if (it->second.qp->peer_number == mine) best = it;
  }
  return best->second;
}

const Directory::Place* Directory::place(const Address& there) const {
  const auto it = places_.find(there);
  return it == places_.end() ? nullptr : &it->second;
}

std::optional<std::uint32_t> Directory::source(const Gid& real_gid, std::uint32_t number) const {
  const auto it = sources_.find(real_gid);
  if (it == sources_.end() || !it->second.contains(number)) return std::nullopt;
  return it->second[number];
}

std::optional<std::uint32_t> Directory::source(std::uint16_t real_lid, std::uint32_t number) const {
  const auto it = lid_sources_.find(real_lid);
  if (it == lid_sources_.end() || !it->second.contains(number)) return std::nullopt;
  return it->second[number];
}

std::optional<std::uint32_t> Directory::only_source(std::uint32_t number) const {
  const auto it = only_sources_.find(number);
  return it == only_sources_.end() ? std::nullopt : it->second;
}

}  // namespace symvirt::hooks::verbs
