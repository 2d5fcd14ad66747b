#include "spank-symvirt/cli/render.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <ctime>

#include "spank-symvirt/cli/fields.h"

namespace symvirt {

using nlohmann::json;

namespace {

bool continues_character(char c) { return (static_cast<unsigned char>(c) & 0xc0) == 0x80; }

std::size_t width_of(const std::string& text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return !continues_character(c); }));
}

std::string joined(const json& list) {
  std::string out;
  for (const json& item : list) {
    if (!out.empty()) out += " ";
    out += item.is_string() ? item.get<std::string>() : json_line(item);
  }
  return out;
}

std::string time_text(double unix_s, const char* format) {
  const std::time_t t = static_cast<std::time_t>(unix_s);
  std::tm local{};
  char buffer[64] = "";
  if (t > 0 && localtime_r(&t, &local) != nullptr)
    std::strftime(buffer, sizeof buffer, format, &local);
  return buffer;
}

std::string id_text(const json& j, const char* key) {
  const std::int64_t id = integer_of(j, key);
  return id == 0 ? "" : std::to_string(id);
}

bool ended(const json& tx) { return text_of(tx, "outcome") != "running"; }

std::string names_of_vms(const json& tx) {
  std::string out;
  for (const json& vm : list_of(tx, "vms")) {
    if (!out.empty()) out += " ";
    out += text_of(vm, "vm");
  }
  return out;
}

std::string failure_text(const json& error) {
  return fmt::format("{}: {}", text_of(error, "code"), text_of(error, "message"));
}

// What became of one VM, in a few words.
std::string vm_result(const json& tx, const json& vm) {
  if (const json& failure = field_of(vm, "failure"); failure.is_object())
    return failure_text(failure);
  if (const json& error = field_of(vm, "last_error"); error.is_object())
    return fmt::format("try {} after {}", integer_of(vm, "tries"), failure_text(error));
  const std::string kind = text_of(tx, "kind");
  if (!ended(tx)) {
    const std::string figures = migration_text(vm);
    return figures.empty() ? text_of(vm, "step") : figures;
  }
  if (kind == "boot") return text_of(vm, "at") == "target" ? "started" : "not started";
  if (kind == "stop") return "stopped";
  if (!flag_of(vm, "wanted")) return "stayed; shares a job with one that was to move";
  return text_of(vm, "at") == "target" ? "moved" : "stayed";
}

std::string transactions_table(const json& list) {
  Table table({"ID", "KIND", "BEGUN", "PHASE", "TOOK", "PAUSE", "VMS", "CAUSE"});
  for (const json& tx : list) {
    const double pause = number_of(tx, "pause_s");
    table.add({id_text(tx, "id"), text_of(tx, "kind"), date_text(number_of(tx, "begun_s")),
               ended(tx) ? text_of(tx, "outcome") : text_of(tx, "phase"),
               ended(tx) ? seconds_text(number_of(tx, "seconds")) : "",
               pause > 0 ? seconds_text(pause) : "", names_of_vms(tx), text_of(tx, "cause")});
  }
  return table.text();
}

std::string waiting_text(const json& list) {
  std::string out;
  for (const json& tx : list) {
    if (const std::string parked = text_of(tx, "parked"); !parked.empty())
      out += fmt::format("{} waits: {}\n", integer_of(tx, "id"), printable(parked));
  }
  return out;
}

}  // namespace

void Table::add(std::vector<std::string> row) {
  for (std::string& cell : row) cell = cell.empty() ? "-" : printable(cell);
  rows_.push_back(std::move(row));
}

std::string Table::text() const {
  std::vector<std::size_t> widths(rows_[0].size(), 0);
  for (const auto& row : rows_) {
    for (std::size_t i = 0; i < row.size() && i < widths.size(); ++i)
      widths[i] = std::max(widths[i], width_of(row[i]));
  }
  std::string out;
  for (const auto& row : rows_) {
    for (std::size_t i = 0; i < row.size(); ++i) {
      out += row[i];
      if (i + 1 < row.size()) out.append(widths[i] - width_of(row[i]) + 2, ' ');
    }
    out += "\n";
  }
  return out;
}

std::string printable(const std::string& text) {
  std::string out = text;
  for (char& c : out) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  }
  return out;
}

std::string size_text(double bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  std::size_t unit = 0;
  while (bytes >= 1024 && unit + 1 < std::size(kUnits)) {
    bytes /= 1024;
    ++unit;
  }
  return fmt::format("{:.{}f} {}", bytes, bytes < 10 && unit > 0 ? 1 : 0, kUnits[unit]);
}

