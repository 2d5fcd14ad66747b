// Jobs at rest: which epoch holds which job, the rounds of quiesce and resume over the steps of a
// job (each a barrier: every step answers or the round fails), the lease that ends a rest nobody
// renews, and the gate behind which new tasks wait.
//
//   running --job.quiesce--> at rest --job.resume--> running
//                              |  lease ran out, devices here: resumed by itself
//                              |  lease ran out, device let go and away: waits for job.resume or
//                              the device's return
//
// Time, steps, sockets and devices are reached through the interfaces below, so that the unit tests
// can play every order of events. Threads: one. Replies may come from inside the call.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "node-helper/guest/event_loop.h"
#include "node-helper/guest/params.h"
#include "node-helper/guest/peer.h"

namespace symvirt::guest {

// The steps registered here, by the connections of their plugins.
class StepCaller {
 public:
  virtual ~StepCaller() = default;
  virtual std::vector<StepInfo> steps_of(JobId job) const = 0;
  // Outcome as of Peer::call; kNotFound when the step is not registered (any more).
  virtual void call(const StepKey& step, const std::string& method, const Json& params,
                    Milliseconds timeout, Outcome outcome) = 0;
  // Whether the process that registered the step still exists.
  virtual bool alive(const StepInfo& step) const = 0;
};

// What the transactions have to know about the devices.
class DeviceState {
 public:
  virtual ~DeviceState() = default;
  virtual bool uses_tcp() const = 0;     // a slot is to be brought to rest as "tcp"
  virtual bool all_present() const = 0;  // every configured slot has its device, usable
  // Sockets over the devices with unacknowledged data, each in words; empty: at rest.
  virtual Result<std::vector<std::string>> unacknowledged() = 0;
};

// What is kept over a restart of guestd (not of the guest).
struct JobRecord {
  JobId job = 0;
  Epoch highest = 0;               // seen
  Epoch at_rest = 0;               // 0: running
  std::uint32_t round = 0;         // of the last quiesce
  bool let_go = false;             // device.let_go was called for at_rest
  std::uint64_t lease_end_ms = 0;  // CLOCK_MONOTONIC of this boot
};

class Transactions {
 public:
  // changed: the records have changed and should be stored.
  Transactions(Timers& timers, StepCaller& steps, DeviceState& devices,
               std::function<void()> changed);
  ~Transactions();

  void restore(const std::vector<JobRecord>& records);
  std::vector<JobRecord> records() const;

  void quiesce(const RoundParams& p, Reply reply);
  void resume(const RoundParams& p, Reply reply);
  Status renew(const RenewParams& p);
  // epoch 0: the VM has no job at rest. kPrecondition otherwise, unless a job is at rest for that
  // epoch.
  Status let_go(Epoch epoch);
  // Answers when no transaction holds the job back.
  void enter(JobId job, Reply reply);
  // A step has (again) registered. The answer of step.register.
  Json registered(const StepInfo& step);
  void devices_returned();  // all_present() has become true

 private:
  struct Round;
  struct Job;

  Job& job_of(JobId id);
  static void remember_peers(Job& job, const RoundParams& p);
  void pass_peers_on(const RoundParams& p);
  void start_round(Job& job, bool quiesce, const RoundParams& p, Reply reply);
  void ask_step(bool quiesce, const Json& params, const StepInfo& step, std::uint64_t serial,
                Milliseconds timeout);
  void ask_again(Round& round, const StepInfo& step, const Error& error);
  void step_answered(JobId id, std::uint64_t serial, const StepInfo& step, Result<Json> result);
  void round_complete(Job& job);
  void wait_for_tcp(Job& job);
  static std::string who_waits(const Round& round);
  Status still_in_time(const Job& job) const;
  void finish(Job& job, Result<Json> result);
  void arm_lease(Job& job, Milliseconds lease);
  void lease_ran_out(JobId id);
  void resume_by_itself(Job& job);
  void self_resume_answered(JobId id, Result<Json> result);
  void end_rest(Job& job);
  void resume_straggler(const StepInfo& step);
  void forget_old_jobs();

  Timers& timers_;
  StepCaller& steps_;
  DeviceState& devices_;
  std::function<void()> changed_;
  std::map<JobId, Job> jobs_;
  std::uint64_t next_serial_ = 1;
};

}  // namespace symvirt::guest
