// The thread in slurmstepd that stands between symvirt-guestd and the ranks of one step on this
// node.
//
// It owns everything that StepCore's effects need: PMIx events, processes, the connection to
// guestd, deadlines. Life: start() in the first task_post_fork (all tasks forked, PMIx's server is
// up), stop() in slurm_spank_exit.
#pragma once

#include <pthread.h>

#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "common/deadline.h"
#include "common/unique_fd.h"
#include "pmix-hooks/server/guest_link.h"
#include "pmix-hooks/server/guest_protocol.h"
#include "pmix-hooks/server/pmix_events.h"
#include "pmix-hooks/server/process.h"
#include "pmix-hooks/server/step_core.h"

namespace symvirt::hooks {

class StepAgent {
 public:
  StepAgent(std::string guestd_socket, StepIdentity step);
  StepAgent(const StepAgent&) = delete;
  StepAgent& operator=(const StepAgent&) = delete;
  ~StepAgent() { stop(); }

  Status start();
  // Continues whoever is still held, and joins. May be called twice.
  void stop();

 private:
  struct Request {
    RequestKind kind = RequestKind::kMembers;
    Deadline deadline = Deadline::after(std::chrono::milliseconds(0));
  };

  static void* run_thread(void* self);
  void run();
  void leave();
  void wait_for_work();
  int timeout_ms() const;
  bool take_rank_events(std::vector<RankEvent>& events);
  void serve_rank(const RankEvent& event);
  void welcome(const RankEvent& event, std::int32_t pid);
  void serve_guest(GuestMessage message);
  void register_step();
  void check_processes();
  void check_deadlines();
  void perform(Effects effects);
  void perform_one(const SendCommand& effect);
  void perform_one(const StopProcess& effect);
  void perform_one(const ContinueProcess& effect);
  void perform_one(const Reply& effect);

  const StepIdentity step_;
  std::string nspace_;  // as the ranks say it
  GuestLink link_;
  PmixEvents events_;
  StepCore core_;
  std::map<std::int32_t, Process> processes_;  // of the members
  std::map<std::int32_t, Deadline>
      stopping_;  // told to stop, not all threads have; when to look again
  std::map<std::string, Request> requests_;  // of guestd, unanswered
  int registrations_ = 0;

  UniqueFd wake_;  // eventfd: rank events queued, or stop
  std::mutex mutex_;
  std::vector<RankEvent> queue_;
  bool stop_requested_ = false;
  bool running_ = false;
  pthread_t thread_{};
};

}  // namespace symvirt::hooks
