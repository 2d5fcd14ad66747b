#include "spank-symvirt/plugin/task_env.h"

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

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ",") + word;
  return text;
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
  const bool tcp = environment.quiesce.empty() || environment.quiesce == "tcp";
  if (!tcp) return variables;
  // Without these Open MPI takes whatever it finds best: other transports whose state nobody brings
  // to rest, or the management NIC.
  set_default("OMPI_MCA_pml", "ob1");
  set_default("OMPI_MCA_btl", "tcp,vader,self");
  set_default("OMPI_MCA_osc", "^ucx");  // chosen for MPI windows whatever the pml is
  // Include and exclude together are an error of Open MPI's.
  if (!environment.networks.empty() && !lookup("OMPI_MCA_btl_tcp_if_exclude")) {
    set_default("OMPI_MCA_btl_tcp_if_include", joined(environment.networks));
  }
  return variables;
}

}  // namespace symvirt::plugin
