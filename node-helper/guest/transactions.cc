#include "node-helper/guest/transactions.h"

#include <fmt/format.h>
#include <time.h>

#include <algorithm>

#include "common/log.h"

namespace symvirt::guest {
namespace {

constexpr Milliseconds kTcpPoll{5};
constexpr Milliseconds kAskAgain{50};
constexpr Milliseconds kSelfResumeTimeout{20000};
constexpr Milliseconds kSelfResumeRetry{5000};
// For a rest learnt from a step because guestd's own record is gone: long enough for the
// coordinator to ask again.
constexpr Milliseconds kAdoptedLease{60000};
constexpr std::uint32_t kRoundsOfOrder = 6;  // a healthy quiesce or resume takes fewer
constexpr std::size_t kMostIdleJobs = 256;
constexpr std::uint32_t kMostSelfResumeRounds = 16;

std::int64_t unix_ns() {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<std::int64_t>(now.tv_sec) * 1'000'000'000 + now.tv_nsec;
}

// The plugin's deadline ends before ours, so that it is the plugin, which knows the ranks, that
// says who did not answer.
Milliseconds step_timeout(Milliseconds timeout) {
  return std::max(timeout * 3 / 4, timeout - Milliseconds(500));
}

Json step_params(const RoundParams& p, Milliseconds timeout) {
  Json params = {{"job", p.job},
                 {"epoch", p.epoch},
                 {"round", p.round},
                 {"timeout_ms", step_timeout(timeout).count()}};
  if (!p.payloads.is_null()) params["payloads"] = p.payloads;
  if (!p.device_leaves) params["device_leaves"] = false;
  return params;
}

std::string join(const std::vector<std::string>& texts, const char* between) {
  return fmt::format("{}", fmt::join(texts, between));
}

}  // namespace

// One round under way: who is still to answer, and who waits for the outcome.
struct Transactions::Round {
  bool quiesce = true;
  RoundParams params;
  std::uint64_t serial = 0;  // tells late answers of an earlier round from this one's
  std::uint64_t deadline_ms = 0;
  std::size_t missing = 0;
  StepAnswers collected;
  std::vector<std::string> failures;
  Code failure_code = Code::kDeadline;
  std::vector<Reply> replies;
  std::vector<Handle> retries;
  Handle timer;        // polls the sockets
  bool clean = false;  // the last look at the sockets found them at rest
};

struct Transactions::Job {
  JobRecord record;
  std::unique_ptr<Round> running;
  // The last round that succeeded, to be answered again: (quiesce, epoch, round).
  struct Done {
    bool quiesce;
    Epoch epoch;
    std::uint32_t round;
    Json result;
  };
  std::optional<Done> done;
  // What each process of the job said last in the last resume, for steps that come later.
  Json peers = Json::object();
  Epoch peers_epoch = 0;
  std::int64_t pauses_begun_ns = 0;
  std::uint64_t rest_begun_ms = 0;  // first round of the quiesce that we saw
  Handle lease;
  bool lease_over = false;
  std::vector<Reply> gate;
};

Transactions::Transactions(Timers& timers, StepCaller& steps, DeviceState& devices,
                           std::function<void()> changed)
    : timers_(timers), steps_(steps), devices_(devices), changed_(std::move(changed)) {}
Transactions::~Transactions() = default;

Transactions::Job& Transactions::job_of(JobId id) {
  Job& job = jobs_[id];
  job.record.job = id;
  return job;
}

void Transactions::restore(const std::vector<JobRecord>& records) {
  for (const JobRecord& record : records) {
    Job& job = job_of(record.job);
    job.record = record;
    if (record.at_rest == 0) continue;
    const std::uint64_t now = timers_.now_ms();
    const std::uint64_t left = record.lease_end_ms > now ? record.lease_end_ms - now : 0;
    // The steps need a moment to find guestd again; without them a resume would reach nobody.
    arm_lease(job, std::max(Milliseconds(left), Milliseconds(2000)));
    log_info(fmt::format("job {}: still at rest for epoch {}, lease {} ms", record.job,
                         record.at_rest, left));
  }
}

std::vector<JobRecord> Transactions::records() const {
  std::vector<JobRecord> out;
  for (const auto& [id, job] : jobs_) out.push_back(job.record);
  return out;
}

void Transactions::quiesce(const RoundParams& p, Reply reply) {
  Job& job = job_of(p.job);
  JobRecord& record = job.record;
  const auto refuse = [&](const std::string& why) {
    reply(Error{Code::kPrecondition, fmt::format("job.quiesce: job {} epoch {} round {}: {}", p.job,
                                                 p.epoch, p.round, why)});
  };
  if (p.epoch < record.highest) {
    return refuse(
        fmt::format("epoch {} was seen already; this coordinator is out of date", record.highest));
  }
  if (p.epoch == record.highest && record.at_rest != p.epoch) {
    return refuse("this epoch was resumed already; begin a new one");
  }
  if (job.running) {
    const RoundParams& now = job.running->params;
    if (job.running->quiesce && now.epoch == p.epoch && now.round == p.round) {
      job.running->replies.push_back(std::move(reply));
      return;
    }
    return refuse(fmt::format("{} round {} is still running",
                              job.running->quiesce ? "quiesce" : "resume", now.round));
  }
  if (job.done && job.done->quiesce && job.done->epoch == p.epoch && job.done->round == p.round) {
    arm_lease(job, p.lease);
    changed_();
    return reply(job.done->result);
  }
  if (record.at_rest == p.epoch && p.round < record.round) {
    return refuse(fmt::format("round {} was begun already", record.round));
  }
  if (record.at_rest != p.epoch) {
    job.pauses_begun_ns = 0;
    job.rest_begun_ms = 0;
    record.let_go = false;
  }
  record.highest = record.at_rest = p.epoch;
  record.round = p.round;
  if (job.rest_begun_ms == 0) job.rest_begun_ms = timers_.now_ms();
  arm_lease(job, p.lease);
  changed_();
  start_round(job, true, p, std::move(reply));
}

void Transactions::resume(const RoundParams& p, Reply reply) {
  const auto it = jobs_.find(p.job);
  const Json nobody = {{"members", 0}, {"more", false}, {"answers", Json::array()}};
  if (it == jobs_.end()) return reply(nobody);
  Job& job = it->second;
  const auto repeated = [&] {
    return job.done && !job.done->quiesce && job.done->epoch == p.epoch &&
           job.done->round == p.round;
  };
  if (repeated()) return reply(job.done->result);
  if (job.record.at_rest != p.epoch) {
    // Through with it here, where nobody had anything to say; on other VMs they go on.
    if (p.epoch == job.record.highest && !p.payloads.empty()) {
      remember_peers(job, p);
      pass_peers_on(p);
    }
    return reply(nobody);
  }
  if (job.running && !job.running->quiesce) {  // the same again, or guestd's own after the lease
    job.running->replies.push_back(std::move(reply));
    return;
  }
  if (job.running) {
    finish(job,
           Error{Code::kCancelled,
                 fmt::format("job.quiesce: job {} epoch {}: ended by job.resume", p.job, p.epoch)});
  }
  start_round(job, false, p, std::move(reply));
}

void Transactions::remember_peers(Job& job, const RoundParams& p) {
  if (std::exchange(job.peers_epoch, p.epoch) != p.epoch) job.peers = Json::object();
  for (const auto& [process, payload] : p.payloads.items()) {
    if (payload.is_string() && payload != "") job.peers[process] = payload;
  }
}

// Nothing depends on it before the next verbs device is opened here.
void Transactions::pass_peers_on(const RoundParams& p) {
  for (const StepInfo& step : steps_.steps_of(p.job)) {
    steps_.call(step.key, "step.resume", step_params(p, p.timeout), p.timeout, [](Result<Json>) {});
  }
}

void Transactions::start_round(Job& job, bool quiesce, const RoundParams& p, Reply reply) {
  const std::vector<StepInfo> steps = steps_.steps_of(p.job);
  if (!quiesce) remember_peers(job, p);
  job.running = std::make_unique<Round>();
  Round& round = *job.running;
  round.quiesce = quiesce;
  round.params = p;
  round.serial = next_serial_++;
  round.deadline_ms = timers_.now_ms() + static_cast<std::uint64_t>(p.timeout.count());
  round.missing = steps.size();
  round.replies.push_back(std::move(reply));
  const Json params = step_params(p, p.timeout);
  log_info(fmt::format("job {}: {} epoch {} round {}: {} step(s)", p.job,
                       quiesce ? "quiesce" : "resume", p.epoch, p.round, steps.size()));
  if (steps.empty()) return round_complete(job);
  const std::uint64_t serial = round.serial;  // an answer from inside call() may end the round
  for (const StepInfo& step : steps) ask_step(quiesce, params, step, serial, p.timeout);
}

void Transactions::ask_step(bool quiesce, const Json& params, const StepInfo& step,
                            std::uint64_t serial, Milliseconds timeout) {
  steps_.call(step.key, quiesce ? "step.quiesce" : "step.resume", params, timeout,
              [this, serial, step](Result<Json> result) {
                step_answered(step.key.job, serial, step, std::move(result));
              });
}

// Who of this VM's ranks waits for what, as they say it; empty: nobody does.
std::string Transactions::who_waits(const Round& round) {
  constexpr std::size_t kNamed = 4;
  std::vector<std::string> who;
  bool anybody = false;
  for (const RankAnswer& answer : round.collected.answers) {
    if (answer.state != "more") continue;
    anybody = true;
    if (answer.why.empty()) continue;
    who.push_back(fmt::format("step {} rank {} (pid {}): {}", answer.step, answer.rank, answer.pid,
                              answer.why));
  }
  if (!anybody) return {};
  if (who.empty()) return "its ranks here wait for ranks on other VMs";
  const std::size_t more = who.size() - std::min(kNamed, who.size());
  who.resize(who.size() - more);
  return join(who, "; ") + (more == 0 ? "" : fmt::format(" and {} more", more));
}

// Ranks say "more" for as long as it is so; it must not be for ever, as the others are held. Ended
// here somewhat before the coordinator would, which cannot say who it was.
Status Transactions::still_in_time(const Job& job) const {
  const Round& round = *job.running;
  const std::uint64_t spent = timers_.now_ms() - job.rest_begun_ms;
  const auto limit = static_cast<std::uint64_t>(round.params.timeout.count());
  if (!round.quiesce || spent < limit - limit / 8) return {};
  const std::string text = who_waits(round);
  if (text.empty()) return {};
  return Error{Code::kDeadline,
               fmt::format("job.quiesce: job {} epoch {} round {}: not at rest after {:.1f} s: {}",
                           job.record.job, round.params.epoch, round.params.round,
                           static_cast<double>(spent) / 1000, text)};
}

// The connection broke but slurmstepd lives: it is either about to end, which is an answer, or its
// plugin connects again.
void Transactions::ask_again(Round& round, const StepInfo& step, const Error& error) {
  const std::uint64_t now = timers_.now_ms(), serial = round.serial;
  if (now >= round.deadline_ms) {
    round.failure_code = Code::kUnavailable;
    round.failures.push_back(fmt::format("step {}: {}", step.key.step, error.message));
    if (--round.missing == 0) round_complete(job_of(step.key.job));
    return;
  }
  round.retries.push_back(timers_.after(kAskAgain, [this, step, serial, error] {
    const auto it = jobs_.find(step.key.job);
    if (it == jobs_.end() || !it->second.running || it->second.running->serial != serial) return;
    Round& current = *it->second.running;
    for (const StepInfo& now_there : steps_.steps_of(step.key.job)) {
      if (now_there.key != step.key) continue;
      const std::uint64_t at = timers_.now_ms();
      const Milliseconds left(current.deadline_ms > at ? current.deadline_ms - at : 1);
      return ask_step(current.quiesce, step_params(current.params, left), now_there, serial, left);
    }
    step_answered(step.key.job, serial, step, error);
  }));
}

void Transactions::step_answered(JobId id, std::uint64_t serial, const StepInfo& step,
                                 Result<Json> result) {
  const auto it = jobs_.find(id);
  if (it == jobs_.end() || !it->second.running || it->second.running->serial != serial) return;
  Job& job = it->second;
  Round& round = *job.running;
  Result<StepAnswers> answers =
      result ? parse_step_answers(*result, step.key.step) : Result<StepAnswers>(result.error());
  if (answers) {
    if (round.quiesce && job.pauses_begun_ns == 0 && !answers->answers.empty()) {
      job.pauses_begun_ns = unix_ns();
    }
    round.collected.held += answers->held;
    auto& all = round.collected.answers;
    std::move(answers->answers.begin(), answers->answers.end(), std::back_inserter(all));
  } else if (const Code code = answers.error().code;
             code == Code::kUnavailable || code == Code::kNotFound) {
    if (steps_.alive(step)) return ask_again(round, step, answers.error());
    log_debug(fmt::format("job {}: step {} ended during the round", id, step.key.step));
  } else {
    round.failure_code = code;
    round.failures.push_back(fmt::format("step {}: {}", step.key.step, answers.error().message));
  }
  if (--round.missing == 0) round_complete(job);
}

void Transactions::round_complete(Job& job) {
  Round& round = *job.running;
  if (!round.failures.empty()) {
    return finish(job, Error{round.failure_code,
                             fmt::format("{}: job {} epoch {} round {}: {}",
                                         round.quiesce ? "job.quiesce" : "job.resume",
                                         job.record.job, round.params.epoch, round.params.round,
                                         join(round.failures, "; "))});
  }
  if (const Status status = still_in_time(job); !status) return finish(job, status.error());
  if (round.quiesce && round.params.round >= 2 && devices_.uses_tcp()) return wait_for_tcp(job);
  finish(job, Json());
}

// All senders of the job are held by now, on every VM, so what is in flight is acknowledged within
// a round trip. Data goes on the wire between two looks only from a timer or a soft interrupt: two
// clean looks in a row are asked for.
void Transactions::wait_for_tcp(Job& job) {
  Round& round = *job.running;
  const Result<std::vector<std::string>> sockets = devices_.unacknowledged();
  if (!sockets) return finish(job, sockets.error());
  if (sockets->empty() && round.clean) return finish(job, Json());
  round.clean = sockets->empty();
  if (!round.clean && timers_.now_ms() >= round.deadline_ms) {
    const std::size_t shown = std::min<std::size_t>(sockets->size(), 5);
    return finish(
        job,
        Error{Code::kDeadline,
              fmt::format(
                  "job.quiesce: job {} epoch {} round {}: {} TCP connection(s) over the "
                  "device do not come to rest: {}; is the peer up, and is every "
                  "sender a member of the job?",
                  job.record.job, round.params.epoch, round.params.round, sockets->size(),
                  join({sockets->begin(), sockets->begin() + static_cast<long>(shown)}, ", "))});
  }
  round.timer = timers_.after(kTcpPoll, [this, id = job.record.job, serial = round.serial] {
    const auto it = jobs_.find(id);
    if (it == jobs_.end() || !it->second.running || it->second.running->serial != serial) return;
    wait_for_tcp(it->second);
  });
}

// Ends the running round; a null result stands for success. Replies last: they may call back.
void Transactions::finish(Job& job, Result<Json> result) {
  const std::unique_ptr<Round> round = std::move(job.running);
  const RoundParams& p = round->params;
  const std::uint64_t lease_left = job.record.lease_end_ms;
  if (result) {
    Json answers = Json::array();
    bool more = round->quiesce && p.round == 1 && devices_.uses_tcp();
    for (const RankAnswer& answer : round->collected.answers) {
      more = more || answer.state == "more";
      answers.push_back(to_json(answer));
    }
    Json out = {{"members", answers.size()}, {"more", more}, {"answers", std::move(answers)}};
    if (const std::string waits = who_waits(*round); !waits.empty()) {
      out["waits"] = waits;
      if (p.round >= kRoundsOfOrder)
        log_info(fmt::format("job {}: {} epoch {} round {}: {}", job.record.job,
                             round->quiesce ? "quiesce" : "resume", p.epoch, p.round, waits));
    }
    if (round->quiesce) {
      out["held"] = round->collected.held;
      out["pauses_begun_ns"] = job.pauses_begun_ns;
      // A lease counts from the end of the round: a slow rank must not use it up.
      if (job.record.at_rest == p.epoch && lease_left != 0) arm_lease(job, p.lease);
    }
    job.done = Job::Done{round->quiesce, p.epoch, p.round, out};
    result = std::move(out);
    if (!round->quiesce && !more) end_rest(job);
    changed_();
  } else {
    log_warning(result.error().message);
  }
  for (const Reply& reply : round->replies) reply(result);
}

void Transactions::end_rest(Job& job) {
  log_info(fmt::format("job {}: epoch {} ended, running", job.record.job, job.record.at_rest));
  job.record.at_rest = 0;
  job.record.round = 0;
  job.record.let_go = false;
  job.record.lease_end_ms = 0;
  job.lease.reset();
  job.lease_over = false;
  for (const Reply& reply : std::exchange(job.gate, {})) reply(Json::object());
}

void Transactions::arm_lease(Job& job, Milliseconds lease) {
  job.lease_over = false;
  job.record.lease_end_ms = timers_.now_ms() + static_cast<std::uint64_t>(lease.count());
  job.lease = timers_.after(lease, [this, id = job.record.job] { lease_ran_out(id); });
}

Status Transactions::renew(const RenewParams& p) {
  const auto it = jobs_.find(p.job);
  if (it == jobs_.end() || it->second.record.at_rest != p.epoch) {
    return Error{Code::kPrecondition,
                 fmt::format("job.renew: job {} epoch {}: not at rest any more", p.job, p.epoch)};
  }
  if (it->second.running && !it->second.running->quiesce) {
    return Error{Code::kPrecondition,
                 fmt::format("job.renew: job {} epoch {}: is being resumed", p.job, p.epoch)};
  }
  arm_lease(it->second, p.lease);
  changed_();
  return {};
}

Status Transactions::let_go(Epoch epoch) {
  if (epoch == 0) return {};
  bool found = false;
  for (auto& [id, job] : jobs_) {
    if (job.record.at_rest != epoch) continue;
    if (job.running) {
      return Error{
          Code::kPrecondition,
          fmt::format("device.let_go: epoch {}: a round of job {} is still running", epoch, id)};
    }
    found = job.record.let_go = true;
  }
  if (!found) {
    return Error{
        Code::kPrecondition,
        fmt::format("device.let_go: epoch {}: no job is at rest for it (any more)", epoch)};
  }
  changed_();
  return {};
}

void Transactions::lease_ran_out(JobId id) {
  const auto it = jobs_.find(id);
  if (it == jobs_.end() || it->second.record.at_rest == 0) return;
  Job& job = it->second;
  job.lease_over = true;
  if (job.record.let_go && !devices_.all_present()) {
    log_warning(
        fmt::format("job {}: lease of epoch {} ran out, but the device is away: waiting for "
                    "its return or for job.resume",
                    id, job.record.at_rest));
    return;
  }
  resume_by_itself(job);
}

void Transactions::devices_returned() {
  std::vector<JobId> waiting;
  for (const auto& [id, job] : jobs_) {
    if (job.record.at_rest != 0 && job.lease_over) waiting.push_back(id);
  }
  for (const JobId id : waiting) resume_by_itself(jobs_[id]);
}

void Transactions::resume_by_itself(Job& job) {
  if (job.running && !job.running->quiesce) return;
  log_warning(fmt::format("job {}: lease of epoch {} ran out: resuming its ranks", job.record.job,
                          job.record.at_rest));
  if (job.running) {
    finish(job,
           Error{Code::kCancelled, fmt::format("job.quiesce: job {} epoch {}: the lease ran out",
                                               job.record.job, job.record.at_rest)});
  }
  RoundParams p;
  p.job = job.record.job;
  p.epoch = job.record.at_rest;
  p.round = 1;
  p.timeout = kSelfResumeTimeout;
  start_round(job, false, p, [this, id = p.job](Result<Json> result) {
    self_resume_answered(id, std::move(result));
  });
}

void Transactions::self_resume_answered(JobId id, Result<Json> result) {
  const auto it = jobs_.find(id);
  if (it == jobs_.end() || it->second.record.at_rest == 0) return;
  Job& job = it->second;
  if (!result) {
    job.lease = timers_.after(kSelfResumeRetry, [this, id] { lease_ran_out(id); });
    return;
  }
  // Ranks that resume in several rounds (verbs) get this node's own payloads back: the coordinator,
  // which would bring the others', is away.
  RoundParams p;
  p.job = id;
  p.epoch = job.record.at_rest;
  p.round = job.done ? job.done->round + 1 : 2;
  p.timeout = kSelfResumeTimeout;
  p.payloads = Json::object();
  for (const Json& answer : (*result)["answers"]) {
    if (!answer.contains("payload")) continue;
    const std::string process = fmt::format("{}.{}.{}.{}", id, answer["step"].dump(),
                                            answer["rank"].dump(), answer["pid"].dump());
    p.payloads[process] = answer["payload"];
  }
  if (p.round > kMostSelfResumeRounds || job.running) return;
  start_round(job, false, p,
              [this, id](Result<Json> r) { self_resume_answered(id, std::move(r)); });
}

void Transactions::enter(JobId id, Reply reply) {
  const auto it = jobs_.find(id);
  if (it == jobs_.end() || it->second.record.at_rest == 0) return reply(Json::object());
  it->second.gate.push_back(std::move(reply));
}

Json Transactions::registered(const StepInfo& step) {
  Job& job = job_of(step.key.job);
  JobRecord& record = job.record;
  if (step.epoch_at_rest > record.highest) {
    // guestd lost its record (/run was cleared): the step knows better.
    record.highest = record.at_rest = step.epoch_at_rest;
    record.round = 0;
    arm_lease(job, kAdoptedLease);
    changed_();
    log_warning(fmt::format("job {}: epoch {} learnt from step {}", record.job, record.at_rest,
                            step.key.step));
  } else if (step.epoch_at_rest != 0 && record.at_rest == 0) {
    resume_straggler(step);
  }
  forget_old_jobs();
  Json out = {{"epoch", record.highest}, {"at_rest", record.at_rest != 0}};
  if (!job.peers.empty()) out["peers"] = job.peers;
  return out;
}

// The job was resumed while this step's connection was down: its ranks are held for an epoch that
// is over.
void Transactions::resume_straggler(const StepInfo& step) {
  log_warning(
      fmt::format("job {}: step {} comes back at rest for epoch {}, which is over: resuming it",
                  step.key.job, step.key.step, step.epoch_at_rest));
  const Json params = {{"job", step.key.job},
                       {"epoch", step.epoch_at_rest},
                       {"round", 1},
                       {"timeout_ms", kSelfResumeTimeout.count()}};
  // Not from inside step.register: its answer comes first.
  auto timer = std::make_shared<Handle>();
  *timer = timers_.after(Milliseconds(0), [this, step, params, timer] {
    *timer = nullptr;
    steps_.call(step.key, "step.resume", params, kSelfResumeTimeout, [step](Result<Json> r) {
      if (!r)
        log_error(
            fmt::format("job {}: step {}: {}", step.key.job, step.key.step, r.error().message));
    });
  });
}

void Transactions::forget_old_jobs() {
  for (auto it = jobs_.begin(); it != jobs_.end() && jobs_.size() > kMostIdleJobs;) {
    const bool idle =
        it->second.record.at_rest == 0 && !it->second.running && steps_.steps_of(it->first).empty();
    it = idle ? jobs_.erase(it) : std::next(it);
  }
}

}  // namespace symvirt::guest
