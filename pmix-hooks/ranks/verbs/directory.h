// Where everybody is now: built from the statements of all processes of the job in a resume.
//
// Looked up by control calls, and (tables only) by the data path. Immutable once built.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "pmix-hooks/ranks/verbs/exchange.h"
#include "pmix-hooks/ranks/verbs/key_table.h"

namespace symvirt::hooks::verbs {

class Directory {
 public:
  explicit Directory(std::map<std::string, Statement> statements);
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;

  struct Found {
    const QpStatement* qp = nullptr;
    const PortStatement* port = nullptr;
    const KeyTable* rkeys = nullptr;  // of its process
    bool left = false;                // its device does not stay
  };
  // The queue pair the application calls `number` at `there` (virtual ones both). Where several
  // claim to be it, the one that talks to `mine`.
  std::optional<Found> find(const Address& there, std::uint32_t number, std::uint32_t mine) const;

  // Everything at an address, of all processes there.
  struct Place {
    Gid real_gid{};
    std::uint16_t real_lid = 0;
    std::uint32_t mtu = 0;
    bool left = false;  // somebody's device there does not stay
    KeyTable numbers;   // queue pairs: virtual to real
    KeyTable rkeys;
  };
  const Place* place(const Address& there) const;
  // The other way round, for senders: virtual number of the UD queue pair `number` at a real GID.
  std::optional<std::uint32_t> source(const Gid& real_gid, std::uint32_t number) const;
  std::optional<std::uint32_t> source(std::uint16_t real_lid, std::uint32_t number) const;
  // Without knowing where it is: if there is only one.
  std::optional<std::uint32_t> only_source(std::uint32_t number) const;

  const std::map<std::string, Statement>& statements() const { return statements_; }

 private:
  void add(const PortStatement& port, const Address& known, const Statement& statement,
           const KeyTable* rkeys);

  std::map<std::string, Statement> statements_;
  std::vector<std::unique_ptr<KeyTable>> process_rkeys_;
  std::map<Address, Place> places_;
  std::multimap<std::pair<Address, std::uint32_t>, Found> qps_;
  std::map<Gid, KeyTable> sources_;
  std::map<std::uint16_t, KeyTable> lid_sources_;
  std::map<std::uint32_t, std::optional<std::uint32_t>> only_sources_;
};

}  // namespace symvirt::hooks::verbs
