// rpc_call HOST PORT METHOD PARAMS_JSON [SECONDS]: one call, for tests and for finding faults.
// Progress goes to stderr. Not installed: symvirtctl is what an operator uses.
#include <fmt/format.h>

#include <cstdlib>

#include "node-helper/protocol/rpc.h"

int main(int argc, char** argv) {
  using namespace symvirt;
  if (argc < 5) {
    fmt::print(stderr, "usage: rpc_call HOST PORT METHOD PARAMS_JSON [SECONDS]\n");
    return 2;
  }
  nlohmann::json params = nlohmann::json::parse(argv[4], nullptr, false);
  if (!params.is_object()) {
    fmt::print(stderr, "rpc_call: PARAMS_JSON must be an object\n");
    return 2;
  }
  // Another munged, with another key, for tests of refusal.
  const char* socket = std::getenv("SYMVIRT_MUNGE_SOCKET");
  MungeCredentials credentials(socket == nullptr ? "" : socket);
  RpcClient client({.host = argv[1], .address = "", .port = std::atoi(argv[2])}, credentials);
  const auto timeout = std::chrono::milliseconds(argc > 5 ? 1000L * std::atoi(argv[5]) : 30'000L);
  auto result = client.call(argv[3], params, Deadline::after(timeout),
                            [](const nlohmann::json& p) { fmt::print(stderr, "{}\n", p.dump()); });
  if (!result) {
    fmt::print(stderr, "{}: {}\n", code_name(result.error().code), result.error().message);
    return 1;
  }
  fmt::print("{}\n", result->dump());
  return 0;
}
