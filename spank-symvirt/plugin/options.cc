#include "spank-symvirt/plugin/options.h"

#include <algorithm>
#include <array>
#include <charconv>

namespace symvirt::plugin {
namespace {

constexpr std::uint32_t kLongestQuiesceS = 3600;
constexpr std::size_t kLongestClass = 64;

constexpr std::array kOptionTable = {
    OptionSpec{
        OptionId::kSymvirt, "symvirt", "CLASS",
        "[symvirt] run the job in passthrough VMs of CLASS (default: the site's), which are moved "
        "away from a failing host "
        "while the job goes on. Refused where there are none. Environment: SYMVIRT=CLASS, "
        "SYMVIRT=1",
        "SYMVIRT", Argument::kOptional},
    OptionSpec{
        OptionId::kNoSymvirt, "no-symvirt", nullptr,
        "[symvirt] not in VMs, whatever SYMVIRT says; for a step of a --symvirt job: without the "
        "hooks, so that the job "
        "cannot be moved while the step uses the device. Environment: SYMVIRT=0",
        nullptr, Argument::kNone},
    OptionSpec{
        OptionId::kFt, "symvirt-ft", "none|proactive",
        "[symvirt] proactive (default): move the job's VMs when their host is drained; none: leave "
        "them there. "
        "Environment: SYMVIRT_FT",
        "SYMVIRT_FT", Argument::kRequired},
    OptionSpec{
        OptionId::kQuiesceTimeout, "symvirt-quiesce-timeout", "SECONDS",
        "[symvirt] longest time for the job's communication to come to rest, 1 to 3600; a "
        "move that "
        "would take longer is "
        "given up and the job goes on where it is (default: the site's quiesce_s). Environment: "
        "SYMVIRT_QUIESCE_TIMEOUT",
        "SYMVIRT_QUIESCE_TIMEOUT", Argument::kRequired},
};

Error invalid(std::string_view given, const std::string& why) {
  return Error{Code::kInvalidArgument, std::string(given) + ": " + why};
}

bool class_character(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
         c == '-' || c == '.';
}

std::string typed(std::string_view name, std::string_view value) {
  return "--" + std::string(name) + (value.empty() ? "" : "=" + std::string(value));
}

std::string assigned(std::string_view variable, std::string_view value) {
  return std::string(variable) + "=" + std::string(value);
}

// A variable that is set to nothing is as good as unset.
std::optional<std::string> value_of(const Options::Environment& environment,
                                    const std::string& name) {
  std::optional<std::string> value = environment(name.c_str());
  if (value && value->empty()) return std::nullopt;
  return value;
}

}  // namespace

std::span<const OptionSpec> option_table() { return kOptionTable; }

const OptionSpec* find_option(int id) {
  for (const OptionSpec& spec : kOptionTable) {
    if (static_cast<int>(spec.id) == id) return &spec;
  }
  return nullptr;
}

std::string_view ft_name(Ft ft) {
  switch (ft) {
    case Ft::kProactive:
      return "proactive";
    case Ft::kNone:
      return "none";
  }
  return "proactive";
}

Result<std::string> parse_class(std::string_view text, std::string_view given) {
  if (text.empty() || text == "1") return std::string(kDefaultClass);
  const bool good = text.size() <= kLongestClass &&
                    std::all_of(text.begin(), text.end(), class_character) && text[0] != '-' &&
                    text[0] != '.';
  if (!good) {
    return invalid(given, "not the name of a VM class (letters, digits, '_', '-', '.', at most " +
                              std::to_string(kLongestClass) +
                              "); ask your administrator which there are");
  }
  if (text == "0") return invalid(given, "use --no-symvirt");
  return std::string(text);
}

Result<Ft> parse_ft(std::string_view text, std::string_view given) {
  for (Ft ft : {Ft::kProactive, Ft::kNone}) {
    if (text == ft_name(ft)) return ft;
  }
  return invalid(given, "valid are none and proactive");
}

Result<std::uint32_t> parse_quiesce_timeout(std::string_view text, std::string_view given) {
  std::uint32_t seconds = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seconds);
  if (error != std::errc() || end != text.data() + text.size() || seconds < 1 ||
      seconds > kLongestQuiesceS) {
    return invalid(given,
                   "not a number of seconds between 1 and " + std::to_string(kLongestQuiesceS));
  }
  return seconds;
}

