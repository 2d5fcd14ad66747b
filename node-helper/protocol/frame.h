// Frames and envelopes of docs/protocols.md section 1.
// Threads: plain values.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "common/result.h"
#include "node-helper/protocol/credentials.h"

namespace symvirt {

inline constexpr std::size_t kMaxCredential = 4096;
inline constexpr std::size_t kMaxBody = 8u << 20;

struct Frame {
  std::string credential;
  std::string body;
};

std::string encode_frame(const Frame& frame);

// Takes bytes as they come and gives whole frames. kInvalidArgument as soon as a length is out of
// bounds: close the connection.
class FrameReader {
 public:
  void append(std::string_view bytes) { buffer_.append(bytes); }
  Result<std::optional<Frame>> next();
  bool empty() const { return buffer_.empty(); }
  // The credential of a frame whose body, longer than `small`, has still to come: who would send so
  // much can be asked before it is taken.
  std::optional<std::string> credential_of_longer(std::size_t small) const;

 private:
  std::string buffer_;
};

// What the credential's payload binds together.
struct Envelope {
  std::string direction;  // "req", "rep"
  std::string destination;
  std::string nonce;  // 32 hex digits
  std::int64_t sequence = 0;
};

std::string new_nonce();  // 128 random bits
std::string sha256_hex(std::string_view data);

// Signs a body.
Result<Frame> seal(Credentials& credentials, const Envelope& envelope, std::string body);

// A credential that is good, for a body still to be seen.
struct Vouched {
  uid_t uid;
  Envelope envelope;
  std::string sha256;
};

// Checks credential, direction and destination: the first half of unseal(), once for each frame (a
// credential is good once).
Result<Vouched> open_credential(Credentials& credentials, const std::string& credential,
                                std::string_view direction, std::string_view destination);
// The second half.
Result<nlohmann::json> open_body(const Vouched& vouched, const std::string& body);

struct Opened {
  uid_t uid;
  Envelope envelope;
  nlohmann::json body;
};

// Checks credential, hash, direction and destination, and parses the body. Everything wrong is
// kPermission, except a body that is signed but is no JSON object (kInvalidArgument), or a munged
// that does not answer (kUnavailable).
Result<Opened> unseal(Credentials& credentials, const Frame& frame, std::string_view direction,
                      std::string_view destination);

}  // namespace symvirt
