#include "pmix-hooks/server/pmix_events.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <set>
#include <utility>

#include "pmix-hooks/message.h"

namespace symvirt::hooks {
namespace {

constexpr int kRegisterWaitMs = 10'000;

// PMIx's handler gets no pointer of ours, so the sink is the process's. Never destroyed: PMIx's
// thread outlives statics.
struct SinkHolder {
  std::mutex mutex;
  PmixEvents::Sink sink;
};
SinkHolder& holder() {
  static auto* const the_holder = new SinkHolder;
  return *the_holder;
}

void on_event(std::size_t, pmix_status_t code, const pmix_proc_t* source, pmix_info_t info[],
              std::size_t ninfo, pmix_info_t*, std::size_t,
              pmix_event_notification_cbfunc_fn_t done, void* done_data) {
  try {
    const std::lock_guard lock(holder().mutex);
    if (holder().sink && source != nullptr) {
      holder().sink({code, source->rank, source->nspace, std::string(event_message(info, ninfo))});
    }
  } catch (
      ...) {  // out of memory: as if the event was lost; the round's deadline says who is missing
  }
  if (done != nullptr) done(PMIX_EVENT_ACTION_COMPLETE, nullptr, 0, nullptr, nullptr, done_data);
}

bool is_loopback(int fd) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  if (getpeername(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) return false;
  if (address.ss_family == AF_INET) {
    const auto& in4 = reinterpret_cast<const sockaddr_in&>(address);
    return (ntohl(in4.sin_addr.s_addr) >> 24) == 127;
  }
  if (address.ss_family != AF_INET6) return false;
  const auto& in6 = reinterpret_cast<const sockaddr_in6&>(address);
  return IN6_IS_ADDR_LOOPBACK(&in6.sin6_addr) != 0;
}

}  // namespace

Status PmixEvents::open(Sink sink) {
  api_ = PmixApi::find();
  if (!api_.complete() || api_.initialized() == 0) {
    return Error{Code::kNotFound, "no PMIx server in this step; start it with srun --mpi=pmix"};
  }
  {
    const std::lock_guard lock(holder().mutex);
    holder().sink = std::move(sink);
  }
  registration_ =
      register_events(api_, {kEventHello, kEventAnswer, kEventBye}, on_event, kRegisterWaitMs);
  if (!registration_.ok) {
    close();
    return Error{Code::kInternal, "event handler not registered with slurmstepd's PMIx server"};
  }
  return {};
}

void PmixEvents::close() {
  if (std::exchange(registration_.ok, false))
    api_.deregister_handler(registration_.id, nullptr, nullptr);
  const std::lock_guard lock(holder().mutex);
  holder().sink = nullptr;
}

Status PmixEvents::send(int code, const std::string& nspace, std::vector<Recipient> recipients,
                        const std::string& message) {
  // The server itself is the source; PMIx fills in nothing for a null one in every version, so it
  // is said.
  const pmix_proc_t source = make_proc(nspace.c_str(), PMIX_RANK_UNDEF);
  while (!recipients.empty()) {  // almost always once
    std::set<std::uint32_t> ranks;
    const auto again = std::stable_partition(
        recipients.begin(), recipients.end(),
        [&ranks](const Recipient& recipient) { return ranks.insert(recipient.rank).second; });
    auto info = std::make_unique<EventInfo>(message, nspace.c_str(),
                                            std::vector(recipients.begin(), again));
    if (!send_event(api_, code, source, PMIX_RANGE_CUSTOM, std::move(info), 0))
      return Error{Code::kInternal, "event " + std::to_string(code) + " not sent: PMIx refused it"};
    recipients.erase(recipients.begin(), again);
  }
  return {};
}

int set_nodelay_on_loopback() {
  const std::unique_ptr<DIR, int (*)(DIR*)> directory(opendir("/proc/self/fd"), closedir);
  int count = 0;
  while (const dirent* entry = directory ? readdir(directory.get()) : nullptr) {
    const int fd = std::atoi(entry->d_name);
    if (entry->d_name[0] == '.' || !is_loopback(fd)) continue;
    const int on = 1;
    count += setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0;
  }
  return count;
}

}  // namespace symvirt::hooks