std::string seconds_text(double seconds) {
  if (seconds < 10) return fmt::format("{:.3f} s", seconds);
  if (seconds < 120) return fmt::format("{:.1f} s", seconds);
  const auto whole = static_cast<std::int64_t>(std::llround(seconds));
  if (whole < 7200) return fmt::format("{} min {} s", whole / 60, whole % 60);
  return fmt::format("{} h {} min", whole / 3600, whole % 3600 / 60);
}

std::string clock_text(double unix_s) { return time_text(unix_s, "%H:%M:%S"); }
std::string date_text(double unix_s) { return time_text(unix_s, "%F %T"); }

std::string render_status(const json& answer) {
  std::string out =
      fmt::format("symvirtd: generation {}; slurmctld {}\n\n", integer_of(answer, "generation"),
                  flag_of(answer, "slurm_answers")
                      ? std::string("answers")
                      : "does not answer: " + printable(text_of(answer, "slurm_error")));
  Table hosts({"HOST", "SLURM", "NODED", "VMS", "NOTE"});
  for (const json& h : list_of(answer, "hosts")) {
    std::string note = text_of(h, "reason");
    if (const std::string error = text_of(h, "error"); !error.empty())
      note += (note.empty() ? "" : "; ") + error;
    hosts.add({text_of(h, "host"), text_of(h, "slurm_state"),
               flag_of(h, "answers") ? "answers" : "silent", joined(list_of(h, "vms")), note});
  }
  Table vms({"VM", "CLASS", "HOST", "SLURM", "LAUNCHER", "TRANSACTION", "NOTE"});
  for (const json& v : list_of(answer, "vms")) {
    const std::string note = text_of(v, "note");
    vms.add({text_of(v, "vm"), text_of(v, "class"), text_of(v, "host"), text_of(v, "slurm_state"),
             id_text(v, "launcher_job"), id_text(v, "transaction"),
             note.empty() ? text_of(v, "reason") : note});
  }
  out += hosts.text() + "\n" + vms.text() + "\n";
  const json& live = list_of(answer, "transactions");
  out += live.empty() ? "No transaction is running.\n" : transactions_table(live);
  return out + waiting_text(live);
}

std::string render_list(const json& answer) {
  const json& list = list_of(answer, "transactions");
  if (list.empty()) return "No transactions.\n";
  return transactions_table(list) + waiting_text(list);
}

std::string render_transaction(const json& tx) {
  std::string out = fmt::format("{} {}: {}", text_of(tx, "kind"), integer_of(tx, "id"),
                                ended(tx) ? text_of(tx, "outcome") : "in " + text_of(tx, "phase"));
  if (ended(tx)) out += " in " + seconds_text(number_of(tx, "seconds"));
  if (const double pause = number_of(tx, "pause_s"); pause > 0)
    out += ", the ranks rested " + seconds_text(pause);
  out += fmt::format("\ncause: {}\nbegun: {}\n", printable(text_of(tx, "cause")),
                     date_text(number_of(tx, "begun_s")));
  if (!list_of(tx, "jobs").empty()) out += "jobs: " + joined(list_of(tx, "jobs")) + "\n";
  if (flag_of(tx, "cancel_requested")) out += "a cancel was requested\n";
  if (const std::string parked = text_of(tx, "parked"); !parked.empty())
    out += "waits: " + printable(parked) + "\n";
  Table vms({"VM", "FROM", "TO", "NOW ON", "COPIED", "RESULT"});
  for (const json& vm : list_of(tx, "vms")) {
    const double copied = number_of(vm, "transferred_bytes");
    vms.add({text_of(vm, "vm"), text_of(vm, "from"), text_of(vm, "to"),
             text_of(vm, "at") == "unknown" ? "unknown" : text_of(vm, "host"),
             copied > 0 ? size_text(copied) : "", vm_result(tx, vm)});
  }
  Table phases({"PHASE", "BEGAN AFTER", "TOOK"});
  for (const json& p : list_of(tx, "phases")) {
    phases.add({text_of(p, "name"), seconds_text(number_of(p, "begin_s")),
                field_of(p, "seconds").is_number() ? seconds_text(number_of(p, "seconds")) : ""});
  }
  out += "\n" + vms.text();
  if (!phases.empty()) out += "\n" + phases.text();
  return out;
}

namespace {

// -1 is noded's "none".
std::string known_number(const json& j, const char* key) {
  const json& number = field_of(j, key);
  return number.is_number_integer() && number != -1 ? json_line(number) : "";
}

// "ens3f0 up, mlx5_0/1 active"
std::string ports_text(const json& device) {
  std::string out;
  for (const json& port : list_of(device, "ports")) {
    out += fmt::format("{}{} {}", out.empty() ? "" : ", ", text_of(port, "port"),
                       text_of(port, "state"));
  }
  return out;
}

}  // namespace

