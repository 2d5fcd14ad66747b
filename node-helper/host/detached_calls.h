// Calls into a library that can hang. Each has a thread of its own, which is left alone when it has
// not come back by its deadline; there is no other way to end it. So many of them may be out at
// once, and fewer about one VM, whose QEMU may be what hangs: beyond, nothing is begun, rather than
// a thread more for each question. Threads: any.
#pragma once

#include <fmt/format.h>

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <system_error>
#include <thread>

#include "common/deadline.h"
#include "common/result.h"

namespace symvirt::host {

class DetachedCalls {
 public:
  DetachedCalls(std::size_t most, std::size_t most_of_one)
      : shared_(std::make_shared<Shared>(most, most_of_one)) {}

  // vm: whom it is about; "": none. kDeadline: it is still out. kUnavailable: nothing was begun.
  // `work` must own what it refers to.
  template <typename T>
  Result<T> run(const std::string& what, const std::string& vm, Deadline deadline,
                std::function<Result<T>()> work) {
    struct Slot {
      std::mutex mutex;
      std::condition_variable ready;
      std::optional<Result<T>> result;
    };
    if (Status begun = shared_->begin(vm); !begun) return begun.error().with(what);
    auto slot = std::make_shared<Slot>();
    try {
      std::thread([slot, shared = shared_, vm, work = std::move(work)] {
        Result<T> result = work();
        shared->end(vm);
        std::lock_guard lock(slot->mutex);
        slot->result = std::move(result);
        slot->ready.notify_all();
      }).detach();
    } catch (const std::system_error& e) {
      shared_->end(vm);
      return Error{Code::kUnavailable, fmt::format("{}: not begun: no thread: {}", what, e.what())};
    }
    std::unique_lock lock(slot->mutex);
    if (!slot->ready.wait_until(lock, deadline.time(), [&] { return slot->result.has_value(); }))
      return Error{Code::kDeadline, what + ": libvirt has not answered in time"};
    return std::move(*slot->result);
  }

 private:
  struct Shared {
    Shared(std::size_t most_, std::size_t most_of_one_) : most(most_), most_of_one(most_of_one_) {}

    Status begin(const std::string& vm) {
      std::lock_guard lock(mutex);
      const std::size_t of_it = vm.empty() || !of_vm.contains(vm) ? 0 : of_vm[vm];
      if (out >= most) return too_many(out, "does libvirtd hang? restart it");
      if (of_it >= most_of_one) return too_many(of_it, "does its QEMU hang? destroy the domain");
      ++out;
      ++of_vm[vm];
      return {};
    }
    void end(const std::string& vm) {
      std::lock_guard lock(mutex);
      --out;
      if (--of_vm[vm] == 0) of_vm.erase(vm);
    }
    static Error too_many(std::size_t count, const char* advice) {
      return Error{
          Code::kUnavailable,
          fmt::format("not begun: {} calls to libvirt have not come back; {}", count, advice)};
    }

    const std::size_t most, most_of_one;
    std::mutex mutex;
    std::size_t out = 0;
    std::map<std::string, std::size_t> of_vm;
  };
  std::shared_ptr<Shared> shared_;
};

}  // namespace symvirt::host
