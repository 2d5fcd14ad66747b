// Pages that a test may unmap without somebody else's taking their place: the kernel gives out
// addresses from the top down, and these are far below.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>

namespace symvirt::hooks::verbs::testing {

// Null: not possible.
inline char* map_distant(std::size_t length) {
  constexpr std::size_t kFar = std::size_t{1} << 32;
  void* const near =
      mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (near == MAP_FAILED) return nullptr;
  munmap(near, length);
  for (std::size_t i = 1; i <= 16; ++i) {
    void* const wanted = static_cast<char*>(near) - i * kFar;
    void* const got = mmap(wanted, length, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (got == wanted) return static_cast<char*>(got);
    if (got != MAP_FAILED) munmap(got, length);
  }
  return nullptr;
}

}  // namespace symvirt::hooks::verbs::testing
