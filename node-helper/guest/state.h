// What guestd has to know when it is started again in the same boot: /run/symvirt/guestd.json.
//
// | observer sees                   | meaning                                                    |
// |---------------------------------|------------------------------------------------------------|
// | no file                         | first start of this boot, or /run was cleared              |
// | file, boot_id of this boot      | all of it holds                                            |
// | file, another boot_id           | left over on a /run that survived: ignored                 |
// | file that does not parse        | set aside as guestd.json.bad, start as if there were none  |
//
// Written whole to a second file and renamed over the first: SIGKILL leaves the old or the new one.
// No fsync: a power cut ends the boot it speaks of.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "node-helper/guest/link.h"
#include "node-helper/guest/transactions.h"

namespace symvirt::guest {

struct State {
  std::string boot_id;
  Json configuration;  // params of the last guest.configure; null: none yet
  std::map<std::string, SavedLink> saved;
  std::vector<JobRecord> jobs;
  bool node_started = false;
};

std::string read_boot_id();
Status store_state(const State& state, const std::string& path);
// A State of this boot, or an empty one with boot_id filled in. Problems are logged.
State load_state(const std::string& path, const std::string& boot_id);

Json to_json(const State& state);
Result<State> parse_state(const Json& json);

}  // namespace symvirt::guest
