// The layer of one process: its contexts, the gates, and where its peers are now.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "pmix-hooks/ranks/verbs/directory.h"
#include "pmix-hooks/ranks/verbs/gate.h"
#include "pmix-hooks/ranks/verbs/objects.h"

namespace symvirt::hooks::verbs {

// Layer::state. Zero until the first quiesce of the process: the data path passes through.
enum State : std::uint32_t {
  kCarried = 1,    // there was a quiesce: keys may need translation
  kSendsHeld = 2,  // post_send only writes it down
  kRecvsHeld = 4,  // post_recv, too
  kPollsHeld = 8,  // completions come from the software queues
  kForked = 16,    // a child of fork: nothing here is its own
};

class Layer {
 public:
  Layer() = default;
  Layer(const Layer&) = delete;
  Layer& operator=(const Layer&) = delete;

  // Of this process; never destroyed. A test that plays several processes gives its threads a layer
  // each: contexts opened by a thread belong to its layer.
  static Layer& current();
  static void set_current_for_test(Layer* layer);

  alignas(64) std::atomic<std::uint32_t> state{0};

  alignas(64) ControlGate control;
  // Guards lists of objects against each other.
  std::mutex objects_mutex;
  ObjectList<VContext> contexts;

  // Everything the data path does while it is held, and software events at any time.
  std::mutex held_mutex;
  // Under held_mutex; then waits until no thread is in an operation that began before.
  void change_state(std::uint32_t set, std::uint32_t clear);

  // Replaced only while all gates are closed.
  std::unique_ptr<Directory> directory;

  // The process cannot be quiesced, for this reason (the first one is kept). Any thread.
  void mark_immovable(const std::string& reason);
  std::string immovable();
  // Called once, when the first reason comes, on the thread that caused it; must not block. None is
  // running when this returns.
  void on_immovable(std::function<void(const std::string&)> callback);

  // Puts the virtual number of the sender into a UD completion.
  void name_source(VQp& qp, ibv_wc& wc) const;

  std::atomic<bool> ever_opened{false};

  // Called before a device is opened, while the process has opened none: so that who holds a device
  // takes part, and knows the others. With kWait without locks, and it may take seconds. False:
  // there was a quiesce since, and the peers are not known (yet). Any thread; set once, when the
  // library is loaded.
  enum class Ask { kWait, kNow };
  static inline std::atomic<bool (*)(Ask)> before_first_open{nullptr};

 private:
  std::mutex immovable_mutex_;
  std::string immovable_;
  std::function<void(const std::string&)> on_immovable_;
};

// A control call for its whole duration.
class ControlCall {
 public:
  explicit ControlCall(Layer& layer) : layer_(layer) { layer_.control.enter(); }
  ControlCall(const ControlCall&) = delete;
  ControlCall& operator=(const ControlCall&) = delete;
  ~ControlCall() { layer_.control.leave(); }

 private:
  Layer& layer_;
};

inline bool forked(const Layer& layer) {
  return (layer.state.load(std::memory_order_relaxed) & kForked) != 0;
}

// data_path.cc
void install_data_path(ibv_context_ops& ops);
// Enters what one completion says into the books and turns it into the application's. False: it is
// the layer's own, not to be shown. Under the queue's lock, or alone.
bool account(VContext& context, ibv_wc& wc);
int post_srq_slot(VSrq& srq, std::uint32_t slot);

// logged_work.cc
int post_records(VQp& qp, std::uint64_t from, std::uint64_t to);   // sends, to the real queue
int post_receives(VQp& qp, std::uint64_t from, std::uint64_t to);  // the same for receives

// held.cc
int held_post_send(VQp& qp, ibv_send_wr* wr, ibv_send_wr** bad, bool& again);
int held_post_recv(VQp& qp, ibv_recv_wr* wr, ibv_recv_wr** bad, bool& again);
int held_poll(VCq& cq, int count, ibv_wc* wc, bool& again);
int held_notify(VCq& cq, int solicited_only, bool& again);
// Real queues and events into software ones, once round. held_mutex is held. Returns how many
// completions came.
std::size_t pump(Layer& layer);

// events.cc: software events; held_mutex is held by the caller.
void raise_event(VCq& cq);
void raise_async(VContext& context, const ibv_async_event& event);
// Moves what the real channel (descriptor) holds to the software events. True: there was something.
bool drain_channel(VChannel& channel);
bool drain_async(VContext& context);

}  // namespace symvirt::hooks::verbs
