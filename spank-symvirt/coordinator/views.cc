#include "spank-symvirt/coordinator/views.h"

#include <fmt/format.h>

namespace symvirt {

using nlohmann::json;

namespace {

double seconds(std::int64_t ns) { return static_cast<double>(ns) / 1e9; }

json error_view(const Error& error) {
  return {{"code", std::string(code_name(error.code))}, {"message", error.message}};
}

std::string step_text(StepStatus status) {
  switch (status) {
    case StepStatus::kIdle:
      return "idle";
    case StepStatus::kPending:
      return "working";
    case StepStatus::kDone:
      return "done";
    case StepStatus::kFailed:
      return "failed";
  }
  return "";
}

json vm_view(const Transaction& tx, const VmPart& vm, const LiveProgress& progress) {
  json j = {{"vm", vm.vm},
            {"class", vm.vm_class},
            {"from", vm.from},
            {"to", vm.to},
            {"at", std::string(name_of(vm.at))},
            {"host", vm.host()},
            {"wanted", vm.wanted},
            {"moving", vm.moving},
            {"jobs", vm.jobs},
            {"step", step_text(vm.status)},
            {"tries", vm.tries},
            {"launcher_job", vm.at == Where::kTarget ? vm.to_job : vm.from_job},
            {"transferred_bytes", vm.migrate_bytes}};
  if (vm.failure) j["failure"] = error_view(*vm.failure);
  if (vm.last_error && vm.status == StepStatus::kPending)
    j["last_error"] = error_view(*vm.last_error);
  if (auto it = progress.find({tx.id, vm.vm}); it != progress.end() && tx.phase == Phase::kMigrate)
    j["progress"] = it->second;
  return j;
}

}  // namespace

json view_of(const Transaction& tx, const LiveProgress& progress) {
  json vms = json::array(), phases = json::array(), jobs = json::array();
  for (const VmPart& vm : tx.vms) {
    vms.push_back(vm_view(tx, vm, progress));
    for (std::uint32_t job : vm.jobs) {
      if (std::find(jobs.begin(), jobs.end(), job) == jobs.end()) jobs.push_back(job);
    }
  }
  for (const PhaseTime& t : tx.times) {
    json phase = {{"name", std::string(name_of(t.phase))},
                  {"begin_s", seconds(t.begin_ns - tx.begun_ns)}};
    if (t.end_ns != 0) phase["seconds"] = seconds(t.end_ns - t.begin_ns);
    phases.push_back(std::move(phase));
  }
  json j = {{"schema_version", kSchemaVersion},
            {"id", tx.id},
            {"kind", std::string(name_of(tx.kind))},
            {"cause", tx.cause},
            {"phase", std::string(name_of(tx.phase))},
            {"round", tx.round},
            {"outcome", std::string(name_of(tx.outcome))},
            {"parked", tx.parked},
            {"cancel_requested", tx.cancel_requested},
            {"begun_s", seconds(tx.begun_ns)},
            {"vms", vms},
            {"jobs", jobs},
            {"phases", phases},
            {"pause_s", seconds(pause_ns(tx))}};
  if (tx.ended()) {
    j["ended_s"] = seconds(tx.ended_ns);
    j["seconds"] = seconds(tx.ended_ns - tx.begun_ns);
  }
  return j;
}

json view_of(const Event& event, const Transaction& tx) {
  json j = {{"schema_version", kSchemaVersion},
            {"time_s", seconds(event.time_ns)},
            {"tx", event.tx},
            {"kind", std::string(name_of(tx.kind))}};
  switch (event.type) {
    case EventType::kBegun: {
      j["event"] = "begun";
      j["message"] = fmt::format("{} {} begun: {}", name_of(tx.kind), tx.id, tx.cause);
      break;
    }
    case EventType::kStepDone:
    case EventType::kStepFailed: {
      const bool ok = event.type == EventType::kStepDone;
      j["event"] = ok ? "step_done" : "step_failed";
      j["phase"] = std::string(name_of(event.phase));
      j["vm"] = event.vm;
      if (event.error) j["error"] = error_view(*event.error);
      j["message"] = fmt::format("{} {}: {}{}{}", name_of(tx.kind), tx.id,
                                 event.vm.empty() ? "" : event.vm + " ", name_of(event.phase),
                                 event.error       ? " failed: " + event.error->message
                                 : event.round > 1 ? fmt::format(" round {} done", event.round)
                                                   : " done");
      break;
    }
    case EventType::kCancel:
      j["event"] = "cancel";
      j["message"] = fmt::format("{} {}: cancel requested", name_of(tx.kind), tx.id);
      break;
    case EventType::kRecovered:
      j["event"] = "recovered";
      j["message"] =
          fmt::format("{} {}: taken up again in {}", name_of(tx.kind), tx.id, name_of(tx.phase));
      break;
  }
  j["state"] = {{"phase", std::string(name_of(tx.phase))},
                {"outcome", std::string(name_of(tx.outcome))},
                {"parked", tx.parked}};
  if (tx.ended())
    j["message"] =
        j["message"].get<std::string>() + fmt::format("; ended: {}", name_of(tx.outcome));
  return j;
}

}  // namespace symvirt
