// Framing of the local channels (virtio-serial, AF_UNIX): one JSON object a line, '\n' at its end.
// A reader that joins in the middle (virtio-serial is re-opened after a migration) is back in step at the next newline.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include "common/result.h"

namespace symvirt {

inline constexpr std::size_t kMaxLineBytes = 8u << 20;  // one message; payloads of whole nodes fit, floods do not

class LineBuffer {
 public:
  explicit LineBuffer(std::size_t max_line = kMaxLineBytes) : max_(max_line) {}

  // Appends what was read. kExhausted when a line grows beyond the limit: the peer is broken, close the channel.
  Status append(std::string_view bytes);
  // The next whole line without its newline (and without a '\r' before it), or nothing.
  std::optional<std::string> next();
  void clear();

 private:
  std::size_t max_;
  std::string buffer_;
  std::size_t scanned_ = 0;  // bytes of buffer_ known to hold no newline
};

}  // namespace symvirt
