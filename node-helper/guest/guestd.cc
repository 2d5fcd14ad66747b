#include "node-helper/guest/guestd.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <filesystem>

#include "common/log.h"
#include "node-helper/guest/holders.h"
#include "node-helper/guest/version.h"

namespace symvirt::guest {
namespace {

constexpr Milliseconds kMembersTimeout{3000};
constexpr Milliseconds kSilence{10000};

Result<Json> done(const Status& status) {
  if (!status) return status.error();
  return Json::object();
}

// A plan under way: the steps' members are asked for one by one.
struct Plan {
  Json jobs = Json::array();
  std::map<JobId, Json> steps;
  std::set<std::int32_t> members;
  Json refusals = Json::array();
  std::size_t missing = 0;
};

}  // namespace

Guestd::Guestd(EventLoop& loop, const Config& config) : loop_(loop), config_(config) {}
Guestd::~Guestd() = default;

Result<std::unique_ptr<Guestd>> Guestd::create(EventLoop& loop, const Config& config) {
  std::unique_ptr<Guestd> guestd(new Guestd(loop, config));
  if (const Status s = guestd->start(); !s) return s.error();
  return guestd;
}

Status Guestd::start() {
  for (const std::string& path : {config_.state, config_.socket}) {
    std::error_code ignored;  // what is wrong shows when the file is made
    std::filesystem::create_directories(std::filesystem::path(path).parent_path(), ignored);
  }
  auto server =
      Server::create(loop_, config_.socket,
                     [this](Peer& peer, const Server::Caller& caller, const Request& request,
                            Reply reply) { from_guest(peer, caller, request, std::move(reply)); });
  if (!server) return server.error();
  server_ = std::move(*server);
  state_ = load_state(config_.state, read_boot_id());
  auto devices =
      Devices::create(loop_, {[this] { store(); }, [this] { transactions_->devices_returned(); }});
  if (!devices) return devices.error();
  devices_ = std::move(*devices);
  transactions_ = std::make_unique<Transactions>(loop_, *server_, *devices_, [this] { store(); });
  node_start_ = std::make_unique<NodeStart>(loop_, config_.start_command, state_.node_started,
                                            [this] { store(); });
  devices_->set_saved(std::exchange(state_.saved, {}));
  transactions_->restore(std::exchange(state_.jobs, {}));
  if (!state_.configuration.is_null()) {
    if (const auto c = parse_configure(state_.configuration); c) devices_->configure(c->slots);
  }
  channel_ = std::make_unique<Channel>(
      loop_, Channel::Options{config_.port, config_.port_path}, [this] { return hello(); },
      [this](const Request& request, Reply reply) { from_host(request, std::move(reply)); });
  channel_->start();
  return {};
}

std::string Guestd::hello() const {
  return to_text({{"event", "hello"}, {"boot_id", state_.boot_id}, {"version", kVersion}}) + "\n";
}

void Guestd::store() {
  State state = state_;
  state.saved = devices_->saved();
  state.jobs = transactions_->records();
  state.node_started = node_start_->started();
  // Going on without is right: only a restart of guestd in this very transaction would miss it.
  if (const Status s = store_state(state, config_.state); !s) log_error(s.error().message);
}

void Guestd::from_host(const Request& request, Reply reply) {
  const std::string& m = request.method;
  const Json& params = request.params;
  log_debug("host asks " + m);
  const auto parsed = [&](const auto& p) {
    if (!p) reply(p.error());
    return static_cast<bool>(p);
  };
  if (m == "guest.ping") {
    if (channel_->silent_for(kSilence)) channel_->say_hello();
    reply(facts());
  } else if (m == "guest.configure") {
    reply(configure(params));
  } else if (m == "guest.set_clock") {
    const auto ns = parse_set_clock(params);
    if (!parsed(ns)) return;
    const auto stepped = set_clock(clock_, *ns);
    reply(stepped ? Result<Json>(Json{{"stepped_ms", *stepped}}) : Result<Json>(stepped.error()));
  } else if (m == "guest.start_node") {
    node_start_->start(std::move(reply));
  } else if (m == "job.plan") {
    if (const auto job = parse_job_or_any(params, "job.plan"); parsed(job))
      plan(*job, std::move(reply));
  } else if (m == "job.quiesce") {
    if (const auto p = parse_quiesce(params); parsed(p))
      transactions_->quiesce(*p, std::move(reply));
  } else if (m == "job.resume") {
    if (const auto p = parse_resume(params); parsed(p)) transactions_->resume(*p, std::move(reply));
  } else if (m == "job.renew") {
    if (const auto p = parse_renew(params); parsed(p)) reply(done(transactions_->renew(*p)));
  } else if (m == "device.let_go") {
    reply(let_go(params));
  } else if (m == "device.ready") {
    if (const auto p = parse_ready(params); parsed(p)) devices_->ready(*p, std::move(reply));
  } else if (m == "node.check") {
    reply(check());
  } else {
    reply(Error{Code::kInvalidArgument, fmt::format("method: {}: unknown", m)});
  }
}

void Guestd::from_guest(Peer& peer, const Server::Caller& caller, const Request& request,
                        Reply reply) {
  const std::string& m = request.method;
  if (m == "node.check") return reply(check());
  if (caller.uid != 0) {
    refusals_.warning(
        fmt::format("socket: {} asked by pid {} of uid {}: refused", m, caller.pid, caller.uid));
    return reply(Error{Code::kPermission, fmt::format("{}: only root may ask this", m)});
  }
  if (m == "guest.ping") return reply(facts());
  if (m == "step.register") {
    const auto step = parse_register(request.params);
    if (!step) return reply(step.error());
    server_->add_step(peer, *step);
    return reply(transactions_->registered(*step));
  }
  if (m == "task.enter") {
    const auto p = parse_enter(request.params);
    if (!p) return reply(p.error());
    return transactions_->enter(p->key.job, std::move(reply));
  }
  reply(Error{Code::kInvalidArgument, fmt::format("method: {}: unknown", m)});
}

Json Guestd::facts() const {
  const bool configured = !state_.configuration.is_null();
  return Json{{"version", kVersion},
              {"boot_id", state_.boot_id},
              {"node", configured ? state_.configuration["node"] : Json("")},
              {"ready", configured && devices_->all_present()},
              {"time_ns", clock_.now()}};
}

Result<Json> Guestd::configure(const Json& params) {
  const auto c = parse_configure(params);
  if (!c) return c.error();
  state_.configuration = params;
  devices_->configure(c->slots);
  store();
  return Json::object();
}

Result<Json> Guestd::let_go(const Json& params) {
  const auto p = parse_let_go(params);
  if (!p) return p.error();
  // Saved before the lease is given up: should saving fail, the job can still resume by itself.
  if (const Status s = devices_->let_go(p->slots); !s) return s.error();
  return done(transactions_->let_go(p->epoch));
}

Json Guestd::check() const {
  const bool configured = !state_.configuration.is_null();
  const std::string why =
      configured ? devices_->unhealthy() : "not configured by symvirt-noded yet";
  Json out = devices_->task_facts();
  out["healthy"] = why.empty();
  out["reason"] = why;
  return out;
}

void Guestd::plan(JobId job, Reply reply) {
  auto plan = std::make_shared<Plan>();
  const std::vector<StepInfo> steps = server_->steps_of(job);
  for (const std::string& slot : devices_->immovable()) {
    plan->refusals.push_back(fmt::format("slot {}: its VM class says immovable", slot));
  }
  const auto complete = [this, plan, reply = std::move(reply)] {
    for (auto& [id, list] : plan->steps)
      plan->jobs.push_back({{"job", id}, {"steps", std::move(list)}});
    const auto holders = list_holders(devices_->reach(), plan->members);
    if (!holders) return reply(holders.error().with("job.plan"));
    for (std::string& why : refusals(*holders, config_.tolerated_holders))
      plan->refusals.push_back(std::move(why));
    Json list = Json::array();
    for (const Holder& holder : *holders) list.push_back(to_json(holder));
    reply(Json{{"jobs", std::move(plan->jobs)},
               {"holders", std::move(list)},
               {"refusals", std::move(plan->refusals)}});
  };
  plan->missing = steps.size();
  if (steps.empty()) return complete();
  for (const StepInfo& step : steps) {
    server_->call(step.key, "step.members", Json::object(), kMembersTimeout,
                  [plan, step, complete](Result<Json> result) {
                    auto members =
                        result ? parse_step_members(*result) : Result<StepMembers>(result.error());
                    if (members) {
                      plan->members.insert(members->pids.begin(), members->pids.end());
                      for (const std::string& why : members->immovable)
                        plan->refusals.push_back(
                            fmt::format("job {} step {}: {}", step.key.job, step.key.step, why));
                      plan->steps[step.key.job].push_back({{"step", step.key.step},
                                                           {"tasks", members->tasks},
                                                           {"members", members->pids.size()}});
                    } else {
                      plan->refusals.push_back(fmt::format("job {} step {}: {}", step.key.job,
                                                           step.key.step, members.error().message));
                    }
                    if (--plan->missing == 0) complete();
                  });
  }
}

}  // namespace symvirt::guest
