#include "pmix-hooks/ranks/verbs/gate.h"

#include <linux/membarrier.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <new>

namespace symvirt::hooks::verbs {

constinit thread_local ThreadSlot* thread_slot = nullptr;
std::atomic<bool> fence_needed{false};

namespace {

std::atomic<ThreadSlot*> all_slots{nullptr};
pthread_key_t exit_key;
pthread_once_t once = PTHREAD_ONCE_INIT;

long membarrier(int command) { return syscall(SYS_membarrier, command, 0, 0); }

void slot_of_ended_thread(void* slot) {
  static_cast<ThreadSlot*>(slot)->used.store(false, std::memory_order_release);
  thread_slot = nullptr;
}

void set_up() {
  pthread_key_create(&exit_key, slot_of_ended_thread);
  if (membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) != 0) fence_needed = true;
}

void full_fence_everywhere() {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (!fence_needed.load(std::memory_order_relaxed)) membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED);
}

void await_turn(const ThreadSlot& slot) {
  const std::uint64_t turns = slot.turns.load(std::memory_order_acquire);
  if (turns % 2 == 0) return;
  while (slot.turns.load(std::memory_order_acquire) == turns) sched_yield();
}

ThreadSlot* recycled_slot() {
  for (ThreadSlot* s = all_slots.load(std::memory_order_acquire); s != nullptr; s = s->next) {
    bool used = false;
    if (s->used.compare_exchange_strong(used, true, std::memory_order_acq_rel)) return s;
  }
  return nullptr;
}

ThreadSlot* const kSharedMark = reinterpret_cast<ThreadSlot*>(1);
ThreadSlot* const kRevokingMark = reinterpret_cast<ThreadSlot*>(2);

}  // namespace

ThreadSlot* new_thread_slot() {
  pthread_once(&once, set_up);
  ThreadSlot* slot = recycled_slot();
  if (slot == nullptr) {
    slot = new ThreadSlot;
    slot->next = all_slots.load(std::memory_order_relaxed);
    while (!all_slots.compare_exchange_weak(slot->next, slot, std::memory_order_acq_rel)) {
    }
  }
  pthread_setspecific(exit_key, slot);
  return thread_slot = slot;
}

void synchronize() {
  pthread_once(&once, set_up);
  full_fence_everywhere();
  for (ThreadSlot* s = all_slots.load(std::memory_order_acquire); s != nullptr; s = s->next)
    await_turn(*s);
}

void synchronize_with(ThreadSlot* slot) {
  full_fence_everywhere();
  await_turn(*slot);
}

void forget_other_threads() {
  for (ThreadSlot* s = all_slots.load(std::memory_order_acquire); s != nullptr; s = s->next) {
    const std::uint64_t turns = s->turns.load(std::memory_order_relaxed);
    if (s != thread_slot && turns % 2 == 1) s->turns.store(turns + 1, std::memory_order_relaxed);
  }
}

void SpinLock::wait() {
  for (int spins = 0; taken_.load(std::memory_order_relaxed); ++spins) {
    if (spins < 100) {
      __builtin_ia32_pause();
    } else {
      sched_yield();  // the holder may have lost its CPU
    }
  }
}

BiasedLock::Taken BiasedLock::lock_slowly(ThreadSlot* slot) {
  ThreadSlot* owner = owner_.load(std::memory_order_acquire);
  if (owner == nullptr && owner_.compare_exchange_strong(owner, slot, std::memory_order_acq_rel,
                                                         std::memory_order_acquire))
    return Taken::kBiased;
  if (owner == kSharedMark) {
    spin_.lock();
    return Taken::kShared;
  }
  // The owner may be waiting for us in the same way: neither waits inside an operation.
  leave(slot);
  if (owner == kRevokingMark) {
    sched_yield();
  } else if (owner_.compare_exchange_strong(owner, kRevokingMark, std::memory_order_acq_rel)) {
    synchronize_with(owner);
    owner_.store(kSharedMark, std::memory_order_release);
  }
  return Taken::kRetry;
}

void ControlGate::enter() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !closed_; });
  ++inside_;
}

void ControlGate::leave() {
  const std::lock_guard lock(mutex_);
  if (--inside_ == 0) changed_.notify_all();
}

bool ControlGate::close(int wait_ms) {
  std::unique_lock lock(mutex_);
  closed_ = true;
  return changed_.wait_for(lock, std::chrono::milliseconds(wait_ms),
                           [this] { return inside_ == 0; });
}

void ControlGate::open() {
  const std::lock_guard lock(mutex_);
  closed_ = false;
  changed_.notify_all();
}

bool ControlGate::closed() {
  const std::lock_guard lock(mutex_);
  return closed_;
}

void ControlGate::reset_in_child() {
  new (&mutex_) std::mutex;
  new (&changed_) std::condition_variable;
  inside_ = 0;
  closed_ = false;
}

}  // namespace symvirt::hooks::verbs
