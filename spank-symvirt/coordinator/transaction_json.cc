// The journal's form of transactions and events. One list of fields a type serves both directions,
// so that a field cannot be written and then forgotten on reading. Old journals must stay readable:
// never rename a field, give new ones a default.
#include <array>
#include <utility>

#include "spank-symvirt/coordinator/transaction.h"

namespace symvirt {
namespace {

using nlohmann::json;

template <typename Enum>
struct NameTable {
  std::string_view name;
  Enum value;
};

constexpr std::array kKinds = {NameTable<TxKind>{"boot", TxKind::kBoot},
                               NameTable<TxKind>{"evacuate", TxKind::kEvacuate},
                               NameTable<TxKind>{"stop", TxKind::kStop}};
constexpr std::array kPhases = {
    NameTable<Phase>{"plan", Phase::kPlan},       NameTable<Phase>{"acquire", Phase::kAcquire},
    NameTable<Phase>{"prepare", Phase::kPrepare}, NameTable<Phase>{"start", Phase::kStart},
    NameTable<Phase>{"ready", Phase::kReady},     NameTable<Phase>{"quiesce", Phase::kQuiesce},
    NameTable<Phase>{"detach", Phase::kDetach},   NameTable<Phase>{"migrate", Phase::kMigrate},
    NameTable<Phase>{"locate", Phase::kLocate},   NameTable<Phase>{"attach", Phase::kAttach},
    NameTable<Phase>{"link", Phase::kLink},       NameTable<Phase>{"node_start", Phase::kNodeStart},
    NameTable<Phase>{"resume", Phase::kResume},   NameTable<Phase>{"stop", Phase::kStop},
    NameTable<Phase>{"release", Phase::kRelease}, NameTable<Phase>{"end", Phase::kEnd}};
constexpr std::array kWheres = {
    NameTable<Where>{"nowhere", Where::kNowhere}, NameTable<Where>{"source", Where::kSource},
    NameTable<Where>{"target", Where::kTarget}, NameTable<Where>{"unknown", Where::kUnknown}};
constexpr std::array kStatuses = {NameTable<StepStatus>{"idle", StepStatus::kIdle},
                                  NameTable<StepStatus>{"pending", StepStatus::kPending},
                                  NameTable<StepStatus>{"done", StepStatus::kDone},
                                  NameTable<StepStatus>{"failed", StepStatus::kFailed}};
constexpr std::array kOutcomes = {NameTable<Outcome>{"running", Outcome::kNone},
                                  NameTable<Outcome>{"done", Outcome::kDone},
                                  NameTable<Outcome>{"partial", Outcome::kPartial},
                                  NameTable<Outcome>{"restored", Outcome::kRestored},
                                  NameTable<Outcome>{"refused", Outcome::kRefused},
                                  NameTable<Outcome>{"failed", Outcome::kFailed}};
constexpr std::array kEvents = {NameTable<EventType>{"begun", EventType::kBegun},
                                NameTable<EventType>{"step_done", EventType::kStepDone},
                                NameTable<EventType>{"step_failed", EventType::kStepFailed},
                                NameTable<EventType>{"cancel", EventType::kCancel},
                                NameTable<EventType>{"recovered", EventType::kRecovered}};

const auto& names(TxKind) { return kKinds; }
const auto& names(Phase) { return kPhases; }
const auto& names(Where) { return kWheres; }
const auto& names(StepStatus) { return kStatuses; }
const auto& names(Outcome) { return kOutcomes; }
const auto& names(EventType) { return kEvents; }

template <typename Enum>
std::string_view enum_name(Enum value) {
  for (const auto& entry : names(value)) {
    if (entry.value == value) return entry.name;
  }
  return "?";
}

// put/get: one pair of overloads for every type a field may have. get throws json exceptions or
// out_of_range; only this file's two readers see them.
struct Writer {
  json& j;
  template <typename T>
  void operator()(const char* name, const T& value) {
    j[name] = put(value);
  }
  template <typename T>
  static json put(const T& value);
};

struct Reader {
  const json& j;
  std::string missing_or_wrong;
  template <typename T>
  void operator()(const char* name, T& value) {
    if (!missing_or_wrong.empty()) return;
    auto it = j.find(name);
    if (it == j.end()) return;  // an older journal: the default stays
    if (!get(*it, value)) missing_or_wrong = name;
  }
  template <typename T>
  static bool get(const json& j, T& value);
};

template <typename F>
void fields(TxPolicy& p, F& f) {
  f("quiesce_ms", p.quiesce_ms);
  f("acquire_ms", p.acquire_ms);
  f("boot_ms", p.boot_ms);
  f("step_ms", p.step_ms);
  f("migrate_ms", p.migrate_ms);
  f("park_ms", p.park_ms);
  f("fence_after_ms", p.fence_after_ms);
  f("lease_ms", p.lease_ms);
}

template <typename F>
void fields(PhaseTime& t, F& f) {
  f("phase", t.phase);
  f("begin_ns", t.begin_ns);
  f("end_ns", t.end_ns);
}

template <typename F>
void fields(TimeLimit& l, F& f) {
  f("job", l.job);
  f("minutes", l.minutes);
}

template <typename F>
void fields(Error& e, F& f) {
  f("code", e.code);
  f("message", e.message);
}

template <typename F>
void fields(Silence& s, F& f) {
  f("since_ns", s.since_ns);
  f("looks", s.looks);
}

template <typename F>
void fields(VmPart& v, F& f) {
  f("vm", v.vm);
  f("class", v.vm_class);
  f("jobs", v.jobs);
  f("wanted", v.wanted);
  f("moving", v.moving);
  f("from", v.from);
  f("from_job", v.from_job);
  f("to", v.to);
  f("to_job", v.to_job);
  f("acquire_begun", v.acquire_begun);
  f("prepare_begun", v.prepare_begun);
  f("rest_begun", v.rest_begun);
  f("detach_begun", v.detach_begun);
  f("start_begun", v.start_begun);
  f("at", v.at);
  f("has_device", v.has_device);
  f("linked", v.linked);
  f("more", v.more);
  f("waits", v.waits);
  f("source_fenced", v.source_fenced);
  f("target_fenced", v.target_fenced);
  f("lost", v.lost);
  f("seen_source", v.seen_source);
  f("seen_target", v.seen_target);
  f("source_silence", v.source_silence);
  f("target_silence", v.target_silence);
  f("failure", v.failure);
  f("status", v.status);
  f("attempt", v.attempt);
  f("tries", v.tries);
  f("not_before_ns", v.not_before_ns);
  f("last_error", v.last_error);
  f("fencing", v.fencing);
  f("fence_host", v.fence_host);
  f("migrate_bytes", v.migrate_bytes);
  f("downtime_ms", v.downtime_ms);
}

template <typename F>
void fields(Transaction& t, F& f) {
  f("id", t.id);
  f("kind", t.kind);
  f("cause", t.cause);
  f("avoid_hosts", t.avoid_hosts);
  f("policy", t.policy);
  f("vms", t.vms);
  f("phase", t.phase);
  f("round", t.round);
  f("round_begin_ns", t.round_begin_ns);
  f("payloads", t.payloads);
  f("cancel_requested", t.cancel_requested);
  f("boot_failed", t.boot_failed);
  f("hopeless", t.hopeless);
  f("phase_begin_ns", t.phase_begin_ns);
  f("tried_since_ns", t.tried_since_ns);
  f("times", t.times);
  f("time_limits", t.time_limits);
  f("begun_ns", t.begun_ns);
  f("ended_ns", t.ended_ns);
  f("outcome", t.outcome);
  f("parked", t.parked);
}

template <typename F>
void fields(Event& e, F& f) {
  f("type", e.type);
  f("tx", e.tx);
  f("time_ns", e.time_ns);
  f("begun", e.begun);
  f("vm", e.vm);
  f("phase", e.phase);
  f("round", e.round);
  f("tries", e.tries);
  f("result", e.result);
  f("error", e.error);
  f("final", e.final);
}

template <typename T>
struct IsOptional : std::false_type {};
template <typename T>
struct IsOptional<std::optional<T>> : std::true_type {};
template <typename T>
struct IsVector : std::false_type {};
template <typename T>
struct IsVector<std::vector<T>> : std::true_type {};

template <typename T>
json Writer::put(const T& value) {
  if constexpr (std::is_same_v<T, Code>) {
    return std::string(code_name(value));
  } else if constexpr (std::is_enum_v<T>) {
    return std::string(enum_name(value));
  } else if constexpr (std::is_arithmetic_v<T> || std::is_same_v<T, std::string> ||
                       std::is_same_v<T, json>) {
    return value;
  } else if constexpr (IsOptional<T>::value) {
    return value ? put(*value) : json();
  } else if constexpr (IsVector<T>::value) {
    json list = json::array();
    for (const auto& item : value) list.push_back(put(item));
    return list;
  } else {
    json object = json::object();
    Writer writer{object};
    fields(const_cast<T&>(value), writer);
    return object;
  }
}

template <typename T>
bool Reader::get(const json& j, T& value) {
  if constexpr (std::is_same_v<T, json>) {
    value = j;
    return true;
  } else if constexpr (std::is_same_v<T, bool>) {
    if (!j.is_boolean()) return false;
    value = j.get<bool>();
    return true;
  } else if constexpr (std::is_same_v<T, std::string>) {
    if (!j.is_string()) return false;
    value = j.get<std::string>();
    return true;
  } else if constexpr (std::is_same_v<T, Code>) {
    const auto code = j.is_string() ? code_from_name(j.get<std::string>()) : std::nullopt;
    if (!code) return false;
    value = *code;
    return true;
  } else if constexpr (std::is_enum_v<T>) {
    if (!j.is_string()) return false;
    const std::string text = j.get<std::string>();
    for (const auto& entry : names(value)) {
      if (entry.name == text) {
        value = entry.value;
        return true;
      }
    }
    return false;
  } else if constexpr (std::is_integral_v<T>) {
    if (!j.is_number_integer()) return false;
    const std::int64_t number = j.get<std::int64_t>();
    if (!std::in_range<T>(number)) return false;
    value = static_cast<T>(number);
    return true;
  } else if constexpr (IsOptional<T>::value) {
    if (j.is_null()) {
      value.reset();
      return true;
    }
    value.emplace();
    return get(j, *value);
  } else if constexpr (IsVector<T>::value) {
    if (!j.is_array()) return false;
    value.clear();
    for (const json& item : j) {
      if (!get(item, value.emplace_back())) return false;
    }
    return true;
  } else {
    if (!j.is_object()) return false;
    Reader reader{j, {}};
    fields(value, reader);
    return reader.missing_or_wrong.empty();
  }
}

template <typename T>
Result<T> read(const json& j, const char* what) {
  if (!j.is_object()) return Error{Code::kInvalidArgument, std::string(what) + ": not an object"};
  T value;
  Reader reader{j, {}};
  fields(value, reader);
  if (reader.missing_or_wrong.empty()) return value;
  return Error{Code::kInvalidArgument,
               std::string(what) + ": field " + reader.missing_or_wrong + " cannot be read"};
}

}  // namespace

json to_json(const Transaction& tx) { return Writer::put(tx); }
json to_json(const Event& event) { return Writer::put(event); }

Result<Transaction> transaction_from_json(const json& j) {
  Result<Transaction> tx = read<Transaction>(j, "transaction");
  if (tx && (!j.contains("id") || !j.contains("kind")))
    return Error{Code::kInvalidArgument, "transaction: no id or kind"};
  return tx;
}

Result<Event> event_from_json(const json& j) {
  Result<Event> event = read<Event>(j, "event");
  if (!event) return event;
  if (!j.contains("type") || !j.contains("tx"))
    return Error{Code::kInvalidArgument, "event: no type or tx"};
  if (event->type == EventType::kBegun && !event->begun)
    return Error{Code::kInvalidArgument, "event: begun without transaction"};
  return event;
}

std::string_view name_of(TxKind kind) { return enum_name(kind); }
std::string_view name_of(Phase phase) { return enum_name(phase); }
std::string_view name_of(Outcome outcome) { return enum_name(outcome); }
std::string_view name_of(Where where) { return enum_name(where); }

std::optional<Phase> phase_from_name(std::string_view name) {
  for (const auto& entry : kPhases) {
    if (entry.name == name) return entry.value;
  }
  return std::nullopt;
}

}  // namespace symvirt
