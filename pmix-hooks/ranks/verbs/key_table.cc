#include "pmix-hooks/ranks/verbs/key_table.h"

#include <bit>
#include <utility>

namespace symvirt::hooks::verbs {

KeyTable::KeyTable(std::size_t expected) { resize(std::bit_ceil(expected * 2 + 4)); }

void KeyTable::put(std::uint32_t from, std::uint32_t to) {
  if ((size_ + 1) * 2 > mask_ + 1) {
    const auto old = std::move(cells_);
    const std::uint64_t count = mask_ + 1;
    resize(count * 2);
    for (std::uint64_t i = 0; i < count; ++i) {
      if (old[i].used) put(old[i].from, old[i].to);
    }
  }
  auto& c = const_cast<Cell&>(cell(from));
  if (!c.used) ++size_;
  c = {from, to, true};
}

void KeyTable::resize(std::uint64_t cells) {
  cells_ = std::make_unique<Cell[]>(cells);
  mask_ = cells - 1;
  shift_ = 64 - std::countr_zero(cells);
  size_ = 0;
}

}  // namespace symvirt::hooks::verbs
