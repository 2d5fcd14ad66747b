#include "spank-symvirt/cli/commands.h"

#include <fmt/format.h>
#include <poll.h>

#include <algorithm>
#include <chrono>
#include <iostream>

#include "spank-symvirt/cli/fields.h"
#include "spank-symvirt/cli/follow_events.h"
#include "spank-symvirt/cli/render.h"
#include "spank-symvirt/cli/watch_transaction.h"
#include "spank-symvirt/coordinator/config.h"
#include "spank-symvirt/coordinator/domain.h"

namespace symvirt {

using nlohmann::json;
using std::chrono::milliseconds;

namespace {

constexpr milliseconds kAnswerTime{15'000};
constexpr milliseconds kFollowTime{60'000};  // one call; then the next
constexpr int kLookMs = 250;

json error_object(const Error& error) {
  return {{"schema_version", 1},
          {"error", {{"code", std::string(code_name(error.code))}, {"message", error.message}}}};
}

// Everything symvirtd would use of a class for one of its VMs, so that a pattern that fails does so
// here and not when the VM boots.
Status check_class(const ClassConfig& c) {
  for (std::size_t i = 0; i < c.nodes.size(); ++i) {
    const int index = static_cast<int>(i) + 1;
    const std::string context = fmt::format("class {}: {}", c.name, c.nodes[i]);
    if (auto r = fill_domain(c, c.nodes[i], index); !r) return r.error().with(context);
    if (auto r = overlays_of(c, c.nodes[i], index); !r) return r.error().with(context);
    if (auto r = slots_to_reserve(c, c.nodes[i], index); !r) return r.error().with(context);
    if (auto r = guest_slots_of(c, c.nodes[i], index); !r) return r.error().with(context);
  }
  return {};
}

}  // namespace

Exit report(const Error& error, bool as_json, Console& console) {
  if (as_json) console.out << json_line(error_object(error)) << std::endl;
  console.err << "symvirtctl: " << printable(error.message) << std::endl;
  return exit_of(error);
}

Exit check_config(const CtlOptions& options, Console& console) {
  auto config = load_config(options.config);
  Status status = config ? Status() : Status(config.error());
  std::size_t vms = 0;
  if (config) {
    for (const ClassConfig& c : config->classes) {
      vms += c.nodes.size();
      if (status) status = check_class(c);
    }
  }
  if (!status) {
    (void)report(status.error(), options.json, console);
    return Exit::kUsage;
  }
  if (options.json) {
    console.out << json_line({{"schema_version", 1},
                              {"file", options.config},
                              {"ok", true},
                              {"classes", config->classes.size()},
                              {"vms", vms}})
                << std::endl;
  } else {
    console.out << fmt::format("{}: good: {} VM class(es), {} VM(s)\n", options.config,
                               config->classes.size(), vms);
  }
  return Exit::kDone;
}

Exit Commands::run() {
  switch (options_.command) {
    case Command::kStatus:
      return print("status", json::object(), render_status);
    case Command::kList:
      return print("tx.list", {{"all", options_.all}}, render_list);
    case Command::kShow:
      return show();
    case Command::kEvacuate:
      return begin("evacuate", {{"host", options_.host}});
    case Command::kMigrate: {
      json params = {{"vm", options_.vm}};
      if (!options_.to.empty()) params["to"] = options_.to;
      return begin("migrate", params);
    }
    case Command::kCancel:
      return cancel();
    case Command::kEvents:
      return events();
    case Command::kDevices:
      return print("devices", json::object(), render_devices);
    case Command::kDoctor:
      return doctor();
    case Command::kCheckConfig:
      return check_config(options_, console_);
  }
  return Exit::kUsage;
}

Result<json> Commands::ask(const char* method, json params) {
  return client_.call(method, std::move(params), Deadline::after(kAnswerTime));
}

Exit Commands::complain(const Error& error) {
  Error advised = error;
  if (error.code == Code::kUnavailable)
    advised.message += "; is symvirtd running there? systemctl status symvirtd";
  else if (error.code == Code::kPermission)
    advised.message += "; changing things is for root and SlurmUser ([control] admin_uids)";
  return report(advised, options_.json, console_);
}

Exit Commands::print(const char* method, json params, std::string (*render)(const json&)) {
  auto answer = ask(method, std::move(params));
  if (!answer) return complain(answer.error());
  console_.out << (options_.json ? json_line(*answer) + "\n" : render(*answer)) << std::flush;
  return Exit::kDone;
}

Exit Commands::begin(const char* method, json params) {
  auto tx = ask(method, std::move(params));
  if (!tx) {
    Error error = tx.error();
    if (error.code == Code::kDeadline)
      error.message += "; it may have begun all the same: see symvirtctl list";
    return complain(error);
  }
  if (options_.wait) return watch(*tx);
  if (options_.json)
    console_.out << json_line(*tx) << std::endl;
  else
    console_.out << fmt::format("{} {} has begun; symvirtctl show {} --wait watches it\n",
                                text_of(*tx, "kind"), integer_of(*tx, "id"), integer_of(*tx, "id"))
                 << std::flush;
  return Exit::kDone;
}

Exit Commands::show() {
  auto tx = ask("tx.show", {{"id", options_.id}});
  if (!tx) return complain(tx.error());
  if (options_.wait) return watch(*tx);
  console_.out << (options_.json ? json_line(*tx) + "\n" : render_transaction(*tx)) << std::flush;
  return Exit::kDone;
}

Exit Commands::cancel() {
  auto tx = ask("cancel", {{"id", options_.id}});
  if (!tx) return complain(tx.error());
  if (options_.json)
    console_.out << json_line(*tx) << std::endl;
  else
    console_.out << fmt::format(
                        "{} {}: cancel requested; VMs that have moved stay there, the others stay "
                        "where they are\n",
                        text_of(*tx, "kind"), options_.id)
                 << std::flush;
  return Exit::kDone;
}

Exit Commands::watch(const json& tx) {
  WatchWorld world;
  world.show = [this](std::int64_t id) {
    return client_.call("tx.show", {{"id", id}}, Deadline::after(milliseconds(5'000)));
  };
  world.sleep = [] { (void)poll(nullptr, 0, kLookMs); };  // a signal ends it
  world.stop = console_.interrupted;
  world.now_s = [] {
    return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch())
        .count();
  };
  world.out = [this](const std::string& text) { console_.out << text << std::flush; };
  world.err = [this](const std::string& text) {
    console_.err << "symvirtctl: " << text << std::endl;
  };
  WatchOptions options;
  options.json = options_.json;
  options.terminal_width = console_.terminal_width;
  options.timeout_s = static_cast<double>(options_.timeout_s);
  return watch_transaction(tx, options, world);
}

void Commands::event(const json& event) {
  console_.out << (options_.json ? json_line(event) + "\n" : render_event(event)) << std::flush;
}

Exit Commands::events() {
  auto each = [this](const json& e) { event(e); };
  if (!options_.follow) {
    auto end =
        client_.call("events", {{"since", options_.since}}, Deadline::after(kFollowTime), each);
    return end ? Exit::kDone : complain(end.error());
  }
  FollowWorld world;
  world.status = [this] { return ask("status"); };
  world.events = [this](std::int64_t since, const std::function<void(const json&)>& sink) {
    return client_.call("events", {{"since", since}, {"follow", true}},
                        Deadline::after(kFollowTime), sink);
  };
  world.sleep = [](int tries) {
    (void)poll(nullptr, 0, std::min(250 << std::min(tries, 4), 4000));
  };
  world.event = each;
  world.err = [this](const std::string& text) {
    console_.err << "symvirtctl: " << printable(text) << std::endl;
  };
  world.stop = console_.interrupted;
  Status status = follow_events(options_.since, world);
  return status ? Exit::kDone : complain(status.error());
}

Exit Commands::doctor() {
  json checks = json::array();
  auto add = [&](const char* name, const Error* error, const char* advice) {
    json c = {{"check", name},
              {"ok", error == nullptr},
              {"detail", error == nullptr ? "yes" : error->message}};
    if (error != nullptr) c["advice"] = advice;
    checks.push_back(std::move(c));
  };
  auto credential = credentials_.encode("doctor");
  add("munged answers here", credential ? nullptr : &credential.error(),
      "is munged running on this machine? systemctl status munge");
  auto answer = credential ? ask("doctor") : Result<json>(credential.error());
  const bool unreachable = !answer && answer.error().unknown_effect();
  if (credential)
    add("symvirtd answers", answer ? nullptr : &answer.error(),
        unreachable ? "is symvirtd running there? systemctl status symvirtd"
                    : "do both machines have the same munge key and time?");
  bool ok = credential.has_value() && answer.has_value();
  if (answer) {
    ok = flag_of(*answer, "ok");
    for (const json& c : list_of(*answer, "checks")) checks.push_back(c);
  }
  const json all = {{"schema_version", 1}, {"ok", ok}, {"checks", checks}};
  console_.out << (options_.json ? json_line(all) + "\n" : render_doctor(all)) << std::flush;
  if (unreachable) return Exit::kUnreachable;
  return ok ? Exit::kDone : Exit::kUnhealthy;
}

}  // namespace symvirt
