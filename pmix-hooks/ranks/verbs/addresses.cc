#include "pmix-hooks/ranks/verbs/addresses.h"

#include <algorithm>
#include <cstring>

#include "pmix-hooks/ranks/verbs/real_verbs.h"

namespace symvirt::hooks::verbs {
namespace {

constexpr std::size_t kMaxGids = 1024;

bool is_nothing(const union ibv_gid& gid) {
  return std::all_of(std::begin(gid.raw), std::end(gid.raw), [](auto byte) { return byte == 0; });
}

// IPv4 addresses, link-local ones and others are not to be exchanged for each other.
int kind_of(const union ibv_gid& gid) {
  static constexpr std::uint8_t kMapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
  if (std::memcmp(gid.raw, kMapped, sizeof kMapped) == 0) return 4;
  return gid.raw[0] == 0xfe && (gid.raw[1] & 0xc0) == 0x80 ? 1 : 6;
}

// query_gid_table needs one system call for the whole table; without it, entry by entry.
void read_gids(VContext& context, std::vector<PortState>& ports,
               const std::vector<ibv_port_attr>& attrs) {
  const RealVerbs& real = *real_verbs();
  if (real.query_gid_table != nullptr) {
    std::vector<ibv_gid_entry> table(kMaxGids);
    const ssize_t found =
        real.query_gid_table(context.real, table.data(), table.size(), 0, sizeof(ibv_gid_entry));
    for (ssize_t i = 0; i < found; ++i) {
      const ibv_gid_entry& e = table[static_cast<std::size_t>(i)];
      if (e.port_num >= 1 && e.port_num <= ports.size())
        ports[e.port_num - 1].gids.push_back({static_cast<int>(e.gid_index), e.gid, e.gid_type});
    }
    if (found >= 0) return;
  }
  for (std::size_t p = 0; p < ports.size(); ++p) {
    for (int i = 0; i < std::min(attrs[p].gid_tbl_len, 64); ++i) {
      GidEntry entry;
      entry.index = i;
      if (real.query_gid(context.real, static_cast<std::uint8_t>(p + 1), i, &entry.gid) == 0 &&
          !is_nothing(entry.gid))
        ports[p].gids.push_back(entry);
    }
  }
}

int matching_index(const std::vector<PortState>& from, const std::vector<PortState>& to, int port,
                   int index) {
  if (port < 1 || static_cast<std::size_t>(port) > std::min(from.size(), to.size())) return index;
  const auto& known = from[static_cast<std::size_t>(port) - 1].gids;
  const auto& now = to[static_cast<std::size_t>(port) - 1].gids;
  const auto asked = std::find_if(known.begin(), known.end(),
                                  [index](const GidEntry& e) { return e.index == index; });
  if (asked == known.end()) return index;
  const GidEntry* best = nullptr;
  int best_score = 0;
  for (const GidEntry& e : now) {
    if (e.type != asked->type) continue;
    int score = 1;
    if (kind_of(e.gid) == kind_of(asked->gid)) score += 2;
    if (e.index == index) score += 1;
    if (std::memcmp(e.gid.raw, asked->gid.raw, sizeof e.gid.raw) == 0) score += 8;
    if (score > best_score) best_score = score, best = &e;
  }
  return best != nullptr ? best->index : index;
}

template <typename F>
bool any_own_place(VContext& context, F test) {
  const Directory* const directory = context.layer->directory.get();
  if (directory == nullptr) return false;
  for (const PortState& port : visible_ports(context)) {
    const Directory::Place* place = directory->place(Address::by_lid(port.lid));
    if (place != nullptr && test(*place)) return true;
    for (const GidEntry& e : port.gids) {
      place = directory->place(Address::by_gid(to_gid(e.gid)));
      if (place != nullptr && test(*place)) return true;
    }
  }
  return false;
}

}  // namespace

std::vector<PortState> read_ports(VContext& context) {
  std::vector<PortState> ports(context.port_count);
  std::vector<ibv_port_attr> attrs(context.port_count);
  for (std::size_t p = 0; p < ports.size(); ++p) {
    if (real_verbs()->query_port(context.real, static_cast<std::uint8_t>(p + 1), &attrs[p]) != 0)
      return {};
    ports[p].lid = attrs[p].lid;
    ports[p].mtu = attrs[p].active_mtu;
    ports[p].link_layer = attrs[p].link_layer;
  }
  read_gids(context, ports, attrs);
  return ports;
}

const std::vector<PortState>& visible_ports(VContext& context) {
  if (!context.known.empty()) return context.known;
  if (context.now.empty() && context.real != nullptr) context.now = read_ports(context);
  return context.now;
}

const PortState* visible_port(VContext& context, int port) {
  if (context.known.empty()) return nullptr;
  if (port < 1 || static_cast<std::size_t>(port) > context.known.size()) return nullptr;
  return &context.known[static_cast<std::size_t>(port) - 1];
}

int real_gid_index(const VContext& context, int port, int index) {
  return matching_index(context.known, context.now, port, index);
}

int visible_gid_index(const VContext& context, int port, int index) {
  return matching_index(context.now, context.known, port, index);
}

ibv_ah_attr real_address(const VContext& context, const ibv_ah_attr& attr) {
  ibv_ah_attr out = attr;
  if (!context.known.empty() && attr.is_global != 0)
    out.grh.sgid_index =
        static_cast<std::uint8_t>(real_gid_index(context, attr.port_num, attr.grh.sgid_index));
  const Directory* const directory = context.layer->directory.get();
  if (directory == nullptr) return out;
  const Directory::Place* const place = directory->place(Address::of(attr));
  if (place == nullptr) return out;
  if (attr.is_global != 0) out.grh.dgid = from_gid(place->real_gid);
  if (attr.dlid != 0) out.dlid = place->real_lid;
  return out;
}

ibv_ah_attr visible_address(const VContext& context, const ibv_ah_attr& attr) {
  ibv_ah_attr out = attr;
  if (!context.known.empty() && attr.is_global != 0)
    out.grh.sgid_index =
        static_cast<std::uint8_t>(visible_gid_index(context, attr.port_num, attr.grh.sgid_index));
  const Directory* const directory = context.layer->directory.get();
  if (directory == nullptr) return out;
  for (const auto& [rank, statement] : directory->statements()) {
    for (const PortStatement& port : statement.ports) {
      bool here = attr.is_global == 0 && port.real_lid != 0 && port.real_lid == attr.dlid;
      for (const auto& [known, now] : port.gids) {
        if (attr.is_global == 0 || now != to_gid(attr.grh.dgid)) continue;
        out.grh.dgid = from_gid(known);
        here = true;
      }
      if (!here) continue;
      if (attr.dlid != 0) out.dlid = port.virtual_lid;
      return out;
    }
  }
  return out;
}

std::vector<PortState> ports_as_known(const Directory& directory, std::vector<PortState> ports) {
  const std::vector<PortState> now = ports;
  bool found = false;
  for (const auto& [process, statement] : directory.statements()) {
    for (const PortStatement& said : statement.ports) {
      for (std::size_t p = 0; p < now.size(); ++p) {
        bool here = now[p].lid != 0 && said.real_lid == now[p].lid;
        for (std::size_t i = 0; i < now[p].gids.size(); ++i) {
          for (const auto& [virtual_gid, real_gid] : said.gids) {
            if (real_gid != to_gid(now[p].gids[i].gid)) continue;
            ports[p].gids[i].gid = from_gid(virtual_gid);
            here = true;
          }
        }
        if (here && now[p].lid != 0) ports[p].lid = said.virtual_lid;
        found = found || here;
      }
    }
  }
  return found ? ports : std::vector<PortState>();
}

bool number_is_carried(VContext& context, std::uint32_t qp_number) {
  return any_own_place(
      context, [&](const Directory::Place& place) { return place.numbers.contains(qp_number); });
}

bool key_is_carried(VContext& context, std::uint32_t lkey, std::uint32_t rkey) {
  if (context.lkeys != nullptr && context.lkeys->contains(lkey)) return true;
  return any_own_place(context,
                       [&](const Directory::Place& place) { return place.rkeys.contains(rkey); });
}

}  // namespace symvirt::hooks::verbs
