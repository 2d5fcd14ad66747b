#include "node-helper/protocol/frame.h"

#include <fmt/format.h>
#include <openssl/evp.h>
#include <sys/random.h>

#include <array>
#include <cstring>

#include "common/json_nesting.h"

namespace symvirt {
namespace {

using nlohmann::json;

constexpr std::size_t kHeader = 8;

std::uint32_t read_u32(const std::string& s, std::size_t at) {
  std::uint32_t v = 0;
  for (std::size_t i = 0; i < 4; ++i) v = v << 8 | static_cast<unsigned char>(s[at + i]);
  return v;
}

void put_u32(std::string& s, std::size_t value) {
  for (int shift = 24; shift >= 0; shift -= 8)
    s.push_back(static_cast<char>(value >> shift & 0xff));
}

std::string hex(const unsigned char* data, std::size_t size) {
  std::string text;
  text.reserve(2 * size);
  for (std::size_t i = 0; i < size; ++i) text += fmt::format("{:02x}", data[i]);
  return text;
}

std::optional<std::string> text(const json& j, const char* field) {
  auto it = j.find(field);
  if (it == j.end() || !it->is_string()) return std::nullopt;
  return it->get<std::string>();
}

}  // namespace

std::string encode_frame(const Frame& frame) {
  std::string bytes;
  bytes.reserve(kHeader + frame.credential.size() + frame.body.size());
  put_u32(bytes, frame.credential.size());
  put_u32(bytes, frame.body.size());
  return bytes + frame.credential + frame.body;
}

Result<std::optional<Frame>> FrameReader::next() {
  if (buffer_.size() < kHeader) return std::optional<Frame>();
  const std::size_t credential = read_u32(buffer_, 0);
  const std::size_t body = read_u32(buffer_, 4);
  if (credential == 0 || credential > kMaxCredential || body == 0 || body > kMaxBody) {
    return Error{Code::kInvalidArgument,
                 fmt::format("frame with credential of {} and body of {} bytes", credential, body)};
  }
  if (buffer_.size() < kHeader + credential + body) return std::optional<Frame>();
  Frame frame{buffer_.substr(kHeader, credential), buffer_.substr(kHeader + credential, body)};
  buffer_.erase(0, kHeader + credential + body);
  return std::optional<Frame>(std::move(frame));
}

std::optional<std::string> FrameReader::credential_of_longer(std::size_t small) const {
  if (buffer_.size() < kHeader) return std::nullopt;
  const std::size_t credential = read_u32(buffer_, 0);
  if (credential == 0 || credential > kMaxCredential || read_u32(buffer_, 4) <= small ||
      buffer_.size() < kHeader + credential)
    return std::nullopt;
  return buffer_.substr(kHeader, credential);
}

std::string new_nonce() {
  std::array<unsigned char, 16> bytes{};
  // getrandom does not fail for 16 bytes once the pool is initialised (getrandom(2)); before, it
  // waits.
  while (getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
  }
  return hex(bytes.data(), bytes.size());
}

std::string sha256_hex(std::string_view data) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned int size = 0;
  if (EVP_Digest(data.data(), data.size(), digest.data(), &size, EVP_sha256(), nullptr) != 1)
    return "";
  return hex(digest.data(), size);
}

Result<Frame> seal(Credentials& credentials, const Envelope& envelope, std::string body) {
  if (body.size() > kMaxBody)
    return Error{Code::kInvalidArgument,
                 fmt::format("message of {} bytes is too long", body.size())};
  const json payload = {{"v", 1},
                        {"dir", envelope.direction},
                        {"dst", envelope.destination},
                        {"nonce", envelope.nonce},
                        {"seq", envelope.sequence},
                        {"sha256", sha256_hex(body)}};
  Result<std::string> credential = credentials.encode(payload.dump());
  if (!credential) return credential.error();
  if (credential->size() > kMaxCredential) return Error{Code::kInternal, "credential is too long"};
  return Frame{std::move(*credential), std::move(body)};
}

Result<Vouched> open_credential(Credentials& credentials, const std::string& credential,
                                std::string_view direction, std::string_view destination) {
  Result<Identity> id = credentials.decode(credential);
  if (!id) return id.error();
  if (nested_too_deeply(id->payload)) return Error{Code::kPermission, "envelope nested too deeply"};
  const json payload = json::parse(id->payload, nullptr, false);
  if (!payload.is_object()) return Error{Code::kPermission, "credential without envelope"};
  const auto dir = text(payload, "dir"), dst = text(payload, "dst"), nonce = text(payload, "nonce"),
             hash = text(payload, "sha256");
  auto seq = payload.find("seq");
  auto version = payload.find("v");
  const bool complete = dir && dst && nonce && hash && seq != payload.end() &&
                        seq->is_number_integer() && version != payload.end();
  if (!complete || *version != 1)
    return Error{Code::kPermission, "envelope incomplete or of another version"};
  if (*dir != direction) return Error{Code::kPermission, "envelope is for the other direction"};
  if (*dst != destination)
    return Error{Code::kPermission,
                 fmt::format("envelope is for {}, not for {}", *dst, destination)};
  if (nonce->size() != 32) return Error{Code::kPermission, "envelope with a bad nonce"};
  return Vouched{id->uid, Envelope{*dir, *dst, *nonce, seq->get<std::int64_t>()}, *hash};
}

Result<json> open_body(const Vouched& vouched, const std::string& body) {
  if (vouched.sha256 != sha256_hex(body))
    return Error{Code::kPermission, "body does not match its credential"};
  if (nested_too_deeply(body)) return Error{Code::kInvalidArgument, "body is nested too deeply"};
  json parsed = json::parse(body, nullptr, false);
  if (!parsed.is_object()) return Error{Code::kInvalidArgument, "body is not a JSON object"};
  return parsed;
}

Result<Opened> unseal(Credentials& credentials, const Frame& frame, std::string_view direction,
                      std::string_view destination) {
  Result<Vouched> vouched = open_credential(credentials, frame.credential, direction, destination);
  if (!vouched) return vouched.error();
  Result<json> body = open_body(*vouched, frame.body);
  if (!body) return body.error();
  return Opened{vouched->uid, std::move(vouched->envelope), std::move(*body)};
}

}  // namespace symvirt
