// Who may touch what, and how the data path gets by without an atomic instruction.
//
// A post or poll is 20 to 100 ns of somebody else's code; a locked instruction would add a third to
// that. So the costs are asymmetric, as in RCU: the data path only says "I am inside" in a word of
// its own thread (a plain store), then looks at the layer's state word. Whoever changes that word
// (a quiesce: seconds apart) issues membarrier(2), which puts the missing full fence into all
// running threads, and then waits until every thread that was inside has left: synchronize(). From
// then on every thread has seen the new state.
//
// Objects that several threads may use at the same time are kept consistent by a BiasedLock: free
// for the thread that used it first, an ordinary spin lock from the moment a second thread comes.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>

namespace symvirt::hooks::verbs {

// One a thread, never freed (a new thread takes over the slot of one that ended).
struct alignas(64) ThreadSlot {
  std::atomic<std::uint64_t> turns{0};  // odd: inside an operation
  std::atomic<bool> used{true};
  ThreadSlot* next = nullptr;
};

// tls_model: the library is preloaded, never dlopened, so its TLS is in the static block.
extern constinit thread_local ThreadSlot* thread_slot __attribute__((tls_model("initial-exec")));
extern std::atomic<bool> fence_needed;  // no membarrier on this kernel: the data path pays for it

ThreadSlot* new_thread_slot();

inline ThreadSlot* this_thread() {
  ThreadSlot* slot = thread_slot;
  return __builtin_expect(slot != nullptr, 1) ? slot : new_thread_slot();
}

inline void enter(ThreadSlot* slot) {
  slot->turns.store(slot->turns.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  std::atomic_signal_fence(std::memory_order_seq_cst);
  if (__builtin_expect(fence_needed.load(std::memory_order_relaxed), 0))
    std::atomic_thread_fence(std::memory_order_seq_cst);
}

inline void leave(ThreadSlot* slot) {
  slot->turns.store(slot->turns.load(std::memory_order_relaxed) + 1, std::memory_order_release);
}

// Until every thread that was inside an operation when this was called has left it. Not from inside
// one.
void synchronize();
// Only until that thread has.
void synchronize_with(ThreadSlot* slot);
// In a forked child: nobody else is there.
void forget_other_threads();

class SpinLock {
 public:
  void lock() {
    while (taken_.exchange(true, std::memory_order_acquire)) wait();
  }
  void unlock() { taken_.store(false, std::memory_order_release); }

 private:
  void wait();
  std::atomic<bool> taken_{false};
};

// lock() is called inside an operation (enter()). It returns how it was taken, for unlock();
// kRetry: another thread's bias had to be taken away, for which the operation was left: begin it
// anew.
class BiasedLock {
 public:
  enum class Taken { kBiased, kShared, kRetry };

  // The lock of a thread that comes again: lock() would give kBiased.
  bool is_biased_to(const ThreadSlot* slot) const {
    return owner_.load(std::memory_order_acquire) == slot;
  }
  Taken lock(ThreadSlot* slot) {
    if (__builtin_expect(is_biased_to(slot), 1)) return Taken::kBiased;
    return lock_slowly(slot);
  }
  void unlock(Taken taken) {
    if (__builtin_expect(taken == Taken::kShared, 0)) spin_.unlock();
  }

 private:
  Taken lock_slowly(ThreadSlot* slot);

  // A slot, null (nobody yet), or one of two marks.
  std::atomic<ThreadSlot*> owner_{nullptr};
  SpinLock spin_;
};

// Control calls (create, modify, destroy, query) against a quiesce: they wait while the objects are
// taken down. Unlike a shared mutex it may be opened by another thread than the one that closed it.
class ControlGate {
 public:
  void enter();
  void leave();
  // New calls wait; returns when those under way have returned, or false at the deadline (and is
  // closed nevertheless). Closed already: only waits.
  bool close(int wait_ms);
  void open();
  bool closed();
  void reset_in_child();

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int inside_ = 0;
  bool closed_ = false;
};

}  // namespace symvirt::hooks::verbs
