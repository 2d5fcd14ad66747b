// symvirtctl's text for people: pure functions from symvirtd's answers (docs/protocols.md section
// 1). Texts of others (node reasons, error messages) come out without control characters.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace symvirt {

// Columns as wide as they have to be; the last one runs free. Empty cells are "-".
class Table {
 public:
  explicit Table(std::vector<std::string> head) { rows_.push_back(std::move(head)); }
  void add(std::vector<std::string> row);
  bool empty() const { return rows_.size() == 1; }
  std::string text() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

std::string printable(const std::string& text);
std::string size_text(double bytes);       // "512 MiB"
std::string seconds_text(double seconds);  // "0.412 s", "14.2 s", "3 min 20 s"
std::string clock_text(double unix_s);     // "12:03:04", this machine's zone
std::string date_text(double unix_s);      // "2026-01-31 12:03:04"

std::string render_status(const nlohmann::json& answer);
std::string render_list(const nlohmann::json& answer);
std::string render_transaction(const nlohmann::json& transaction);
std::string render_devices(const nlohmann::json& answer);
std::string render_doctor(const nlohmann::json& answer);
std::string render_event(const nlohmann::json& event);

// "v1 hv1>hv3 45 % of 512 MiB, 95 MiB/s": a VM while it migrates. Empty: no figures.
std::string migration_text(const nlohmann::json& vm);
// The refreshing line: at most `width` characters.
std::string progress_line(const nlohmann::json& transaction, double now_s, std::size_t width);
// VMs that have work in the present phase.
std::vector<std::string> busy_vms(const nlohmann::json& transaction);

}  // namespace symvirt
