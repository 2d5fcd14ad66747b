// PMIx's server side inside slurmstepd: events to the local ranks, and theirs back.
//
// slurmstepd's own PMIx server is used, found with dlopen(RTLD_NOLOAD); nothing is linked. Ranks'
// events arrive on PMIx's progress thread and are only queued there.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "common/result.h"
#include "pmix-hooks/pmix_api.h"

namespace symvirt::hooks {

struct RankEvent {
  int code = 0;
  std::uint32_t rank = 0;
  std::string nspace;
  std::string message;
};

class PmixEvents {
 public:
  // Called on PMIx's thread: must only enqueue.
  using Sink = std::function<void(RankEvent)>;

  PmixEvents() = default;
  PmixEvents(const PmixEvents&) = delete;
  PmixEvents& operator=(const PmixEvents&) = delete;
  ~PmixEvents() { close(); }

  // kNotFound: this step has no PMIx server (srun --mpi=none, a batch script). At most one object a
  // process is open.
  Status open(Sink sink);
  // After it the sink is not called any more.
  void close();
  bool is_open() const { return registration_.ok; }
  // kInternal when PMIx refuses. Does not wait: the ranks' answers are what counts.
  Status send(int code, const std::string& nspace, std::vector<Recipient> recipients,
              const std::string& message);

 private:
  PmixApi api_;
  Registration registration_;
};

// Sets TCP_NODELAY on this process's connected loopback sockets, of which PMIx's are some: with
// Nagle's algorithm against the clients' delayed ACK an event costs 42 ms instead of 0.3. Harmless
// to the others. Returns how many.
int set_nodelay_on_loopback();

}  // namespace symvirt::hooks
