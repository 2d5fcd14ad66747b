#include "common/line_buffer.h"

namespace symvirt {

Status LineBuffer::append(std::string_view bytes) {
  buffer_.append(bytes);
  const std::size_t newline = buffer_.find('\n', scanned_);
  const std::size_t line = newline == std::string::npos ? buffer_.size() : newline;
  if (line > max_) {
    clear();
    return Error{Code::kExhausted, "message too long: more than " + std::to_string(max_) + " bytes in one line"};
  }
  return {};
}

std::optional<std::string> LineBuffer::next() {
  const std::size_t newline = buffer_.find('\n', scanned_);
  if (newline == std::string::npos) {
    scanned_ = buffer_.size();
    return std::nullopt;
  }
  std::string line = buffer_.substr(0, newline);
  buffer_.erase(0, newline + 1);
  scanned_ = 0;
  if (!line.empty() && line.back() == '\r') line.pop_back();
  return line;
}

void LineBuffer::clear() {
  buffer_.clear();
  scanned_ = 0;
}

}  // namespace symvirt
