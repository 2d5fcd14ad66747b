// Numbers that are carried over a move: what the application (or a peer) calls by one number is
// another on the device. Memory keys and queue pair numbers. Only carried ones are in a table; all
// others are what they seem: new objects are made again until their number is no carried one.
//
// Read by the data path without a lock: built completely before it is published, never changed, and
// freed only while the data path's gate is closed.
#pragma once

#include <cstdint>
#include <memory>

namespace symvirt::hooks::verbs {

class KeyTable {
 public:
  explicit KeyTable(std::size_t expected = 0);
  void put(std::uint32_t from, std::uint32_t to);
  std::size_t size() const { return size_; }
  bool contains(std::uint32_t from) const { return cell(from).used; }
  // Itself when it is not carried.
  std::uint32_t operator[](std::uint32_t from) const {
    const Cell& c = cell(from);
    return c.used ? c.to : from;
  }

 private:
  struct Cell {
    std::uint32_t from = 0;
    std::uint32_t to = 0;
    bool used = false;
  };
  // Multiplicative hash, linear probing, at most half full.
  const Cell& cell(std::uint32_t from) const {
    std::uint64_t i = from * 0x9e3779b97f4a7c15u >> shift_;
    while (cells_[i].used && cells_[i].from != from) i = (i + 1) & mask_;
    return cells_[i];
  }
  void resize(std::uint64_t cells);

  std::unique_ptr<Cell[]> cells_;
  std::uint64_t mask_ = 0;
  int shift_ = 0;
  std::size_t size_ = 0;
};

}  // namespace symvirt::hooks::verbs
