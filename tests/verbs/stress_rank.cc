// One rank: objects, threads, and the order of beginning and end.
#include "tests/verbs/stress_rank.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

namespace symvirt::verbs_stress {

std::atomic<std::uint64_t> moved{0};

std::uint64_t stress_progress() { return moved.load(std::memory_order_relaxed); }

namespace {

using std::chrono::milliseconds;

template <typename T>
std::string as_text(const std::vector<T>& items) {
  return {reinterpret_cast<const char*>(items.data()), items.size() * sizeof(T)};
}

template <typename T>
std::vector<T> from_text(const std::string& text) {
  std::vector<T> items(text.size() / sizeof(T));
  std::memcpy(static_cast<void*>(items.data()), text.data(), items.size() * sizeof(T));
  return items;
}

struct Counts {
  std::uint64_t sent = 0;
  std::uint64_t atomics = 0;
};

}  // namespace

Rank::Rank(const StressOptions& options, Wire& wire) : options_(options), wire_(wire) {}
Rank::~Rank() = default;

void Rank::fail(const std::string& what) {
  const std::lock_guard lock(error_lock_);
  if (result_.error.empty()) result_.error = "rank " + std::to_string(rank()) + ": " + what;
  failed_ = true;
}

bool Rank::open() {
  int count = 0;
  ibv_device** list = ibv_get_device_list(&count);
  ibv_device* device = nullptr;
  for (int i = 0; i < count && device == nullptr; ++i)
    if (options_.device.empty() || options_.device == ibv_get_device_name(list[i]))
      device = list[i];
  if (device != nullptr) context_ = ibv_open_device(device);
  if (list != nullptr) ibv_free_device_list(list);
  if (context_ == nullptr || ibv_query_port(context_, 1, &port_) != 0) return false;
  pd_ = ibv_alloc_pd(context_);
  return pd_ != nullptr;
}

bool Rank::create_srq() {
  srq_bytes_ = options_.max_bytes + kGrh;
  srq_memory_ = std::make_unique<std::uint8_t[]>(std::size_t{kSrqDepth} * srq_bytes_);
  srq_mr_ = ibv_reg_mr(pd_, srq_memory_.get(), std::size_t{kSrqDepth} * srq_bytes_,
                       IBV_ACCESS_LOCAL_WRITE);
  ibv_srq_init_attr init{};
  init.attr = {kSrqDepth, 1, 0};
  srq_ = ibv_create_srq(pd_, &init);
  if (srq_mr_ == nullptr || srq_ == nullptr) return false;
  for (std::uint32_t slot = 0; slot < kSrqDepth; ++slot) post_srq(slot);
  arm_srq();
  return true;
}

void Rank::post_srq(std::uint32_t slot) {
  ibv_sge sge{reinterpret_cast<std::uintptr_t>(srq_buffer(slot)), srq_bytes_, srq_mr_->lkey};
  ibv_recv_wr wr{kReceive | kShared | slot, nullptr, &sge, 1};
  ibv_recv_wr* bad = nullptr;
  if (const int error = ibv_post_srq_recv(srq_, &wr, &bad))
    fail(std::string("post_srq_recv: ") + std::strerror(error));
}

void Rank::arm_srq() {
  ibv_srq_attr attr{};
  attr.srq_limit = kSrqDepth - 2;
  if (const int error = ibv_modify_srq(srq_, &attr, IBV_SRQ_LIMIT))
    fail(std::string("modify_srq: ") + std::strerror(error));
}

bool Rank::create_groups() {
  const int links = (options_.rc + options_.uc + options_.ud) * (wire_.size() - 1);
  const int cqe = links * static_cast<int>(options_.depth + 4 * options_.window) + kSrqDepth;
  for (int i = 0; i < options_.groups; ++i) {
    auto group = std::make_unique<Group>();
    group->index = i;
    if (i % 2 == 1) {
      group->channel = ibv_create_comp_channel(context_);
      if (group->channel == nullptr) return false;
      fcntl(group->channel->fd, F_SETFL, fcntl(group->channel->fd, F_GETFL) | O_NONBLOCK);
    }
    group->recv_cq = ibv_create_cq(context_, cqe, group.get(), group->channel, 0);
    group->send_cq =
        i % 3 == 2 ? group->recv_cq : ibv_create_cq(context_, cqe, group.get(), group->channel, 0);
    if (group->recv_cq == nullptr || group->send_cq == nullptr) return false;
    groups_.push_back(std::move(group));
  }
  return true;
}

bool Rank::create_links() {
  for (int peer = 0; peer < wire_.size(); ++peer) {
    if (peer == rank()) continue;
    const int count = options_.rc + options_.uc + options_.ud;
    for (int i = 0; i < count; ++i) {
      const Service service = i < options_.rc                 ? Service::kRc
                              : i < options_.rc + options_.uc ? Service::kUc
                                                              : Service::kUd;
      Group& group = *groups_[(i + peer) % groups_.size()];
      auto link = std::make_unique<Link>(*this, service, peer, i);
      const bool shared = service == Service::kRc && i % 3 == 2;
      if (!link->create(group.send_cq, group.recv_cq, shared ? srq_ : nullptr)) return false;
      group.links.push_back(link.get());
      group.by_number.emplace(link->qp()->qp_num, link.get());
      links_.push_back(std::move(link));
    }
  }
  return true;
}

bool Rank::connect() {
  PortInfo port;
  port.lid = port_.lid;
  if (ibv_query_gid(context_, 1, options_.gid_index, &port.gid) != 0) return false;
  std::vector<LinkInfo> mine;
  for (const auto& link : links_) mine.push_back(link->info());
  const auto ports = wire_.all_gather(as_text(std::vector{port}));
  const auto infos = wire_.all_gather(as_text(mine));
  if (ports.empty() || infos.empty()) return false;
  const int per_peer = options_.rc + options_.uc + options_.ud;
  for (const auto& link : links_) {
    const auto theirs = from_text<LinkInfo>(infos[link->peer()]);
    // They list their links by peer, themselves left out.
    const int block = rank() - (rank() > link->peer() ? 1 : 0);
    const auto place = static_cast<std::size_t>(block * per_peer + link->index());
    if (place >= theirs.size()) return false;
    if (!link->connect(theirs[place], from_text<PortInfo>(ports[link->peer()])[0])) return false;
  }
  return !wire_.all_gather("connected").empty();
}

void Rank::post_loop(Group& group) {
  if (options_.on_thread) options_.on_thread();
  while (!ending_ && !failed()) {
    bool posted = false;
    for (Link* link : group.links)
      for (int burst = 0; burst < 4 && link->post_some(); ++burst) posted = true;
    if (!posted) std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
}

int Rank::poll_once(Group& group, ibv_cq* cq) {
  ibv_wc wc[8];
  const int count = ibv_poll_cq(cq, 8, wc);
  if (count < 0) fail("poll_cq failed");
  for (int i = 0; i < count; ++i) {
    const auto found = group.by_number.find(wc[i].qp_num);
    if (found == group.by_number.end()) {
      fail("completion of a queue pair that is not here: " + std::to_string(wc[i].qp_num));
      return 0;
    }
    const auto slot = static_cast<std::uint32_t>(wc[i].wr_id & 0xffffffff);
    if ((wc[i].wr_id & kReceive) == 0) {
      found->second->on_send_done(wc[i]);
    } else if (wc[i].wr_id & kShared) {
      if (slot >= kSrqDepth) return fail("no such receive"), 0;
      found->second->on_receive(wc[i], srq_buffer(slot), slot);
      post_srq(slot);
    } else {
      found->second->on_receive(wc[i], nullptr, slot);
    }
  }
  return count;
}

void Rank::sleep_for_events(Group& group) {
  // Armed, then looked again: whatever comes after that has to wake us.
  if (ibv_req_notify_cq(group.send_cq, 0) != 0 || ibv_req_notify_cq(group.recv_cq, 0) != 0)
    return fail("req_notify_cq failed");
  if (poll_once(group, group.send_cq) + poll_once(group, group.recv_cq) != 0) return;
  pollfd wait{group.channel->fd, POLLIN, 0};
  if (poll(&wait, 1, 300) == 0) {
    if (poll_once(group, group.send_cq) + poll_once(group, group.recv_cq) == 0) return;
    // Completed just now? Then the event is there by now.
    if (poll(&wait, 1, 1000) == 0)
      fail("completions came and their event did not, group " + std::to_string(group.index));
    return;
  }
  ibv_cq* cq = nullptr;
  void* context = nullptr;
  while (ibv_get_cq_event(group.channel, &cq, &context) == 0) {
    if (context != &group || (cq != group.send_cq && cq != group.recv_cq))
      return fail("event of a completion queue that is not ours");
    ibv_ack_cq_events(cq, 1);
    ++events_;
  }
}

void Rank::poll_loop(Group& group) {
  if (options_.on_thread) options_.on_thread();
  int idle = 0;
  while (!ending_ && !failed()) {
    if (options_.deaf != nullptr && options_.deaf->load(std::memory_order_relaxed)) {
      std::this_thread::sleep_for(milliseconds(1));
      continue;
    }
    int count = poll_once(group, group.send_cq);
    if (group.recv_cq != group.send_cq) count += poll_once(group, group.recv_cq);
    idle = count == 0 ? idle + 1 : 0;
    if (idle < 3) continue;
    if (idle == 3 && options_.slow_reader) std::this_thread::sleep_for(milliseconds(1));
    for (Link* link : group.links) link->post_receives_that_wait();
    if (group.channel != nullptr)
      sleep_for_events(group);
    else
      std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

void Rank::async_loop() {
  if (options_.on_thread) options_.on_thread();
  fcntl(context_->async_fd, F_SETFL, fcntl(context_->async_fd, F_GETFL) | O_NONBLOCK);
  while (!ending_ && !failed()) {
    pollfd wait{context_->async_fd, POLLIN, 0};
    if (poll(&wait, 1, 20) <= 0) continue;
    ibv_async_event event{};
    while (ibv_get_async_event(context_, &event) == 0) {
      const bool limit = event.event_type == IBV_EVENT_SRQ_LIMIT_REACHED;
      if (limit && event.element.srq != srq_) fail("event of an SRQ that is not ours");
      if (event.event_type == IBV_EVENT_CQ_ERR || event.event_type == IBV_EVENT_QP_FATAL)
        fail("asynchronous event " + std::to_string(event.event_type));
      ibv_ack_async_event(&event);
      ++async_events_;
      if (limit) arm_srq();
    }
  }
}

bool Rank::wait_for_links(bool (*done)(const Link&, std::uint64_t), const char* what) {
  std::uint64_t last = moved;
  auto since = std::chrono::steady_clock::now();
  while (!failed()) {
    bool all = true;
    for (std::size_t i = 0; i < links_.size() && all; ++i)
      all = done(*links_[i], i < peer_sent_.size() ? peer_sent_[i] : 0);
    if (all) return true;
    std::this_thread::sleep_for(milliseconds(2));
    const auto now = std::chrono::steady_clock::now();
    if (last != moved) last = moved, since = now;
    if (now - since > std::chrono::seconds(options_.patience_s)) {
      std::string text = std::string("nothing moves: ") + what;
      for (std::size_t i = 0; i < links_.size(); ++i)
        if (!done(*links_[i], i < peer_sent_.size() ? peer_sent_[i] : 0))
          text += "; " + links_[i]->state();
      fail(text);
    }
  }
  return false;
}

bool Rank::gather_counts() {
  std::vector<Counts> mine;
  for (const auto& link : links_) mine.push_back({link->sent(), link->atomics()});
  const auto all = wire_.all_gather(as_text(mine));
  if (all.empty()) return false;
  const int per_peer = options_.rc + options_.uc + options_.ud;
  peer_sent_.clear();
  peer_atomics_.clear();
  for (const auto& link : links_) {
    const auto theirs = from_text<Counts>(all[link->peer()]);
    const int block = rank() - (rank() > link->peer() ? 1 : 0);
    const Counts& counts = theirs.at(static_cast<std::size_t>(block * per_peer + link->index()));
    peer_sent_.push_back(counts.sent);
    peer_atomics_.push_back(counts.atomics);
  }
  return true;
}

// All that was sent has come (unreliable links: or nothing more does), and all work is done.
bool Rank::settle() {
  if (!wait_for_links([](const Link& l, std::uint64_t) { return l.sealed(); }, "not all sent"))
    return false;
  if (!gather_counts()) return false;
  const auto came = [](const Link& l, std::uint64_t sent) {
    return l.service() != Service::kRc || l.received() == sent;
  };
  if (!wait_for_links(came, "not all received")) return false;
  for (std::uint64_t last = ~0ull; last != moved;) {
    last = moved;
    std::this_thread::sleep_for(milliseconds(200));
  }
  for (std::size_t i = 0; i < links_.size(); ++i) {
    if (links_[i]->received() > peer_sent_[i]) fail("more came than was sent");
    lost += peer_sent_[i] - links_[i]->received();
  }
  if (wire_.all_gather("received").empty()) return false;
  if (!wait_for_links([](const Link& l, std::uint64_t) { return l.settled(); }, "work is left"))
    return false;
  if (wire_.all_gather("settled").empty()) return false;
  for (std::size_t i = 0; i < links_.size(); ++i)
    if (links_[i]->word() != peer_atomics_[i])
      fail("atomics: " + links_[i]->name() + ": " + std::to_string(links_[i]->word()) +
           " were done, " + std::to_string(peer_atomics_[i]) + " were sent");
  return true;
}

void Rank::join() {
  ending_ = true;
  for (const auto& group : groups_) {
    if (group->poster.joinable()) group->poster.join();
    if (group->poller.joinable()) group->poller.join();
  }
  if (churner_.joinable()) churner_.join();
  if (async_.joinable()) async_.join();
}

void Rank::close() {
  const auto check = [this](int error, const char* what) {
    if (error != 0) fail(std::string(what) + ": " + std::strerror(error));
  };
  for (const auto& link : links_) link->destroy();
  if (srq_ != nullptr) check(ibv_destroy_srq(srq_), "destroy_srq");
  if (srq_mr_ != nullptr) check(ibv_dereg_mr(srq_mr_), "dereg_mr");
  for (const auto& group : groups_) {
    if (group->send_cq != nullptr && group->send_cq != group->recv_cq)
      check(ibv_destroy_cq(group->send_cq), "destroy_cq");
    if (group->recv_cq != nullptr) check(ibv_destroy_cq(group->recv_cq), "destroy_cq");
    if (group->channel != nullptr)
      check(ibv_destroy_comp_channel(group->channel), "destroy_comp_channel");
  }
  if (pd_ != nullptr) check(ibv_dealloc_pd(pd_), "dealloc_pd");
  if (context_ != nullptr) check(ibv_close_device(context_), "close_device");
}

StressResult Rank::run() {
  if (options_.on_thread) options_.on_thread();
  if (!open() || !create_srq() || !create_groups() || !create_links() || !connect()) {
    fail(std::string("set-up failed: ") + std::strerror(errno));
  } else {
    for (const auto& group : groups_) {
      group->poller = std::thread([this, g = group.get()] { poll_loop(*g); });
      group->poster = std::thread([this, g = group.get()] { post_loop(*g); });
    }
    if (options_.churn) churner_ = std::thread([this] { churn_loop(); });
    async_ = std::thread([this] { async_loop(); });
    if (!settle() && !failed()) fail("another rank is gone");
  }
  join();
  close();
  result_.messages = messages;
  result_.bytes = bytes;
  result_.one_sided = one_sided;
  result_.lost = lost;
  result_.events = events_;
  result_.async_events = async_events_;
  result_.churned = churned_;
  return result_;
}

StressResult run_stress(const StressOptions& options, Wire& wire) {
  return Rank(options, wire).run();
}

}  // namespace symvirt::verbs_stress
