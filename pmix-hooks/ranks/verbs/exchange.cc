#include "pmix-hooks/ranks/verbs/exchange.h"

#include <charconv>
#include <cstring>
#include <optional>

namespace symvirt::hooks::verbs {
namespace {

constexpr std::size_t kMaxLine = 256;
constexpr std::size_t kMaxPorts = 1024;
constexpr std::size_t kMaxQps = 1u << 18;
constexpr std::size_t kMaxKeys = 1u << 20;
constexpr std::size_t kMaxGids = 1u << 14;
// What a Directory makes of it: each queue pair and each key is listed at every address of theirs.
constexpr std::size_t kMaxListed = 1u << 23;

class Writer {
 public:
  Writer& tag(char c) {
    if (!text.empty()) text += '\n';
    text += c;
    return *this;
  }
  Writer& number(std::uint64_t value) {
    char digits[17];
    const auto end = std::to_chars(digits, digits + sizeof digits, value, 16).ptr;
    text += ' ';
    text.append(digits, end);
    return *this;
  }
  Writer& gid(const Gid& value) {
    static constexpr char kDigits[] = "0123456789abcdef";
    text += ' ';
    for (const std::uint8_t byte : value) {
      text += kDigits[byte >> 4];
      text += kDigits[byte & 15];
    }
    return *this;
  }
  Writer& none() {
    text += " -";
    return *this;
  }
  std::string text;
};

void write_qp(Writer& out, const QpStatement& qp) {
  out.tag('Q').number(qp.type).number(qp.virtual_number).number(qp.real_number).number(qp.flags);
  out.number(qp.sent).number(qp.received).number(qp.peer.lid);
  if (qp.peer.has_gid) {
    out.gid(qp.peer.gid);
  } else {
    out.none();
  }
  out.number(qp.peer_number);
}

// The fields of one line, in order; false once something did not fit, and ever after.
class Fields {
 public:
  explicit Fields(std::string_view line) : rest_(line) {}
  template <typename T>
  bool number(T& out) {
    const std::string_view field = next();
    std::uint64_t value = 0;
    const auto [end, error] = std::from_chars(field.data(), field.data() + field.size(), value, 16);
    ok_ = ok_ && !field.empty() && error == std::errc() && end == field.data() + field.size() &&
          value <= std::uint64_t{static_cast<T>(~T{})};
    if (ok_) out = static_cast<T>(value);
    return ok_;
  }
  bool gid(Gid& out) { return parse_gid(next(), out); }
  bool optional_gid(bool& there, Gid& out) {
    const std::string_view field = next();
    there = field != "-";
    return there ? parse_gid(field, out) : ok_;
  }
  bool end() { return ok_ = ok_ && rest_.empty(); }

 private:
  std::string_view next() {
    const std::size_t blank = rest_.find(' ');
    const std::string_view field = rest_.substr(0, blank);
    rest_ = blank == std::string_view::npos ? std::string_view() : rest_.substr(blank + 1);
    return field;
  }
  bool parse_gid(std::string_view field, Gid& out) {
    ok_ = ok_ && field.size() == 32;
    for (std::size_t i = 0; ok_ && i < 16; ++i) {
      const char* const at = field.data() + i * 2;
      const auto [end, error] = std::from_chars(at, at + 2, out[i], 16);
      ok_ = error == std::errc() && end == at + 2;
    }
    return ok_;
  }
  std::string_view rest_;
  bool ok_ = true;
};

struct Reader {
  Statement out;
  std::size_t gids = 0;
  std::size_t qps = 0;

  bool line(std::string_view text) {
    if (text.size() < 3 || text[1] != ' ') return false;
    Fields fields(text.substr(2));
    switch (text[0]) {
      case 'P':
        return port(fields);
      case 'G':
        return gid(fields);
      case 'Q':
        return qp(fields);
      case 'K':
        return key(fields);
      default:
        return false;
    }
  }

