// The thread of a rank that answers the server. PMIx's handler, which must call nothing of PMIx (it
// would deadlock with PMIx_Finalize), only puts the event into this thread's queue.
//
// Life: start() after PMIx_Init, stop() before the last PMIx_Finalize; both on an application
// thread.
#pragma once

#include <pthread.h>

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <string>

#include "pmix-hooks/message.h"
#include "pmix-hooks/ranks/transport.h"

namespace symvirt::hooks {

// The way to the server; PMIx in a rank, a fake in tests. send() blocks shortly; false: it did not
// get there.
class RankLink {
 public:
  RankLink() = default;
  RankLink(const RankLink&) = delete;
  RankLink& operator=(const RankLink&) = delete;
  virtual ~RankLink() = default;
  virtual bool send(int code, const std::string& message) = 0;
};

class RankAgent {
 public:
  // Both outlive the agent. pid: of this process, as the server sees it.
  RankAgent(std::int32_t pid, Transport& transport, RankLink& link)
      : pid_(pid), transport_(transport), link_(link) {}
  RankAgent(const RankAgent&) = delete;
  RankAgent& operator=(const RankAgent&) = delete;
  ~RankAgent() { stop(); }

  // False when the thread cannot be created. All signals are blocked in it: they are the
  // application's.
  bool start();
  // Waits for the answer being given, drops the rest of the queue. May be called twice.
  void stop();
  // Any thread, never blocks on anything slow.
  void deliver(int code, std::string message);
  // Says HELLO once more, with the reason why this process cannot be brought to rest. Any thread,
  // does not block.
  void say_immovable(const std::string& why);
  // Until the transport has been told of its peers since the HELLO, or the last quiesce; at most
  // wait_ms; false: it has not been. Any thread but the agent's.
  bool await_peers(int wait_ms);
  // No call into link or transport begins after this; waits for one that is under way, at most
  // wait_ms.
  void mute(int wait_ms);

 private:
  struct Event {
    int code = 0;
    std::string message;
  };

  static void* run_thread(void* self);
  void run();
  void serve(const Event& event);
  Answer answer_for(int code, const Command& command);

  const std::int32_t pid_;
  Transport& transport_;
  RankLink& link_;

  // Only the thread touches these. A command that comes twice (the server repeats after a lost
  // answer) is not done twice: the transport's rounds are not repeatable.
  int last_code_ = 0;
  std::optional<Answer> last_answer_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Event> queue_;
  bool stopping_ = false;
  bool serving_ = false;
  bool peers_known_ = false;
  bool running_ = false;
  pthread_t thread_{};
};

}  // namespace symvirt::hooks