Status Options::give(OptionId id, const char* argument) {
  std::string_view text = argument == nullptr ? "" : argument;
  if (text == "(null)") text = "";
  const std::string given = typed(find_option(static_cast<int>(id))->name, text);
  switch (id) {
    case OptionId::kSymvirt: {
      Result<std::string> name = parse_class(text, given);
      if (!name) return name.error();
      class_ = std::move(*name);
      no_ = false;
      return {};
    }
    case OptionId::kNoSymvirt:
      class_.reset();
      no_ = true;
      return {};
    case OptionId::kFt: {
      Result<Ft> ft = parse_ft(text, given);
      if (!ft) return ft.error();
      ft_ = *ft;
      return {};
    }
    case OptionId::kQuiesceTimeout: {
      Result<std::uint32_t> seconds = parse_quiesce_timeout(text, given);
      if (!seconds) return seconds.error();
      quiesce_timeout_s_ = *seconds;
      return {};
    }
  }
  return {};
}

Result<Decision> Options::decide(const Environment& environment, bool step_of_allocation) const {
  if (no_) return Decision{};
  return step_of_allocation ? decide_step(environment) : decide_job(environment);
}

Result<Decision> Options::decide_step(const Environment& environment) const {
  Result<Decision> job = decision_from_job(environment);
  if (!job) return job.error();
  if (!job->wanted()) {
    if (!class_) return Decision{};
    return invalid("--symvirt", "the allocation was made without it; give it to sbatch or salloc");
  }
  if (class_ && *class_ != kDefaultClass && *class_ != job->vm_class) {
    return invalid("--symvirt=" + *class_, "the allocation is of class " + job->vm_class);
  }
  // One job, one decision: policy belongs to the job, and a step's options do not change it.
  return job;
}

Result<Decision> Options::decide_job(const Environment& environment) const {
  Decision decision;
  if (class_) {
    decision.vm_class = *class_;
  } else if (const auto twin = value_of(environment, "SYMVIRT"); twin && *twin != "0") {
    Result<std::string> name = parse_class(*twin, assigned("SYMVIRT", *twin));
    if (!name) return name.error();
    decision.vm_class = std::move(*name);
  }
  if (!decision.wanted()) {
    if (ft_) return invalid("--symvirt-ft", "needs --symvirt");
    if (quiesce_timeout_s_) return invalid("--symvirt-quiesce-timeout", "needs --symvirt");
    return decision;
  }
  if (ft_) {
    decision.ft = *ft_;
  } else if (const auto twin = value_of(environment, "SYMVIRT_FT")) {
    Result<Ft> ft = parse_ft(*twin, assigned("SYMVIRT_FT", *twin));
    if (!ft) return ft.error();
    decision.ft = *ft;
  }
  decision.quiesce_timeout_s = quiesce_timeout_s_;
  if (const auto twin = value_of(environment, "SYMVIRT_QUIESCE_TIMEOUT");
      twin && !quiesce_timeout_s_) {
    Result<std::uint32_t> seconds =
        parse_quiesce_timeout(*twin, assigned("SYMVIRT_QUIESCE_TIMEOUT", *twin));
    if (!seconds) return seconds.error();
    decision.quiesce_timeout_s = *seconds;
  }
  return decision;
}

Result<Decision> decision_from_job(const Options::Environment& environment) {
  Decision decision;
  const auto read = [&environment](const char* name) {
    return value_of(environment, std::string(kJobPrefix) + name);
  };
  const auto vm_class = read(kControlClass);
  if (!vm_class || *vm_class == "0") return decision;
  Result<std::string> name = parse_class(*vm_class, assigned("SLURM_SPANK_SYMVIRT", *vm_class));
  if (!name) return name.error();
  decision.vm_class = std::move(*name);
  if (const auto text = read(kControlFt)) {
    Result<Ft> ft = parse_ft(*text, assigned("SLURM_SPANK_SYMVIRT_FT", *text));
    if (!ft) return ft.error();
    decision.ft = *ft;
  }
  if (const auto text = read(kControlTimeout)) {
    Result<std::uint32_t> seconds =
        parse_quiesce_timeout(*text, assigned("SLURM_SPANK_SYMVIRT_QUIESCE_TIMEOUT", *text));
    if (!seconds) return seconds.error();
    decision.quiesce_timeout_s = *seconds;
  }
  return decision;
}

}  // namespace symvirt::plugin
