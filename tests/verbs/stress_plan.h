// What is sent: computed from link and number, by both sides.
#pragma once

#include <cstddef>
#include <cstdint>

namespace symvirt::verbs_stress {

inline std::uint64_t mix(std::uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() { return mix(state_++); }
  std::uint32_t below(std::uint32_t bound) { return static_cast<std::uint32_t>(next() % bound); }
  bool chance(std::uint32_t percent) { return below(100) < percent; }

 private:
  std::uint64_t state_;
};

enum class Kind { kSend, kSendImm, kInline, kWriteThenSend, kWriteImm };

struct Plan {
  Kind kind = Kind::kSend;
  std::uint32_t bytes = 0;
  std::uint64_t pattern = 0;
};

// Immediate data: message number in 31 bits; or, with the top bit, how many messages of the other
// direction have been checked.
inline constexpr std::uint32_t kAckBit = 0x80000000u;
inline std::uint32_t low_bits(std::uint64_t number) {
  return static_cast<std::uint32_t>(number) & ~kAckBit;
}
// The number near `near` with these low bits.
inline std::uint64_t widen(std::uint32_t low, std::uint64_t near) {
  const auto ahead = static_cast<std::int32_t>((low - low_bits(near)) << 1) >> 1;
  return near + static_cast<std::uint64_t>(static_cast<std::int64_t>(ahead));
}

enum class Service { kRc, kUc, kUd };

inline Plan plan_of(std::uint64_t stream, std::uint64_t number, Service service,
                    std::uint32_t max_bytes, std::uint32_t max_inline) {
  Random random(mix(stream) ^ number * 0x100000001b3);
  Plan plan;
  const std::uint32_t dice = random.below(100);
  if (service == Service::kUd) {
    plan.kind = Kind::kSendImm;
  } else if (service == Service::kUc) {
    plan.kind = dice < 50 ? Kind::kSendImm : Kind::kWriteImm;
  } else {
    plan.kind = dice < 35   ? Kind::kSend
                : dice < 50 ? Kind::kSendImm
                : dice < 70 ? Kind::kInline
                : dice < 85 ? Kind::kWriteThenSend
                            : Kind::kWriteImm;
  }
  const std::uint32_t size = random.below(100);
  std::uint32_t limit = size < 60 ? 64 : size < 90 ? 1024 : max_bytes;
  if (plan.kind == Kind::kInline) limit = max_inline;
  if (limit > max_bytes) limit = max_bytes;
  plan.bytes = 1 + random.below(limit);
  plan.pattern = random.next();
  return plan;
}

inline std::uint8_t pattern_byte(std::uint64_t pattern, std::size_t i) {
  return static_cast<std::uint8_t>((pattern >> (i % 8 * 8)) + i * 13 + (i >> 8));
}
inline void fill(std::uint8_t* to, std::size_t bytes, std::uint64_t pattern) {
  for (std::size_t i = 0; i < bytes; ++i) to[i] = pattern_byte(pattern, i);
}
// Index of the first wrong byte, or `bytes`.
inline std::size_t first_wrong(const std::uint8_t* at, std::size_t bytes, std::uint64_t pattern,
                               std::size_t from = 0) {
  for (std::size_t i = 0; i < bytes; ++i)
    if (at[i] != pattern_byte(pattern, from + i)) return i;
  return bytes;
}

}  // namespace symvirt::verbs_stress
