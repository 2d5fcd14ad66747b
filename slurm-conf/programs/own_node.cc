#include "slurm-conf/programs/own_node.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>

#include "common/subprocess.h"

namespace symvirt {
namespace {

constexpr std::size_t kLongestReason = 200;  // sinfo -R shows it in a column

std::string value_of(const std::string& line, const std::string& key, const std::string& end) {
  const std::size_t at = line.find(" " + key + "=");
  if (at == std::string::npos) return "";
  const std::size_t begin = at + key.size() + 2;
  return line.substr(begin, std::min(line.find(end, begin), line.size()) - begin);
}

Result<std::string> scontrol(const std::vector<std::string>& words, Deadline deadline) {
  std::vector<std::string> argv = {"scontrol"};
  argv.insert(argv.end(), words.begin(), words.end());
  auto result = run_program(argv, deadline);
  if (!result) return result.error();
  if (result->exit_code != 0) {
    return Error{Code::kRefused, fmt::format("scontrol {}: {}", fmt::join(words, " "),
                                             result->output.substr(0, 500))};
  }
  return result->output;
}

// One line, no quotes: it ends up in other people's scripts.
std::string tidy(const std::string& why) {
  std::string text = why.substr(0, kLongestReason);
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == '"' || c == '\'') c = ' ';
  }
  return text;
}

}  // namespace

bool NodeNow::out_of_service() const {
  // Not POWERED_DOWN and POWERING_DOWN, which contain the word.
  const bool down = state.rfind("DOWN", 0) == 0;
  return down || state.find("DRAIN") != std::string::npos ||
         state.find("FAIL") != std::string::npos;
}

std::string own_node_name() {
  if (const char* name = std::getenv("SLURMD_NODENAME"); name != nullptr && *name != '\0')
    return name;
  char name[256] = "";
  gethostname(name, sizeof name - 1);
  const std::string full = name;
  return full.substr(0, full.find('.'));
}

bool in_vm_node(const std::filesystem::path& root) {
  std::error_code ignored;
  if (std::filesystem::exists(root / "run/symvirt/guestd.sock", ignored) ||
      std::filesystem::exists(root / "dev/virtio-ports/org.symvirt.guest.0", ignored))
    return true;
  for (const auto& port :
       std::filesystem::directory_iterator(root / "sys/class/virtio-ports", ignored)) {
    std::string name;
    std::ifstream(port.path() / "name") >> name;
    if (name == "org.symvirt.guest.0") return true;
  }
  return false;
}

Result<NodeNow> parse_node(const std::string& line) {
  NodeNow now;
  now.state = value_of(line, "State", " ");
  if (now.state.empty())
    return Error{Code::kInternal, "scontrol show node: no State in: " + line.substr(0, 200)};
  // "Reason=two words [root@2026-11-23T02:00:00]"
  now.reason = value_of(line, "Reason", " [");
  while (!now.reason.empty() && now.reason.back() == '\n') now.reason.pop_back();
  return now;
}

Result<NodeNow> node_now(const std::string& node, Deadline deadline) {
  auto line = scontrol({"-o", "show", "node", node}, deadline);
  if (!line) return line.error();
  return parse_node(*line);
}

Result<Drained> drain_node(const std::string& node, const std::string& why, Deadline deadline) {
  auto now = node_now(node, deadline);
  if (!now) return now.error();
  if (now->out_of_service()) return Drained::kAlready;
  auto done =
      scontrol({"update", "nodename=" + node, "state=drain", "reason=" + (kOurReason + tidy(why))},
               deadline);
  if (!done) return done.error();
  return Drained::kNow;
}

}  // namespace symvirt
