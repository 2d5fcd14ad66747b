#include "spank-symvirt/cli/options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <sstream>

#include "spank-symvirt/cli/exit_codes.h"

namespace symvirt {
namespace {

constexpr const char* kAbout =
    "Shows and steers VMs that run Slurm jobs; speaks to symvirtd.\n"
    "symvirtd is sought at --server, else $SYMVIRTD_SERVER, else on this machine as its\n"
    "symvirtd.toml says. Manual: symvirtctl(1)";

// CLI11's own PositiveNumber prints 600 digits when it refuses.
const CLI::Validator kFromOne(
    [](std::string& text) {
      const bool digits = !text.empty() && text.find_first_not_of("0123456789") == text.npos;
      return digits && text.find_first_not_of('0') != text.npos
                 ? std::string()
                 : "a whole number from 1 on is wanted, not " + text;
    },
    "", "from 1");

class CommandLine {
 public:
  CommandLine(CtlOptions& o, const std::string& version) : o_(o), app_(kAbout, "symvirtctl") {
    app_.set_version_flag("--version", version);
    app_.footer(kExitCodeHelp);
    app_.require_subcommand(1);
    app_.fallthrough();  // --json and --server may stand behind the command, too
    app_.add_option("-s,--server", o.server, "Where symvirtd is: HOST or HOST:PORT");
    app_.add_option("-c,--config", o.config, "symvirtd's configuration file")
        ->capture_default_str();
    app_.add_flag("-j,--json", o.json, "One JSON object a line, with schema_version");

    add(Command::kStatus, "status", "Hosts, VMs and running transactions");
    add(Command::kList, "list", "Evacuations, and every transaction that runs")
        ->add_flag("-a,--all", o.all, "Boots and stops that have ended, too");
    CLI::App* show = add(Command::kShow, "show", "One transaction: its VMs and phases");
    add_id(show);
    show->add_flag("-w,--wait", o.wait, "Watch it until it ends");
    add_timeout(show);
    CLI::App* evacuate =
        add(Command::kEvacuate, "evacuate", "Move all VMs away from a host, now; wait for the end");
    evacuate->add_option("HOST", o.host, "Node name of the host")->required();
    add_no_wait(evacuate);
    CLI::App* migrate = add(Command::kMigrate, "migrate",
                            "Move a VM to another host, with those that share its job at rest");
    migrate->add_option("VM", o.vm, "Node name of the VM")->required();
    migrate->add_option("-t,--to", o.to, "Host to move to; otherwise Slurm chooses");
    add_no_wait(migrate);
    add_id(add(Command::kCancel, "cancel", "End a transaction: its VMs stay where they are"));
    CLI::App* events = add(Command::kEvents, "events", "What happened, as far back as is kept");
    events->add_flag("-f,--follow", o.follow, "From now on (or from --since), until Ctrl-C");
    events->add_option("-n,--since", o.since, "From event number N on")->check(kFromOne);
    add(Command::kDevices, "devices", "Passthrough devices of all hosts");
    add(Command::kDoctor, "doctor", "Look for what is wrong, and say what to do");
    add(Command::kCheckConfig, "check-config", "Check symvirtd's configuration file; asks nobody");
  }

  ParseEnd parse(std::vector<std::string> arguments) {
    ParseEnd end;
    std::ostringstream out, err;
    try {
      std::reverse(arguments.begin(), arguments.end());  // CLI11 takes a stack
      app_.parse(std::move(arguments));
      o_.wait = o_.wait != no_wait_default_;
      return end;
    } catch (const CLI::ParseError& error) {
      const int code = app_.exit(error, out, err);
      end.exit_code = code == 0 ? 0 : static_cast<int>(Exit::kUsage);
      end.out = out.str();
      end.err = err.str();
    }
    return end;
  }
  bool parsed() const { return app_.parsed() && !app_.get_subcommands().empty(); }

 private:
  CLI::App* add(Command command, const char* name, const char* about) {
    CLI::App* sub = app_.add_subcommand(name, about);
    sub->callback([this, command] {
      o_.command = command;
      no_wait_default_ = command == Command::kEvacuate || command == Command::kMigrate;
    });
    return sub;
  }
  void add_id(CLI::App* sub) {
    sub->add_option("ID", o_.id, "Number of the transaction")->required()->check(kFromOne);
  }
  void add_timeout(CLI::App* sub) {
    sub->add_option("--timeout", o_.timeout_s, "Watch for so many seconds at most")
        ->check(kFromOne);
  }
  void add_no_wait(CLI::App* sub) {
    // `wait` holds the flag itself until parse() turns it round.
    sub->add_flag("--no-wait", o_.wait, "Begin it and return");
    add_timeout(sub);
  }

  CtlOptions& o_;
  bool no_wait_default_ = false;
  CLI::App app_;
};

}  // namespace

std::variant<CtlOptions, ParseEnd> parse_options(const std::vector<std::string>& arguments,
                                                 const std::string& version) {
  CtlOptions options;
  CommandLine line(options, version);
  ParseEnd end = line.parse(arguments);
  if (!end.out.empty() || !end.err.empty() || end.exit_code != 0) return end;
  return options;
}

}  // namespace symvirt
