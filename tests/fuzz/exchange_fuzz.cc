// What the processes of a job tell each other about their verbs: read, and made into the directory
// that addresses and keys are looked up in. Statements of several processes are separated by an
// empty line.
#include <cstdlib>

#include "pmix-hooks/ranks/verbs/directory.h"
#include "pmix-hooks/ranks/verbs/exchange.h"

namespace {

using namespace symvirt::hooks::verbs;

void look_up(const Directory& directory) {
  for (const auto& [rank, statement] : directory.statements()) {
    for (const PortStatement& port : statement.ports) {
      for (const QpStatement& qp : port.qps) {
        (void)directory.find(qp.peer, qp.peer_number, qp.virtual_number);
        (void)directory.source(port.real_lid, qp.real_number);
        (void)directory.only_source(qp.real_number);
        for (const auto& [known, now] : port.gids) {
          const auto found =
              directory.find(Address::by_gid(known), qp.virtual_number, qp.peer_number);
          if (!found || found->qp->virtual_number != qp.virtual_number) std::abort();
          (void)directory.source(now, qp.real_number);
        }
      }
      for (const auto& [known, now] : port.gids) {
        const auto* const place = directory.place(Address::by_gid(known));
        if (place == nullptr) std::abort();
        for (const auto& [from, to] : statement.keys) {
          if (!place->rkeys.contains(from)) std::abort();
        }
      }
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  std::string_view text(reinterpret_cast<const char*>(data), size);
  std::map<std::string, Statement> statements;
  while (true) {
    const std::size_t end = text.find("\n\n");
    if (auto statement = parse_statement(text.substr(0, end))) {
      const auto again = parse_statement(encode(*statement));
      if (!again || !(*again == *statement)) std::abort();
      statements[std::to_string(statements.size())] = std::move(*statement);
    }
    if (end == std::string_view::npos) break;
    text.remove_prefix(end + 2);
  }
  look_up(Directory(std::move(statements)));
  return 0;
}