  bool port(Fields& f) {
    PortStatement p;
    if (out.ports.size() >= kMaxPorts) return false;
    if (!(f.number(p.virtual_lid) && f.number(p.real_lid) && f.number(p.mtu) && f.end()))
      return false;
    out.ports.push_back(std::move(p));
    return true;
  }
  bool gid(Fields& f) {
    std::pair<Gid, Gid> g;
    if (out.ports.empty() || ++gids > kMaxGids) return false;
    if (!(f.gid(g.first) && f.gid(g.second) && f.end())) return false;
    out.ports.back().gids.push_back(g);
    return true;
  }
  bool qp(Fields& f) {
    QpStatement q;
    if (out.ports.empty() || ++qps > kMaxQps) return false;
    if (!(f.number(q.type) && f.number(q.virtual_number) && f.number(q.real_number) &&
          f.number(q.flags) && f.number(q.sent) && f.number(q.received) && f.number(q.peer.lid) &&
          f.optional_gid(q.peer.has_gid, q.peer.gid) && f.number(q.peer_number) && f.end()))
      return false;
    if (q.virtual_number >= 1u << 24 || q.real_number >= 1u << 24 || q.peer_number >= 1u << 24)
      return false;
    out.ports.back().qps.push_back(q);
    return true;
  }
  bool listed_too_often() const {
    std::size_t listed = (out.ports.size() + gids) * out.keys.size();
    for (const PortStatement& p : out.ports) listed += (p.gids.size() + 1) * p.qps.size();
    return listed > kMaxListed;
  }
  bool key(Fields& f) {
    std::pair<std::uint32_t, std::uint32_t> k;
    if (out.keys.size() >= kMaxKeys) return false;
    if (!(f.number(k.first) && f.number(k.second) && f.end())) return false;
    out.keys.push_back(k);
    return true;
  }
};

bool head(std::string_view line, Statement& out) {
  if (!line.starts_with("V1 ")) return false;
  Fields fields(line.substr(3));
  std::uint8_t ok = 0;
  std::uint8_t stays = 0;
  if (!(fields.number(out.stage) && fields.number(ok) && fields.number(stays) && fields.end()))
    return false;
  out.ok = ok == 1;
  out.stays = stays == 1;
  return ok <= 1 && stays <= 1;
}

}  // namespace

Gid to_gid(const union ibv_gid& gid) {
  Gid out;
  std::memcpy(out.data(), gid.raw, out.size());
  return out;
}

union ibv_gid from_gid(const Gid& gid) {
  union ibv_gid out;
  std::memcpy(out.raw, gid.data(), gid.size());
  return out;
}

Address Address::of(const ibv_ah_attr& attr) {
  // With a GRH the GID says it all, and the LID may be that of a router (InfiniBand) or nothing
  // (RoCE).
  if (attr.is_global != 0) return by_gid(to_gid(attr.grh.dgid));
  return by_lid(attr.dlid);
}

std::string encode(const Statement& statement) {
  Writer out;
  out.text = "V1";
  out.number(statement.stage).number(statement.ok ? 1 : 0).number(statement.stays ? 1 : 0);
  for (const PortStatement& port : statement.ports) {
    out.tag('P').number(port.virtual_lid).number(port.real_lid).number(port.mtu);
    for (const auto& [known, now] : port.gids) out.tag('G').gid(known).gid(now);
    for (const QpStatement& qp : port.qps) write_qp(out, qp);
  }
  for (const auto& [known, now] : statement.keys) out.tag('K').number(known).number(now);
  return out.text;
}

Result<Statement> parse_statement(std::string_view text) {
  Reader reader;
  std::size_t number = 0;
  while (number == 0 || !text.empty()) {
    const std::size_t end = text.find('\n');
    const std::string_view line = text.substr(0, end);
    text = end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
    const bool good =
        line.size() <= kMaxLine && (number == 0 ? head(line, reader.out) : reader.line(line));
    if (!good)
      return Error{Code::kInvalidArgument,
                   "statement of a peer refused: line " + std::to_string(number + 1)};
    ++number;
  }
  if (reader.listed_too_often())
    return Error{Code::kInvalidArgument,
                 "statement of a peer refused: too many queue pairs or keys at too many addresses"};
  return std::move(reader.out);
}

}  // namespace symvirt::hooks::verbs
