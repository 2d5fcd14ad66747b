// symvirtctl's exit codes: a contract with scripts. Never renumbered; symvirtctl(1) has this table.
#pragma once

#include <nlohmann/json.hpp>

#include "common/result.h"

namespace symvirt {

enum class Exit {
  kDone = 0,
  kUsage = 1,        // wrong command line, argument or configuration
  kUnreachable = 2,  // symvirtd could not be asked, or did not answer: nothing is known
  kRefused = 3,      // not allowed, not known or not possible now: nothing was changed
  kNotAsAsked = 4,   // transaction ended partial, restored or refused: the jobs run on
  kFailed = 5,       // transaction failed, or symvirtd reported an internal error
  kNotWatched = 6,   // Ctrl-C or --timeout: the transaction goes on
  kUnhealthy = 7,    // doctor found something
};

Exit exit_of(const Error& error);
// Of a transaction as symvirtd shows it; kNotWatched while it runs.
Exit exit_of(const nlohmann::json& transaction);

// The table, for --help.
extern const char* const kExitCodeHelp;

}  // namespace symvirt
