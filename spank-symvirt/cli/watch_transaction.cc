#include "spank-symvirt/cli/watch_transaction.h"

#include <fmt/format.h>

#include <optional>

#include "spank-symvirt/cli/fields.h"
#include "spank-symvirt/cli/render.h"

namespace symvirt {

using nlohmann::json;

namespace {

class Watcher {
 public:
  Watcher(const json& first, const WatchOptions& options, const WatchWorld& world)
      : options_(options), world_(world), id_(integer_of(first, "id")) {}

  Exit run(json tx) {
    const double begun = world_.now_s();
    for (;;) {
      show(tx);
      if (text_of(tx, "outcome") != "running") return finish(tx);
      if (world_.stop()) return leave("stopped watching");
      if (options_.timeout_s > 0 && world_.now_s() - begun >= options_.timeout_s)
        return leave(fmt::format("not ended after {}", seconds_text(options_.timeout_s)));
      world_.sleep();
      auto next = world_.show(id_);
      if (next) {
        if (silent_since_) say("symvirtd answers again");
        silent_since_.reset();
        tx = *next;
      } else if (!bear(next.error())) {
        clear_line();
        world_.err(next.error().message);
        return exit_of(next.error());
      }
    }
  }

 private:
  // True: look again later.
  bool bear(const Error& error) {
    if (!error.unknown_effect()) return false;
    if (!silent_since_) {
      silent_since_ = world_.now_s();
      say(error.message + "; the transaction waits for symvirtd, and so do we");
    }
    return world_.now_s() - *silent_since_ < options_.patience_s;
  }

  void show(const json& tx) {
    if (options_.json) {
      // The last object is printed by finish().
      if (text_of(tx, "phase") != phase_ && text_of(tx, "outcome") == "running")
        world_.out(json_line(tx) + "\n");
      phase_ = text_of(tx, "phase");
    } else if (options_.terminal_width > 0) {
      if (!silent_since_) refresh(progress_line(tx, world_.now_s(), options_.terminal_width - 1));
    } else {
      plain(tx);
    }
  }

  void plain(const json& tx) {
    const json& phases = list_of(tx, "phases");
    for (; phases_told_ < phases.size(); ++phases_told_) {
      const json& phase = phases[phases_told_];
      std::string line =
          fmt::format("{} {}", clock_text(number_of(tx, "begun_s") + number_of(phase, "begin_s")),
                      printable(text_of(phase, "name")));
      // Who works is known of the present phase only.
      if (phases_told_ + 1 == phases.size()) {
        std::string vms;
        for (const std::string& vm : busy_vms(tx)) vms += " " + printable(vm);
        if (!vms.empty()) line += ":" + vms;
      }
      world_.out(line + "\n");
    }
    if (const std::string parked = text_of(tx, "parked"); parked != parked_) {
      parked_ = parked;
      if (!parked.empty()) world_.out("waits: " + printable(parked) + "\n");
    }
  }

  void refresh(const std::string& line) {
    world_.out("\r" + line + "\033[K");
    line_open_ = true;
  }

  void clear_line() {
    if (line_open_) world_.out("\r\033[K");
    line_open_ = false;
  }

  void say(const std::string& message) {
    clear_line();
    world_.err(printable(message));
  }

  Exit finish(const json& tx) {
    clear_line();
    world_.out(options_.json ? json_line(tx) + "\n" : "\n" + render_transaction(tx));
    return exit_of(tx);
  }

  Exit leave(const std::string& why) {
    say(
        fmt::format("{}; transaction {} goes on: symvirtctl show {} --wait watches it again, "
                    "symvirtctl cancel {} ends it",
                    why, id_, id_, id_));
    return Exit::kNotWatched;
  }

  const WatchOptions& options_;
  const WatchWorld& world_;
  std::int64_t id_;
  std::string phase_, parked_;
  std::size_t phases_told_ = 0;
  std::optional<double> silent_since_;
  bool line_open_ = false;
};

}  // namespace

Exit watch_transaction(const json& first, const WatchOptions& options, const WatchWorld& world) {
  return Watcher(first, options, world).run(first);
}

}  // namespace symvirt
