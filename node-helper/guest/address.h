// IP addresses and networks as the rest of the daemon needs them: parsed, compared, printed.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

namespace symvirt::guest {

struct Address {
  int family = 0;                        // AF_INET, AF_INET6
  std::array<std::uint8_t, 16> bytes{};  // network order; the first 4 for AF_INET
  auto operator<=>(const Address&) const = default;
  std::size_t size() const;
  bool any() const;  // 0.0.0.0 or ::
};

struct Cidr {
  Address address;
  std::uint8_t prefix = 0;
};

std::optional<Address> parse_address(const std::string& text);
std::optional<Cidr> parse_cidr(const std::string& text);  // the prefix length is required
// An IPv4-mapped IPv6 address as the IPv4 address it stands for.
Address make_address(int family, const void* bytes);
std::string to_text(const Address& address);
// The network an address stands in: "10.78.0.101/24" -> "10.78.0.0/24".
std::string network_of(const Cidr& cidr);

}  // namespace symvirt::guest