std::string render_devices(const json& answer) {
  Table table({"HOST", "DEVICE", "GRES", "STATE", "VM", "NUMA", "PCI", "SR-IOV", "IOMMU", "DRIVER",
               "PORTS", "DESCRIPTION"});
  std::string problems;
  for (const json& d : list_of(answer, "devices")) {
    const std::string pf = text_of(d, "pf");
    table.add({text_of(d, "host"), text_of(d, "device"), text_of(d, "gres"), text_of(d, "state"),
               text_of(d, "vm"), known_number(d, "numa_node"), text_of(d, "pci"),
               pf.empty() ? "" : fmt::format("VF {} of {}", known_number(d, "vf"), pf),
               known_number(d, "iommu_group"), text_of(d, "driver"), ports_text(d),
               text_of(d, "description")});
    if (const std::string problem = text_of(d, "problem"); !problem.empty())
      problems += fmt::format("{} {}: cannot be given to a VM: {}\n", printable(text_of(d, "host")),
                              printable(text_of(d, "device")), printable(problem));
  }
  return table.empty() ? "No host has told of a device yet; see symvirtctl doctor.\n"
                       : table.text() + problems;
}

std::string render_doctor(const json& answer) {
  std::string out;
  int bad = 0;
  for (const json& c : list_of(answer, "checks")) {
    const bool ok = flag_of(c, "ok");
    bad += ok ? 0 : 1;
    out += fmt::format("{:4} {}: {}\n", ok ? "ok" : "BAD", printable(text_of(c, "check")),
                       printable(text_of(c, "detail")));
    if (const std::string advice = text_of(c, "advice"); !advice.empty())
      out += "       -> " + printable(advice) + "\n";
  }
  return out + (bad == 0 ? std::string("All is well.\n")
                         : fmt::format("{} of {} checks found something.\n", bad,
                                       list_of(answer, "checks").size()));
}

std::string render_event(const json& event) {
  const std::string time = clock_text(number_of(event, "time_s"));
  if (text_of(event, "event") == "progress") {
    const json vm = {{"vm", text_of(event, "vm")}, {"progress", field_of(event, "progress")}};
    return fmt::format("{} {}: {}\n", time, integer_of(event, "tx"), migration_text(vm));
  }
  return fmt::format("{} {}\n", time, printable(text_of(event, "message")));
}

std::string migration_text(const json& vm) {
  const json& progress = field_of(vm, "progress");
  if (!progress.is_object()) return "";
  const double done = number_of(progress, "done_bytes"), total = number_of(progress, "total_bytes");
  std::string out = text_of(vm, "vm");
  if (!text_of(vm, "to").empty())
    out += fmt::format(" {}>{}", text_of(vm, "from"), text_of(vm, "to"));
  // Pages that are written again are copied again, so the sum may pass the total.
  if (total > 0)
    out += fmt::format(" {:.0f} % of {}", std::min(100.0, 100 * done / total), size_text(total));
  else
    out += " " + size_text(done);
  if (const double rate = number_of(progress, "rate_bytes_s"); rate > 0)
    out += fmt::format(", {}/s", size_text(rate));
  return printable(out);
}

std::vector<std::string> busy_vms(const json& tx) {
  std::vector<std::string> out;
  for (const json& vm : list_of(tx, "vms")) {
    if (text_of(vm, "step") != "idle") out.push_back(text_of(vm, "vm"));
  }
  return out;
}

std::string progress_line(const json& tx, double now_s, std::size_t width) {
  const double elapsed = std::max(0.0, now_s - number_of(tx, "begun_s"));
  std::string out = fmt::format("{} {} [{:.0f} s] {}", text_of(tx, "kind"), integer_of(tx, "id"),
                                elapsed, text_of(tx, "phase"));
  std::string figures;
  for (const json& vm : list_of(tx, "vms")) {
    const std::string text = migration_text(vm);
    if (!text.empty()) figures += (figures.empty() ? "" : "; ") + text;
  }
  if (figures.empty()) {
    for (const json& vm : list_of(tx, "vms")) {
      const std::string step = text_of(vm, "step");
      if (step == "idle") continue;
      figures += fmt::format("{}{}{}", figures.empty() ? "" : ", ", text_of(vm, "vm"),
                             step == "working" ? "" : " " + step);
    }
  }
  if (!figures.empty()) out += ": " + figures;
  if (const std::string parked = text_of(tx, "parked"); !parked.empty())
    out += "; waits: " + parked;
  out = printable(out);
  std::size_t bytes = 0, shown = 0;
  for (; bytes < out.size(); ++bytes) {
    if (!continues_character(out[bytes]) && shown++ == width) break;
  }
  return out.substr(0, bytes);
}

}  // namespace symvirt
