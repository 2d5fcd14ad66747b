#include "node-helper/guest/holders.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <climits>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include "common/log.h"
#include "node-helper/guest/sockets.h"

namespace symvirt::guest {
namespace {

namespace fs = std::filesystem;

// What holds the device, by the inode of its socket.
using Uses = std::multimap<std::uint32_t, std::string>;

void add_inet(Uses& uses, const Devices::Reach& reach,
              const Result<std::vector<InetSocket>>& sockets) {
  if (!sockets) return log_warning(sockets.error().message);
  for (const InetSocket& s : *sockets) {
    // Inode 0: closed by its process already, only finishing.
    if (s.inode != 0 && reach.covers(s.local, s.interface)) uses.emplace(s.inode, describe(s));
  }
}

void add_packet(Uses& uses, const Devices::Reach& reach) {
  const auto sockets = list_packet();
  if (!sockets) return log_warning(sockets.error().message);
  for (const PacketSocket& s : *sockets) {
    if (s.interface != 0 && reach.covers({}, s.interface))
      uses.emplace(s.inode, "packet socket (AF_PACKET)");
  }
}

std::string target_of(const fs::path& link) {
  char text[64];
  const ssize_t n = ::readlink(link.c_str(), text, sizeof text);
  return {text, n > 0 ? static_cast<std::size_t>(n) : 0};
}

std::uint32_t socket_inode(std::string_view target) {
  constexpr std::string_view kPrefix = "socket:[";
  if (!target.starts_with(kPrefix)) return 0;
  std::uint32_t inode = 0;
  std::from_chars(target.data() + kPrefix.size(), target.data() + target.size(), inode);
  return inode;
}

std::string first_line(const fs::path& path) {
  std::string line;
  std::getline(std::ifstream(path), line);
  return line;
}

std::string in_words(const std::vector<std::string>& whats) {
  if (whats.size() == 1) return whats[0];
  return fmt::format("{} and {} more", whats[0], whats.size() - 1);
}

// Network mounts that name one of our addresses as theirs (NFS writes clientaddr=), to give a
// socket without process a name.
std::string mount_over(const Devices::Reach& reach, const fs::path& proc) {
  std::ifstream mounts(proc / "self/mounts");
  for (std::string line; std::getline(mounts, line);) {
    std::istringstream words(line);
    std::string source, target, type, options;
    words >> source >> target >> type >> options;
    const std::size_t at = options.find("clientaddr=");
    if (at == std::string::npos) continue;
    const std::string text = options.substr(at + 11, options.find(',', at) - at - 11);
    const auto address = parse_address(text);
    if (address && reach.covers(*address, 0)) return fmt::format("{} mount {}", type, target);
  }
  return {};
}

struct Process {
  std::vector<std::string> whats;
  std::set<std::uint32_t> inodes;
  bool verbs = false;
};

using VerbsFiles = std::map<std::string, std::string>;

// A line of maps ends with the file's path.
bool maps_one_of(const fs::path& maps, const VerbsFiles& files, std::string& device) {
  std::ifstream lines(maps);
  for (std::string line; std::getline(lines, line);) {
    const std::size_t at = line.find("/dev/infiniband/");
    const auto file = at == std::string::npos ? files.end() : files.find(line.substr(at));
    if (file == files.end()) continue;
    device = file->second;
    return true;
  }
  return false;
}

Process look_at(const fs::path& path, const Uses& uses, const VerbsFiles& verbs_files) {
  Process process;
  std::string device;
  std::error_code gone;  // processes end while we look
  for (fs::directory_iterator fd(path / "fd", gone), last; !gone && fd != last;
       fd.increment(gone)) {
    const std::string target = target_of(fd->path());
    const std::uint32_t inode = socket_inode(target);
    const auto [from, to] = uses.equal_range(inode);
    for (auto use = from; inode != 0 && use != to; ++use) process.whats.push_back(use->second);
    if (inode != 0 && from != to) process.inodes.insert(inode);
    if (const auto file = verbs_files.find(target); file != verbs_files.end())
      device = file->second;
  }
  if (!verbs_files.empty() && device.empty()) maps_one_of(path / "maps", verbs_files, device);
  process.verbs = !device.empty();
  if (process.verbs) process.whats.push_back("a verbs context of " + device);
  return process;
}

// All but our own.
template <typename F>
void for_each_process(const fs::path& proc, F each) {
  std::error_code ignored;
  for (fs::directory_iterator it(proc, ignored), end; !ignored && it != end;
       it.increment(ignored)) {
    const std::string name = it->path().filename();
    std::int32_t pid = 0;
    const auto [rest, error] = std::from_chars(name.data(), name.data() + name.size(), pid);
    if (error != std::errc() || rest != name.data() + name.size() || pid == ::getpid()) continue;
    each(pid, it->path());
  }
}

}  // namespace

Result<std::vector<Holder>> list_holders(const Devices::Reach& reach,
                                         const std::set<std::int32_t>& members,
                                         const std::string& proc) {
  const auto tcp = list_tcp();
  if (!tcp) return tcp.error();
  Uses uses;
  add_inet(uses, reach, tcp);
  add_inet(uses, reach, list_udp());
  add_inet(uses, reach, list_raw());
  add_packet(uses, reach);
  std::vector<Holder> holders;
  if (uses.empty() && reach.verbs_files.empty()) return holders;
  std::set<std::uint32_t> explained, members_own;
  std::vector<std::set<std::uint32_t>> held;  // by holders[i]
  for_each_process(proc, [&](std::int32_t pid, const fs::path& path) {
    Process process = look_at(path, uses, reach.verbs_files);
    if (process.whats.empty()) return;
    const bool member = members.contains(pid);
    explained.insert(process.inodes.begin(), process.inodes.end());
    if (member) members_own.insert(process.inodes.begin(), process.inodes.end());
    holders.push_back(
        {pid, first_line(path / "comm"), in_words(process.whats), process.verbs, member});
    // A context of a parent's is not explained by it: the parent cannot close it for its child.
    held.push_back(process.verbs ? std::set<std::uint32_t>{0} : std::move(process.inodes));
  });
  for (std::size_t i = 0; i < holders.size(); ++i) {
    holders[i].member = holders[i].member || std::includes(members_own.begin(), members_own.end(),
                                                           held[i].begin(), held[i].end());
  }
  std::vector<std::string> unexplained;
  for (const auto& [inode, what] : uses) {
    if (!explained.contains(inode)) unexplained.push_back(what);
  }
  if (!unexplained.empty()) {
    const std::string mount = mount_over(reach, proc);
    holders.push_back({0, mount.empty() ? "kernel" : mount, in_words(unexplained), false, false});
  }
  return holders;
}

Result<std::vector<Holder>> list_verbs_holders(const std::map<std::string, std::string>& files,
                                               const std::string& proc) {
  std::vector<Holder> holders;
  for_each_process(proc, [&](std::int32_t pid, const fs::path& path) {
    const Process process = look_at(path, {}, files);
    if (!process.whats.empty())
      holders.push_back({pid, first_line(path / "comm"), in_words(process.whats), true, false});
  });
  return holders;
}

std::vector<std::string> refusals(const std::vector<Holder>& holders,
                                  const std::vector<std::string>& tolerated) {
  std::vector<std::string> list;
  for (const Holder& h : holders) {
    const bool may = std::find(tolerated.begin(), tolerated.end(), h.name) != tolerated.end();
    if (h.member || (may && !h.verbs)) continue;
    const std::string who = h.pid == 0 ? h.name : fmt::format("{} (pid {})", h.name, h.pid);
    list.push_back(fmt::format(
        "{} holds {} over the passthrough device and takes no part: {}", who, h.what,
        h.verbs ? "start it with srun --mpi=pmix in a --symvirt job, or end it"
                : "start ranks with srun --mpi=pmix, end it, or name it in guestd.toml, "
                  "tolerated_holders"));
  }
  return list;
}

Json to_json(const Holder& holder) {
  return {
      {"pid", holder.pid}, {"name", holder.name}, {"what", holder.what}, {"member", holder.member}};
}

}  // namespace symvirt::guest
