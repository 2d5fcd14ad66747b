// libsymvirt_hooks.so: preloaded into every process of a --symvirt job's tasks.
//
// A task is often a shell script, and that starts dozens of programs: all of them load this object
// and must not notice. So no constructor does anything but store a pointer; nothing happens before
// a process calls PMIx_Init, which only ranks do (Open MPI through its mca_pmix_ext3x, which dlopen
// brought in: a preloaded symbol still comes first). Then:
//
// * first PMIx_Init that succeeded: register the event handler, start the agent's thread, say
//   HELLO: a member now;
// * last PMIx_Finalize, before it: deregister (blocking), join the thread, say BYE: no member any
//   more;
// * exit without finalize: no answer is begun any more; the server sees the process end (pidfd);
// * fork: the child has no thread and is no member; it is recognised by its pid;
// * exec: the new program starts with no state; nothing was inherited but the environment.
//
// A program that opens a verbs device without PMIx (perftest, a user's own) is a rank all the same:
// the library calls PMIx_Init for it then, in the step's own server (srun --mpi=pmix sets the
// environment), and PMIx_Finalize when it exits. PMIx counts these calls, so that a program that
// comes to MPI later notices nothing.
//
// PMIx_Init returns only after the server has the HELLO (or after a deadline): whoever could open a
// connection over the device is a member already.
#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>

#include "pmix-hooks/message.h"
#include "pmix-hooks/pmix_api.h"
#include "pmix-hooks/ranks/rank_agent.h"
#include "pmix-hooks/ranks/transport.h"
#include "pmix-hooks/ranks/verbs/verbs_transport.h"

namespace symvirt::hooks {
namespace {

constexpr int kRegisterWaitMs = 10'000;
constexpr int kSendWaitMs = 5'000;
constexpr int kExitWaitMs = 1'000;
constexpr int kPeersWaitMs = 3'000;
constexpr char kSlurmNamespace[] = "slurm.pmix.";

class PmixLink final : public RankLink {
 public:
  PmixLink(const PmixApi& api, const pmix_proc_t& self) : api_(api), self_(self) {}
  bool send(int code, const std::string& message) override {
    // LOCAL reaches slurmstepd, and of the ranks only those that registered for the code: none.
    return send_event(api_, code, self_, PMIX_RANGE_LOCAL, std::make_unique<EventInfo>(message),
                      kSendWaitMs);
  }

 private:
  const PmixApi api_;
  const pmix_proc_t self_;
};

// One life between the first PMIx_Init and the last PMIx_Finalize.
struct Session {
  PmixApi api;
  pid_t owner = 0;
  Registration registration;
  KernelTcpTransport tcp;
  verbs::VerbsTransport verbs;
  TransportPair transport{verbs, tcp};
  PmixLink link;
  RankAgent agent;

