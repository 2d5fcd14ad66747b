// A job of stress ranks in one process: each a set of threads with a layer of its own, on a host of
// its own, all over one provider double. Brought to rest, moved and resumed as the coordinator
// would.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "pmix-hooks/ranks/verbs/layer.h"
#include "pmix-hooks/ranks/verbs/testing/fabric.h"
#include "pmix-hooks/ranks/verbs/verbs_transport.h"
#include "tests/verbs/thread_wire.h"

namespace symvirt::verbs_stress {

namespace double_ = hooks::verbs::testing;

struct MoveReport {
  bool rested = false;  // all did; otherwise it was given up, and resumed
  int quiesce_rounds = 0;
  int resume_rounds = 0;
  double drain_s = 0;
  double rebuild_s = 0;
  std::string error;
  std::string course;  // first line of what each rank answered in each round of the quiesce
};

class StressJob {
 public:
  StressJob(int ranks, const StressOptions& options, const double_::Options& fabric);
  ~StressJob();
  StressJob(const StressJob&) = delete;
  StressJob& operator=(const StressJob&) = delete;

  void start();
  // Until every rank has its device open. Who opens the first one after others were moved does not
  // know the numbers they carry (docs/status.md).
  void await_devices();
  // Those whose bit is set get another device, the others keep theirs. give_up_after: rounds, then
  // resumed where they are (0: not). undone: they rest, and no device goes.
  MoveReport move(unsigned moved_ranks, int give_up_after = 0, bool undone = false);
  // After the messages, or when stop is set.
  std::vector<StressResult> join();
  void stop() { stop_ = true; }
  // Those ranks do not poll.
  void deafen(unsigned ranks);
  bool running() const { return running_ != 0; }
  double_::Fabric& fabric() { return fabric_; }

 private:
  struct Process {
    hooks::verbs::Layer layer;
    std::unique_ptr<hooks::verbs::VerbsTransport> transport;
    StressOptions options;
    std::unique_ptr<ThreadWire> wire;
    std::string device;
    std::atomic<bool> deaf{false};
    std::thread thread;
    StressResult result;
  };
  // One step of rank i in a round.
  using Step = std::function<hooks::TransportAnswer(std::size_t i, std::uint32_t round,
                                                    const hooks::Payloads& payloads)>;
  int rounds(const Step& step, int limit, bool& finished);
  void plug(int rank);
  void act_as(int rank);

  double_::Fabric fabric_;
  ThreadMeeting meeting_;
  std::vector<std::unique_ptr<Process>> processes_;
  std::atomic<bool> stop_{false};
  std::atomic<int> running_{0};
  std::string course_;
  std::uint64_t epoch_ = 0;
  std::uint64_t devices_ = 0;
};

}  // namespace symvirt::verbs_stress
