// symvirtctl: what administrators and users see of SymVirt. Manual: docs/man/symvirtctl.1.
#include <signal.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <iostream>

#include "spank-symvirt/cli/commands.h"

using namespace symvirt;

namespace {

volatile sig_atomic_t g_interrupted = 0;

// The second Ctrl-C finds the default action and ends the program at once.
void interrupt_once() {
  struct sigaction action {};
  action.sa_handler = [](int) { g_interrupted = 1; };
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  sigaction(SIGINT, &action, nullptr);
}

std::size_t terminal_width() {
  if (isatty(STDOUT_FILENO) == 0) return 0;
  winsize size{};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col < 20) return 80;
  return size.ws_col;
}

}  // namespace

int main(int argc, char** argv) {
  auto parsed = parse_options(std::vector<std::string>(argv + 1, argv + argc), SYMVIRT_VERSION);
  if (const ParseEnd* end = std::get_if<ParseEnd>(&parsed)) {
    std::cout << end->out << std::flush;
    std::cerr << end->err;
    return end->exit_code;
  }
  const CtlOptions& options = std::get<CtlOptions>(parsed);
  Console console{std::cout, std::cerr, terminal_width(), [] { return g_interrupted != 0; }};
  if (options.command == Command::kCheckConfig)
    return static_cast<int>(check_config(options, console));
  auto server = find_server(options.server, options.config);
  if (!server) return static_cast<int>(report(server.error(), options.json, console));

  MungeCredentials credentials;
  RpcClient client({server->host, server->address, server->port, trusted_repliers()}, credentials);
  // Only a watched transaction outlives its Ctrl-C; everything else may just end.
  if (options.wait) interrupt_once();
  return static_cast<int>(Commands(options, client, credentials, console).run());
}
