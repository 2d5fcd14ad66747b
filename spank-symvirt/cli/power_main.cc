// symvirt-resume and symvirt-suspend: Slurm's ResumeProgram and SuspendProgram. slurmctld runs them
// on the control node with a list like v[1-2]; symvirtd runs on the same machine.
//
// Slurm does not look at the exit code: a node that does not come within ResumeTimeout is set DOWN.
// So the one thing that helps the administrator is a clear line in syslog.
#include <signal.h>
#include <syslog.h>

#include <chrono>
#include <iostream>
#include <thread>

#include "node-helper/protocol/rpc.h"
#include "spank-symvirt/cli/power.h"
#include "spank-symvirt/cli/server_address.h"

using namespace symvirt;
using std::chrono::milliseconds;

namespace {

constexpr const char* kProgram = SYMVIRT_POWER_PROGRAM;
constexpr const char* kMethod = SYMVIRT_POWER_METHOD;
constexpr const char* kConfig = "/etc/symvirt/symvirtd.toml";
constexpr milliseconds kPatience{50'000};  // less than any sensible ResumeTimeout

void say(int priority, const std::string& message) {
  syslog(priority, "%s", message.c_str());
  std::cerr << kProgram << ": " << message << std::endl;
}

}  // namespace

int main(int argc, char** argv) {
  openlog(kProgram, LOG_PID, LOG_DAEMON);
  signal(SIGPIPE, SIG_IGN);
  const std::string nodes = argc == 2 ? argv[1] : "";
  if (nodes.empty() || nodes[0] == '-') {
    say(LOG_ERR, std::string("usage: ") + kProgram +
                     " NODES, as slurmctld calls it, with NODES like v[1-4]");
    return 1;
  }
  // A configuration that cannot be read by SlurmUser is no reason to fail: the defaults may do.
  ServerAddress server{short_host_name(), "127.0.0.1", kSymvirtdPort};
  if (auto found = find_server("", kConfig)) server = *found;

  MungeCredentials credentials;
  RpcClient client({server.host, server.address, server.port, trusted_repliers()}, credentials);
  PowerWorld world;
  world.ask = [&](const std::string& list, milliseconds timeout) {
    return client.call(kMethod, {{"nodes", list}}, Deadline::after(timeout));
  };
  world.now = [] {
    return std::chrono::duration_cast<milliseconds>(
        std::chrono::steady_clock::now().time_since_epoch());
  };
  world.sleep = [](milliseconds time) { std::this_thread::sleep_for(time); };
  world.warn = [&](const std::string& message) { say(LOG_WARNING, nodes + ": " + message); };

  if (Status status = change_power(nodes, kPatience, world); !status) {
    say(LOG_ERR, nodes + ": " + status.error().message);
    return 1;
  }
  syslog(LOG_INFO, "%s: symvirtd has taken it", nodes.c_str());
  return 0;
}
