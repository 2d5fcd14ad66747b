#include "node-helper/guest/address.h"

#include <arpa/inet.h>
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstring>

namespace symvirt::guest {

std::size_t Address::size() const { return family == AF_INET ? 4 : 16; }

bool Address::any() const {
  return std::all_of(bytes.begin(), bytes.end(), [](std::uint8_t b) { return b == 0; });
}

std::optional<Address> parse_address(const std::string& text) {
  Address address;
  for (const int family : {AF_INET, AF_INET6}) {
    if (inet_pton(family, text.c_str(), address.bytes.data()) == 1) {
      address.family = family;
      return address;
    }
  }
  return std::nullopt;
}

std::optional<Cidr> parse_cidr(const std::string& text) {
  const std::size_t slash = text.find('/');
  if (slash == std::string::npos) return std::nullopt;
  const auto address = parse_address(text.substr(0, slash));
  if (!address) return std::nullopt;
  unsigned prefix = 0;
  const char *first = text.data() + slash + 1, *last = text.data() + text.size();
  const auto [end, error] = std::from_chars(first, last, prefix);
  if (error != std::errc() || end != last || prefix > address->size() * 8) return std::nullopt;
  return Cidr{*address, static_cast<std::uint8_t>(prefix)};
}

Address make_address(int family, const void* bytes) {
  static constexpr std::uint8_t kMapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
  Address address;
  const auto* b = static_cast<const std::uint8_t*>(bytes);
  const bool mapped = family == AF_INET6 && std::memcmp(b, kMapped, sizeof kMapped) == 0;
  address.family = mapped ? AF_INET : family;
  std::copy_n(mapped ? b + sizeof kMapped : b, address.size(), address.bytes.begin());
  return address;
}

std::string to_text(const Address& address) {
  char text[INET6_ADDRSTRLEN] = "?";
  inet_ntop(address.family, address.bytes.data(), text, sizeof text);
  return text;
}

std::string network_of(const Cidr& cidr) {
  Address network = cidr.address;
  for (unsigned bit = cidr.prefix; bit < network.size() * 8; ++bit) {
    network.bytes[bit / 8] &= static_cast<std::uint8_t>(~(0x80u >> (bit % 8)));
  }
  return fmt::format("{}/{}", to_text(network), cidr.prefix);
}

}  // namespace symvirt::guest
