#include "spank-symvirt/cli/exit_codes.h"

#include "spank-symvirt/cli/fields.h"

namespace symvirt {

const char* const kExitCodeHelp =
    "Exit codes:\n"
    "  0  done\n"
    "  1  wrong command line, argument or configuration\n"
    "  2  symvirtd cannot be reached or does not answer\n"
    "  3  refused: not allowed, not known, or not possible now; nothing was changed\n"
    "  4  the transaction ended partial, restored or refused; the jobs run on\n"
    "  5  the transaction failed, or symvirtd has an internal error\n"
    "  6  stopped watching (Ctrl-C, --timeout); the transaction goes on\n"
    "  7  doctor found something wrong";

Exit exit_of(const Error& error) {
  switch (error.code) {
    case Code::kInvalidArgument:
      return Exit::kUsage;
    case Code::kUnavailable:
    case Code::kDeadline:
      return Exit::kUnreachable;
    case Code::kNotFound:
    case Code::kAlreadyExists:
    case Code::kPrecondition:
    case Code::kPermission:
    case Code::kExhausted:
    case Code::kRefused:
    case Code::kCancelled:
      return Exit::kRefused;
    case Code::kInternal:
      return Exit::kFailed;
  }
  return Exit::kFailed;
}

Exit exit_of(const nlohmann::json& transaction) {
  const std::string outcome = text_of(transaction, "outcome");
  if (outcome == "done") return Exit::kDone;
  if (outcome == "partial" || outcome == "restored" || outcome == "refused")
    return Exit::kNotAsAsked;
  if (outcome == "running") return Exit::kNotWatched;
  return Exit::kFailed;
}

}  // namespace symvirt
