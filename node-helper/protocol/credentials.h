// Who speaks: the narrow interface to MUNGE, and MUNGE itself through libmunge.
#pragma once

#include <sys/types.h>

#include <semaphore>
#include <string>
#include <string_view>

#include "common/result.h"

namespace symvirt {

struct Identity {
  uid_t uid = static_cast<uid_t>(-1);
  gid_t gid = static_cast<gid_t>(-1);
  std::string payload;
};

// Threads: any.
class Credentials {
 public:
  virtual ~Credentials() = default;
  virtual Result<std::string> encode(std::string_view payload) = 0;
  // kPermission: invalid, expired, rewound or replayed (on this host). kUnavailable: munged does
  // not answer.
  virtual Result<Identity> decode(std::string_view credential) = 0;
};

// munged's socket has a short queue: hundreds of threads that ask at once get "socket communication
// error". A few at a time are as fast, since munged has two threads by default.
inline constexpr int kMungeAtOnce = 8;

// A context per call: libmunge's contexts are not for several threads, and creating one is cheap
// beside the round trip.
class MungeCredentials : public Credentials {
 public:
  // socket empty: libmunge's default. ttl_s 0: munged's default (300 s).
  explicit MungeCredentials(std::string socket = "", int ttl_s = 0)
      : socket_(std::move(socket)), ttl_s_(ttl_s) {}
  Result<std::string> encode(std::string_view payload) override;
  Result<Identity> decode(std::string_view credential) override;

 private:
  std::string socket_;
  int ttl_s_;
  std::counting_semaphore<kMungeAtOnce> slots_{kMungeAtOnce};
};

}  // namespace symvirt
