// symvirtctl's commands: from options to calls, text and an exit code.
#pragma once

#include <functional>
#include <iosfwd>

#include "node-helper/protocol/rpc.h"
#include "spank-symvirt/cli/exit_codes.h"
#include "spank-symvirt/cli/options.h"
#include "spank-symvirt/cli/server_address.h"

namespace symvirt {

struct Console {
  std::ostream& out;
  std::ostream& err;
  std::size_t terminal_width = 0;  // 0: `out` is no terminal
  std::function<bool()> interrupted = [] { return false; };
};

// Needs no server.
Exit check_config(const CtlOptions& options, Console& console);

// Threads: one. The client is used from this thread only.
class Commands {
 public:
  Commands(const CtlOptions& options, RpcClient& client, Credentials& credentials, Console& console)
      : options_(options), client_(client), credentials_(credentials), console_(console) {}
  Exit run();

 private:
  Result<nlohmann::json> ask(const char* method, nlohmann::json params = nlohmann::json::object());
  Exit print(const char* method, nlohmann::json params,
             std::string (*render)(const nlohmann::json&));
  Exit complain(const Error& error);
  Exit begin(const char* method, nlohmann::json params);
  Exit show();
  Exit cancel();
  Exit watch(const nlohmann::json& transaction);
  Exit events();
  Exit doctor();
  void event(const nlohmann::json& event);

  const CtlOptions& options_;
  RpcClient& client_;
  Credentials& credentials_;
  Console& console_;
};

// To standard error for people, and with --json to standard output for programs.
Exit report(const Error& error, bool json, Console& console);

}  // namespace symvirt
