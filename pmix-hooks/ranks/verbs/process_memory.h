// What of this process's memory is mapped, and what a registered region needs of it.
//
// A region stays good when the application unmaps its pages: the device has them pinned. UCX, for
// one, caches registrations, and gives those of freed memory back only later. The kernel registers
// no pages that are not mapped, so that such a region cannot simply be made again.
//
// System calls are made directly: libraries that cache registrations intercept mmap and munmap
// (UCX's ucm), and must hear nothing of ours.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace symvirt::hooks::verbs {

struct Mapping {
  std::uintptr_t begin = 0;
  std::uintptr_t end = 0;
  bool readable = false;
  bool writable = false;
};

// proc(5), /proc/PID/maps: ascending. A line that cannot be read is left out.
std::vector<Mapping> parse_mappings(const std::string& maps);
// Of this process; empty: not known.
std::vector<Mapping> mappings();

// Whether pages of the range are mapped so that they cannot be registered, for writing or reading.
// Pages that are not mapped do not matter.
bool is_protected(const std::vector<Mapping>& mappings, const void* begin, std::size_t length,
                  bool for_writing);

// For as long as it lives, anonymous pages are mapped where nothing is in the range: a region that
// is registered meanwhile has them, as it had those that were unmapped under it, and nobody else
// sees them. Other threads go on: whoever has something put there by the kernel gets another place;
// only a mapping forced (MAP_FIXED) over ours in this time would go with it.
class FilledHoles {
 public:
  FilledHoles(const void* begin, std::size_t length);
  FilledHoles(const FilledHoles&) = delete;
  FilledHoles& operator=(const FilledHoles&) = delete;
  ~FilledHoles();
  bool any() const { return !filled_.empty(); }

 private:
  std::vector<Mapping> filled_;
};

}  // namespace symvirt::hooks::verbs
