// Credentials without munged: readable, and with the same refusals. One instance is one cluster's key and one host's memory of
// what it has decoded already.
#pragma once

#include <mutex>
#include <set>

#include "node-helper/protocol/credentials.h"

namespace symvirt::fakes {

class FakeCredentials : public Credentials {
 public:
  explicit FakeCredentials(std::string key = "key", uid_t uid = 0) : key_(std::move(key)), uid_(uid) {}

  Result<std::string> encode(std::string_view payload) override {
    std::lock_guard lock(mutex_);
    return key_ + "|" + std::to_string(uid_) + "|" + std::to_string(++serial_) + "|" + std::string(payload);
  }

  Result<Identity> decode(std::string_view credential) override {
    const std::string text(credential);
    const std::size_t a = text.find('|'), b = text.find('|', a + 1), c = text.find('|', b + 1);
    if (c == std::string::npos || text.substr(0, a) != key_) return Error{Code::kPermission, "Invalid credential"};
    std::lock_guard lock(mutex_);
    if (!seen_.insert(text).second) return Error{Code::kPermission, "Replayed credential"};
    Identity id;
    id.uid = static_cast<uid_t>(std::stoul(text.substr(a + 1, b - a - 1)));
    id.payload = text.substr(c + 1);
    return id;
  }

 private:
  std::string key_;
  uid_t uid_;
  std::mutex mutex_;
  std::uint64_t serial_ = 0;
  std::set<std::string> seen_;
};

}  // namespace symvirt::fakes
