#include "spank-symvirt/plugin/task_env.h"

#include <algorithm>
#include <functional>

namespace symvirt::plugin {
namespace {

// ld.so(8): separated by spaces or colons.
bool contains_library(const std::string& list, const std::string& library) {
  std::size_t begin = 0;
  while (begin <= list.size()) {
    const std::size_t end = std::min(list.find_first_of(": ", begin), list.size());
    if (list.compare(begin, end - begin, library) == 0) return true;
    begin = end + 1;
  }
  return false;
}

// Open MPI's and UCX's lists: "a,b", all but these "^a,b". The first of `unwanted` that is asked
// for.
std::optional<std::string> names_one_of(const std::string& list,
                                        const std::vector<std::string>& unwanted) {
  if (list.starts_with("^")) return std::nullopt;
  std::size_t begin = 0;
  while (begin <= list.size()) {
    const std::size_t end = std::min(list.find(',', begin), list.size());
    const std::string word = list.substr(begin, end - begin);
    if (std::find(unwanted.begin(), unwanted.end(), word) != unwanted.end()) return word;
    begin = end + 1;
  }
  return std::nullopt;
}

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ",") + word;
  return text;
}

using SetDefault = std::function<void(const char* name, const std::string& value)>;

// Without these Open MPI takes whatever it finds best: other transports whose state nobody brings
// to rest, or the management NIC.
void prefer_tcp(const TaskEnvironment& environment, const Lookup& lookup, const SetDefault& set) {
  set("OMPI_MCA_pml", "ob1");
  set("OMPI_MCA_btl", "tcp,vader,self");
  set("OMPI_MCA_osc", "^ucx");  // chosen for MPI windows whatever the pml is
  // Include and exclude together are an error of Open MPI's.
  if (!environment.networks.empty() && !lookup("OMPI_MCA_btl_tcp_if_exclude"))
    set("OMPI_MCA_btl_tcp_if_include", joined(environment.networks));
}

// What the verbs layer carries over a move (docs/verbs.md): UCX's plain verbs transports, not those
// that drive an mlx5 device past libibverbs. Open MPI's BTLs are left for processes of one node;
// btl/uct and btl/openib would open devices of their own for MPI windows.
void prefer_verbs(const TaskEnvironment& environment, const SetDefault& set) {
  set("OMPI_MCA_pml", "ucx");
  set("OMPI_MCA_osc", "ucx,sm");
  set("OMPI_MCA_btl", "vader,self");
  set("UCX_TLS", "rc_v,ud_v,self,sm");
  if (!environment.rdma.empty()) set("UCX_NET_DEVICES", joined(environment.rdma));
  set("UCX_IB_MLX5_DEVX", "n");
  set("UCX_IB_REG_METHODS", "rcache,direct");  // no memory registered on demand
  // UCX before 1.19 reads in a datagram's completion what rxe does not write there, drops all of
  // them, and waits for its peers for ever (https://github.com/openucx/ucx/pull/10209).
  if (environment.soft_roce) set("UCX_UD_VERBS_ETH_DGID_CHECK", "n");
}

}  // namespace

Variables task_variables(const TaskEnvironment& environment, const Lookup& lookup) {
  Variables variables;
  // Appended: what the user preloads (a profiler, an allocator) stays in front of ours.
  const std::string preload = lookup("LD_PRELOAD").value_or("");
  if (preload.empty()) {
    variables.emplace_back("LD_PRELOAD", environment.hooks);
  } else if (!contains_library(preload, environment.hooks)) {
    variables.emplace_back("LD_PRELOAD", preload + ":" + environment.hooks);
  }
  if (!environment.defaults) return variables;
  const auto set_default = [&](const char* name, const std::string& value) {
    if (!lookup(name)) variables.emplace_back(name, value);
  };
  if (environment.quiesce.empty() || environment.quiesce == "tcp") {
    prefer_tcp(environment, lookup, set_default);
  } else if (environment.quiesce == "verbs") {
    prefer_verbs(environment, set_default);
  }
  return variables;
}

std::vector<std::string> task_warnings(const TaskEnvironment& environment, const Lookup& lookup) {
  if (environment.quiesce != "verbs") return {};
  // UCX's names and short ones of what drives an mlx5 device past libibverbs: hidden by the layer.
  static const std::vector<std::string> kDirect = {"rc_mlx5", "rc_x", "ud_mlx5", "ud_x",
                                                   "dc_mlx5", "dc_x", "dc",      "gga_mlx5"};
  static const struct {
    const char* name;
    std::vector<std::string> unwanted;
    const char* why;
  } kChecks[] = {
      {"UCX_TLS", kDirect, "is not there in a job that can be moved; use rc_v,ud_v,self,sm"},
      {"UCX_IB_REG_METHODS", {"odp"}, "makes the job immovable; use rcache,direct"},
      {"OMPI_MCA_btl", {"openib", "uct"}, "makes the job immovable; use vader,self"},
  };
  std::vector<std::string> warnings;
  for (const auto& check : kChecks) {
    const auto given = lookup(check.name);
    if (!given) continue;
    if (const auto word = names_one_of(*given, check.unwanted))
      warnings.push_back(std::string(check.name) + "=" + *given + ": " + *word + " " + check.why);
  }
  return warnings;
}

}  // namespace symvirt::plugin
