#include "pmix-hooks/pmix_api.h"

#include <dlfcn.h>

#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>

#include "pmix-hooks/message.h"

namespace symvirt::hooks {
namespace {

void copy_text(char* to, const char* from, std::size_t size) {
  to[std::string_view(from).copy(to, size - 1)] = '\0';
}

template <typename F>
void load(F& function, const char* name) {
  function = reinterpret_cast<F>(find_pmix_symbol(name));
}

}  // namespace

void* find_pmix_symbol(const char* name) {
  if (void* symbol = dlsym(RTLD_NEXT, name)) return symbol;
  // Matches by soname whatever path it was opened with. Never closed: our threads and callbacks may
  // still be in it.
  void* library = dlopen("libpmix.so.2", RTLD_LAZY | RTLD_LOCAL | RTLD_NOLOAD);
  if (library == nullptr) return nullptr;
  return dlsym(library, name);
}

PmixApi PmixApi::find() {
  PmixApi api;
  load(api.initialized, "PMIx_Initialized");
  load(api.register_handler, "PMIx_Register_event_handler");
  load(api.deregister_handler, "PMIx_Deregister_event_handler");
  load(api.notify, "PMIx_Notify_event");
  return api;
}

pmix_proc_t make_proc(const char* nspace, std::uint32_t rank) {
  pmix_proc_t proc{};
  copy_text(proc.nspace, nspace, sizeof proc.nspace);
  proc.rank = rank;
  return proc;
}

namespace {

pmix_info_t make_info(const char* key, pmix_data_type_t type) {
  pmix_info_t info;
  std::memset(&info, 0, sizeof info);
  copy_text(info.key, key, sizeof info.key);
  info.value.type = type;
  return info;
}

// PMIx's server finds the receivers of an event by what they registered for, and gives it to the
// first process of each rank (src/event/pmix_event_notification.c of 4.2, _notify_client_event: it
// remembers whom it has told by rank). Before that it leaves out those who want to hear of other
// "affected processes" only. We affect no process, and write the pid where the rank belongs.
pmix_proc_t affected_by_pid(const char* nspace, std::int32_t pid) {
  return make_proc(nspace, static_cast<std::uint32_t>(pid));
}

}  // namespace

pmix_info_t* EventInfo::add(const char* key, pmix_data_type_t type) {
  return &infos_.emplace_back(make_info(key, type));
}

void EventInfo::add_common() {
  // Without this one, default handlers get the event too: Slurm's kills the step, Open MPI's aborts
  // the job.
  add(PMIX_EVENT_NON_DEFAULT, PMIX_BOOL)->value.data.flag = true;
  // Or the server would hand the event to every client that registers later: a quiesce long over.
  add(PMIX_EVENT_DO_NOT_CACHE, PMIX_BOOL)->value.data.flag = true;
  add(kMessageKey, PMIX_STRING)->value.data.string = message_.data();
}

EventInfo::EventInfo(std::string message) : message_(std::move(message)) { add_common(); }

void EventInfo::add_procs(const char* key, Procs& procs) {
  procs.array.type = PMIX_PROC;
  procs.array.size = procs.procs.size();
  procs.array.array = procs.procs.data();
  add(key, PMIX_DATA_ARRAY)->value.data.darray = &procs.array;
}

EventInfo::EventInfo(std::string message, const char* nspace,
                     const std::vector<Recipient>& recipients)
    : message_(std::move(message)) {
  add_common();
  for (const Recipient& recipient : recipients) {
    range_.procs.push_back(make_proc(nspace, recipient.rank));
    affected_.procs.push_back(affected_by_pid(nspace, recipient.pid));
  }
  add_procs(PMIX_EVENT_CUSTOM_RANGE, range_);
  add_procs(PMIX_EVENT_AFFECTED_PROCS, affected_);
}

namespace {

// What an asynchronous PMIx call needs until its callback: shared by the caller, who may give up
// waiting, and PMIx.
struct Pending {
  std::unique_ptr<EventInfo> info;
  std::vector<pmix_status_t> codes;
  std::vector<pmix_info_t> directives;
  pmix_proc_t source{};
  pmix_proc_t affected{};
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
  bool ok = false;
  std::size_t id = 0;

  void finish(pmix_status_t status, std::size_t reference) {
    const std::lock_guard lock(mutex);
    done = true;
    ok = status == PMIX_SUCCESS;
    id = reference;
    changed.notify_all();
  }
  bool wait(int wait_ms) {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, std::chrono::milliseconds(wait_ms), [this] { return done; }) &&
           ok;
  }
};
using PendingRef = std::shared_ptr<Pending>;

// PMIx's reference to it: a heap copy of the shared pointer, given back by the callback.
void* hand_over(const PendingRef& pending) { return new PendingRef(pending); }
PendingRef take_back(void* data) {
  const std::unique_ptr<PendingRef> reference(static_cast<PendingRef*>(data));
  return *reference;
}

void notified(pmix_status_t status, void* data) { take_back(data)->finish(status, 0); }
void registered(pmix_status_t status, std::size_t id, void* data) {
  take_back(data)->finish(status, id);
}

}  // namespace

bool send_event(const PmixApi& api, int code, const pmix_proc_t& source, pmix_data_range_t range,
                std::unique_ptr<EventInfo> info, int wait_ms) {
  auto pending = std::make_shared<Pending>();
  pending->info = std::move(info);
  pending->source = source;
  void* reference = hand_over(pending);
  const pmix_status_t status = api.notify(code, &pending->source, range, pending->info->data(),
                                          pending->info->size(), notified, reference);
  if (status != PMIX_SUCCESS) {  // then the callback is not called
    take_back(reference);
    return status == PMIX_OPERATION_SUCCEEDED;
  }
  return wait_ms <= 0 || pending->wait(wait_ms);
}

Registration register_events(const PmixApi& api, std::vector<pmix_status_t> codes,
                             pmix_notification_fn_t handler, int wait_ms, const pmix_proc_t* self,
                             std::int32_t pid) {
  auto pending = std::make_shared<Pending>();
  pending->codes = std::move(codes);
  if (self != nullptr) {
    pending->affected = affected_by_pid(self->nspace, pid);
    pending->directives.push_back(make_info(PMIX_EVENT_AFFECTED_PROC, PMIX_PROC));
    pending->directives[0].value.data.proc = &pending->affected;
  }
  void* reference = hand_over(pending);
  // With a callback the return value only says whether the request was taken (the callback then
  // always comes).
  const pmix_status_t status =
      api.register_handler(pending->codes.data(), pending->codes.size(), pending->directives.data(),
                           pending->directives.size(), handler, registered, reference);
  if (status != PMIX_SUCCESS) {
    take_back(reference);
    return {};
  }
  if (!pending->wait(wait_ms)) return {};
  const std::lock_guard lock(pending->mutex);
  return {true, pending->id};
}

std::string_view event_message(const pmix_info_t* info, std::size_t ninfo) {
  for (std::size_t i = 0; i < ninfo; ++i) {
    if (std::strncmp(info[i].key, kMessageKey, sizeof info[i].key) != 0) continue;
    if (info[i].value.type != PMIX_STRING || info[i].value.data.string == nullptr) continue;
    return info[i].value.data.string;
  }
  return {};
}

}  // namespace symvirt::hooks
