// What the user may say: --symvirt and its companions, on the command line and in the environment.
//
// kOptionTable in options.cc is the manual: grammar, default, caveat and environment twin of each
// option; `sbatch
// --help` prints it. Pure code: Slurm is only in plugin.cc.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "common/result.h"

namespace symvirt::plugin {

enum class OptionId { kSymvirt = 1, kNoSymvirt, kFt, kQuiesceTimeout };

enum class Argument { kNone, kRequired, kOptional };

struct OptionSpec {
  OptionId id;
  const char* name;      // without the dashes
  const char* arginfo;   // nullptr: none
  const char* usage;     // --help
  const char* variable;  // environment twin; nullptr: none of its own
  Argument argument;
};
std::span<const OptionSpec> option_table();
const OptionSpec* find_option(int id);

// The class a job gets that names none. Sites' class names cannot be "default", nor 0 or 1.
inline constexpr char kDefaultClass[] = "default";

enum class Ft { kProactive, kNone };
std::string_view ft_name(Ft ft);

// Each error is in the words of the user: `given` is what they typed ("--symvirt-ft=often",
// "SYMVIRT_FT=often").
Result<std::string> parse_class(std::string_view text, std::string_view given);
Result<Ft> parse_ft(std::string_view text, std::string_view given);
Result<std::uint32_t> parse_quiesce_timeout(std::string_view text, std::string_view given);

// What was decided for the job, and how it travels: as job control variables, which job_submit.lua
// sees as "SYMVIRT=CLASS" in spank_job_env, prolog and epilog as SPANK_SYMVIRT, and every batch
// script and step as SLURM_SPANK_SYMVIRT, whatever --export says.
struct Decision {
  std::string vm_class;  // empty: not asked for
  Ft ft = Ft::kProactive;
  std::optional<std::uint32_t> quiesce_timeout_s;  // unset: the site's, quiesce_s

  bool wanted() const { return !vm_class.empty(); }
  bool operator==(const Decision&) const = default;
};
inline constexpr char kControlClass[] = "SYMVIRT";
inline constexpr char kControlFt[] = "SYMVIRT_FT";
inline constexpr char kControlTimeout[] = "SYMVIRT_QUIESCE_TIMEOUT";
inline constexpr char kJobPrefix[] = "SLURM_SPANK_";

// Collects what was given, and decides.
class Options {
 public:
  // One option of the command line (or of an #SBATCH line); later ones win over earlier ones.
  // argument: nullptr, "" and
  // "(null)" (which Slurm makes of a missing one) mean that none was given.
  Status give(OptionId id, const char* argument);

  using Environment = std::function<std::optional<std::string>(const char* name)>;
  // The command line wins; then, for a step inside an allocation, what was decided for the job;
  // then the twins. A step cannot be in a VM when its job is not.
  Result<Decision> decide(const Environment& environment, bool step_of_allocation) const;

 private:
  Result<Decision> decide_step(const Environment& environment) const;
  Result<Decision> decide_job(const Environment& environment) const;

  std::optional<std::string> class_;  // --symvirt
  bool no_ = false;                   // --no-symvirt, and no --symvirt after it
  std::optional<Ft> ft_;
  std::optional<std::uint32_t> quiesce_timeout_s_;
};

// What a step in slurmstepd reads back from its environment (SLURM_SPANK_SYMVIRT ...). Not wanted
// when it is not there. Broken values are errors: the job asked for something.
Result<Decision> decision_from_job(const Options::Environment& environment);

}  // namespace symvirt::plugin
