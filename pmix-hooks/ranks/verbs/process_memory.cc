#include "pmix-hooks/ranks/verbs/process_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <string_view>

namespace symvirt::hooks::verbs {
namespace {

constexpr std::uintptr_t kPage = 4096;  // x86-64; huge pages are multiples

std::string read_maps() {
  std::string text;
  const long fd = syscall(SYS_openat, AT_FDCWD, "/proc/self/maps", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return text;
  constexpr std::size_t kAtATime = 1 << 16;
  while (true) {
    const std::size_t size = text.size();
    text.resize(size + kAtATime);
    const long got = syscall(SYS_read, fd, text.data() + size, kAtATime);
    text.resize(size + static_cast<std::size_t>(std::max(got, 0L)));
    if (got <= 0) break;
  }
  syscall(SYS_close, fd);
  return text;
}

// "7f0c1000-7f0c3000 rw-p ..."
bool parse_line(std::string_view line, Mapping& out) {
  const char* const end = line.data() + line.size();
  const auto begins = std::from_chars(line.data(), end, out.begin, 16);
  if (begins.ec != std::errc() || begins.ptr == end || *begins.ptr != '-') return false;
  const auto ends = std::from_chars(begins.ptr + 1, end, out.end, 16);
  if (ends.ec != std::errc() || end - ends.ptr < 3 || *ends.ptr != ' ') return false;
  out.readable = ends.ptr[1] == 'r';
  out.writable = ends.ptr[2] == 'w';
  return out.begin < out.end;
}

struct Range {
  std::uintptr_t begin;
  std::uintptr_t end;
};

// All pages of which a byte is in it.
Range pages_of(const void* begin, std::size_t length) {
  const auto first = reinterpret_cast<std::uintptr_t>(begin);
  return {first & ~(kPage - 1), (first + length + kPage - 1) & ~(kPage - 1)};
}

std::vector<Mapping>::const_iterator first_after(const std::vector<Mapping>& mappings,
                                                 std::uintptr_t address) {
  return std::partition_point(mappings.begin(), mappings.end(),
                              [address](const Mapping& m) { return m.end <= address; });
}

// At this place and no other, or not at all.
bool map_anonymous(std::uintptr_t begin, std::uintptr_t end) {
  const long at = syscall(SYS_mmap, begin, end - begin, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
  if (at == static_cast<long>(begin)) return true;
  if (at != -1) syscall(SYS_munmap, at, end - begin);  // before 4.17 it is a mere wish
  return false;
}

}  // namespace

std::vector<Mapping> parse_mappings(const std::string& maps) {
  std::vector<Mapping> all;
  std::string_view rest = maps;
  while (!rest.empty()) {
    const std::size_t end = std::min(rest.find('\n'), rest.size());
    Mapping mapping;
    if (parse_line(rest.substr(0, end), mapping)) all.push_back(mapping);
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  return all;
}

std::vector<Mapping> mappings() { return parse_mappings(read_maps()); }

bool is_protected(const std::vector<Mapping>& mappings, const void* begin, std::size_t length,
                  bool for_writing) {
  const Range range = pages_of(begin, length);
  for (auto m = first_after(mappings, range.begin); m != mappings.end() && m->begin < range.end;
       ++m) {
    if (for_writing ? !m->writable : !m->readable) return true;
  }
  return false;
}

FilledHoles::FilledHoles(const void* begin, std::size_t length) {
  const Range range = pages_of(begin, length);
  const std::vector<Mapping> there = mappings();
  if (there.empty()) return;
  std::vector<Mapping> holes;
  std::uintptr_t from = range.begin;
  for (auto m = first_after(there, range.begin); m != there.end() && m->begin < range.end; ++m) {
    if (from < m->begin) holes.push_back({from, m->begin});
    from = m->end;
  }
  if (from < range.end) holes.push_back({from, range.end});
  filled_.reserve(holes.size());
  for (const Mapping& hole : holes) {
    if (map_anonymous(hole.begin, hole.end)) filled_.push_back(hole);
  }
}

FilledHoles::~FilledHoles() {
  for (const Mapping& hole : filled_) syscall(SYS_munmap, hole.begin, hole.end - hole.begin);
}

}  // namespace symvirt::hooks::verbs
