// libpmix, found in the process instead of linked: both of our objects are loaded into processes
// that may have no PMIx at all (ls under LD_PRELOAD, sbatch with the plugin), and slurmstepd and
// Open MPI load theirs with dlopen.
//
// The types come from PMIx's header, whose layout is part of its ABI (libpmix.so.2); its macros
// that would call into the library are not used.
#pragma once

#include <pmix.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "pmix-hooks/message.h"

namespace symvirt::hooks {

struct PmixApi {
  decltype(&PMIx_Initialized) initialized = nullptr;
  decltype(&PMIx_Register_event_handler) register_handler = nullptr;
  decltype(&PMIx_Deregister_event_handler) deregister_handler = nullptr;
  decltype(&PMIx_Notify_event) notify = nullptr;

  bool complete() const { return initialized && register_handler && deregister_handler && notify; }

  // The functions of the libpmix.so.2 that this process has loaded already; incomplete when it has
  // none. The library stays loaded from then on (one reference is kept).
  static PmixApi find();
};

// A symbol of the loaded libpmix: behind the caller's own object in the global scope, or in a
// library that was opened with RTLD_LOCAL (Debian's Open MPI). nullptr when there is none.
void* find_pmix_symbol(const char* name);

// The infos of one of our events. Owns what they point to; must outlive the call's callback, since
// PMIx keeps the pointer (registration and notification are asynchronous).
class EventInfo {
 public:
  explicit EventInfo(std::string message);
  // For the listed processes of nspace only (PMIX_EVENT_CUSTOM_RANGE; use range PMIX_RANGE_CUSTOM
  // with it). No rank twice: PMIx gives an event to one process of a rank.
  EventInfo(std::string message, const char* nspace, const std::vector<Recipient>& recipients);
  EventInfo(const EventInfo&) = delete;
  EventInfo& operator=(const EventInfo&) = delete;

  pmix_info_t* data() { return infos_.data(); }
  std::size_t size() const { return infos_.size(); }

 private:
  // An array of PMIx's that refers to processes of ours.
  struct Procs {
    std::vector<pmix_proc_t> procs;
    pmix_data_array_t array{};
  };

  pmix_info_t* add(const char* key, pmix_data_type_t type);
  void add_common();
  void add_procs(const char* key, Procs& procs);

  std::string message_;
  Procs range_;
  Procs affected_;
  std::vector<pmix_info_t> infos_;
};

// Sends one event. `wait`: until PMIx has handed it on (a client: until the server has it) or
// timeout_ms have passed; otherwise returns at once. Never call it in an event handler. Takes care
// of the infos' lifetime.
bool send_event(const PmixApi& api, int code, const pmix_proc_t& source, pmix_data_range_t range,
                std::unique_ptr<EventInfo> info, int wait_ms);

// Registers a handler and waits (at most wait_ms) until it is in force. Not from within a handler.
// With a pid, events with recipients reach it only when that process is one of them.
struct Registration {
  bool ok = false;
  std::size_t id = 0;
};
Registration register_events(const PmixApi& api, std::vector<pmix_status_t> codes,
                             pmix_notification_fn_t handler, int wait_ms,
                             const pmix_proc_t* self = nullptr, std::int32_t pid = 0);

pmix_proc_t make_proc(const char* nspace, std::uint32_t rank);
// The text of our info in a received event, or nothing. Points into the event.
std::string_view event_message(const pmix_info_t* info, std::size_t ninfo);

}  // namespace symvirt::hooks