  Session(const PmixApi& pmix, const pmix_proc_t& self, pid_t pid)
      : api(pmix), owner(pid), link(pmix, self), agent(pid, transport, link) {}
};

// Never destroyed: threads and the exit handler may look at it while static objects are taken down.
struct State {
  std::mutex mutex;  // init and finalize; never held by PMIx's thread
  int depth = 0;     // PMIx_Init counts, and so do we
  pid_t owner = 0;   // process that depth and session belong to
  std::unique_ptr<Session> session;
  std::atomic<RankAgent*> receiver{nullptr};  // for PMIx's thread
};
State& state() {
  static auto* const the_state = new State;
  return *the_state;
}

// On PMIx's progress thread: only enqueues.
void on_event(std::size_t, pmix_status_t code, const pmix_proc_t*, pmix_info_t info[],
              std::size_t ninfo, pmix_info_t*, std::size_t,
              pmix_event_notification_cbfunc_fn_t done, void* done_data) {
  if (RankAgent* agent = state().receiver.load()) {
    agent->deliver(code, std::string(event_message(info, ninfo)));
  }
  if (done != nullptr) done(PMIX_EVENT_ACTION_COMPLETE, nullptr, 0, nullptr, nullptr, done_data);
}

void at_exit() {
  State& s = state();
  if (s.owner != getpid()) return;
  // Not taken when an application thread is stuck in init or finalize: exit must not wait for it.
  const std::unique_lock lock(s.mutex, std::try_to_lock);
  if (lock.owns_lock() && s.session) s.session->agent.mute(kExitWaitMs);
}

// Only Slurm's own PMIx server understands the events; under mpirun the servers would send them
// through the whole job.
bool served_by_slurm(const pmix_proc_t& self) {
  return std::strncmp(self.nspace, kSlurmNamespace, sizeof kSlurmNamespace - 1) == 0;
}

void begin(State& s, const pmix_proc_t& self) {
  const PmixApi api = PmixApi::find();
  if (!api.complete() || !served_by_slurm(self)) return;
  auto session = std::make_unique<Session>(api, self, s.owner);
  s.receiver = &session->agent;
  session->registration = register_events(api, {kEventQuiesce, kEventResume, kEventPeers}, on_event,
                                          kRegisterWaitMs, &self, s.owner);
  if (!session->registration.ok || !session->agent.start()) {
    // No HELLO: the rank is no member, and if it uses the device the plan phase refuses, naming it.
    if (session->registration.ok)
      api.deregister_handler(session->registration.id, nullptr, nullptr);
    s.receiver = nullptr;
    return;
  }
  static const int registered = std::atexit(at_exit);
  static_cast<void>(registered);
  RankAgent* const agent = &session->agent;
  verbs::Layer& layer = verbs::Layer::current();
  layer.on_immovable([agent](const std::string& why) { agent->say_immovable(why); });
  session->link.send(kEventHello, encode_presence(session->owner, layer.immovable()));
  s.session = std::move(session);
}

void end(State& s) {
  if (!s.session) return;
  // Blocking (no callback): after it the handler does not run any more.
  s.session->api.deregister_handler(s.session->registration.id, nullptr, nullptr);
  s.receiver = nullptr;
  verbs::Layer::current().on_immovable(nullptr);
  s.session->agent.stop();
  s.session->link.send(kEventBye, encode_presence(s.session->owner));
  s.session.reset();
}

void initialized(const pmix_proc_t& self) {
  State& s = state();
  const pid_t pid = getpid();
  // A forked child that initializes PMIx itself: the parent's session is not ours, and its thread
  // is not here, so that neither may be destroyed. The child does without; the mutex may have been
  // copied locked.
  if (s.owner != 0 && s.owner != pid) return;
  const std::lock_guard lock(s.mutex);
  s.owner = pid;
  if (++s.depth == 1) begin(s, self);
}

void finalizing() {
  State& s = state();
  if (s.owner != getpid()) return;
  const std::lock_guard lock(s.mutex);
  if (s.depth > 0 && --s.depth == 0) end(s);
}

void leave_at_exit() {
  if (state().owner == getpid()) PMIx_Finalize(nullptr, 0);
}

// False: there is nothing to join.
bool join() {
  State& s = state();
  {
    const std::lock_guard lock(s.mutex);
    if (s.owner != 0 && s.owner != getpid()) return false;  // a forked child does without
    if (s.depth > 0) return true;
  }
  const char* nspace = std::getenv("PMIX_NAMESPACE");
  if (nspace == nullptr || std::strncmp(nspace, kSlurmNamespace, sizeof kSlurmNamespace - 1) != 0)
    return false;
  if (dlopen("libpmix.so.2", RTLD_NOW | RTLD_LOCAL) == nullptr) return false;
  pmix_proc_t self{};
  if (PMIx_Init(&self, nullptr, 0) != PMIX_SUCCESS) return false;
  std::atexit(leave_at_exit);
  return true;
}

// Before the process opens its first verbs device: it is a member, and knows where the others are,
// who may have moved already.
bool join_for_verbs(verbs::Layer::Ask ask) {
  if (ask == verbs::Layer::Ask::kWait && !join()) return true;
  State& s = state();
  if (s.owner != getpid()) return true;
  const std::lock_guard lock(s.mutex);  // so that nobody finalizes meanwhile
  return !s.session ||
         s.session->agent.await_peers(ask == verbs::Layer::Ask::kWait ? kPeersWaitMs : 0);
}

const bool joins_for_verbs = [] {
  verbs::Layer::before_first_open = join_for_verbs;
  return true;
}();

template <typename F>
F real_function(const char* name) {
  return reinterpret_cast<F>(find_pmix_symbol(name));
}

}  // namespace
}  // namespace symvirt::hooks

extern "C" pmix_status_t PMIx_Init(pmix_proc_t* proc, pmix_info_t info[], size_t ninfo) {
  using namespace symvirt::hooks;
  const auto real = real_function<decltype(&PMIx_Init)>("PMIx_Init");
  if (real == nullptr) return PMIX_ERR_INIT;
  pmix_proc_t self{};
  const pmix_status_t status = real(&self, info, ninfo);
  if (proc != nullptr) *proc = self;
  if (status != PMIX_SUCCESS) return status;
  try {
    initialized(self);
  } catch (...) {  // out of memory: the rank goes on, as no member
  }
  return status;
}

extern "C" pmix_status_t PMIx_Finalize(const pmix_info_t info[], size_t ninfo) {
  using namespace symvirt::hooks;
  const auto real = real_function<decltype(&PMIx_Finalize)>("PMIx_Finalize");
  if (real == nullptr) return PMIX_ERR_INIT;
  try {
    finalizing();
  } catch (...) {
  }
  return real(info, ninfo);
}
