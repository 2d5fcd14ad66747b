// A Node over a hypervisor in memory, for its tests.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "node-helper/host/node.h"
#include "tests/fakes/fake_hypervisor.h"

namespace symvirt::host {

using fakes::FakeDomain;
using fakes::FakeHypervisor;
using nlohmann::json;
using std::chrono::milliseconds;
using testing::HasSubstr;

inline constexpr char kConfig[] = R"(
host = "hv1"
[libvirt]
pin = false
qemu_img = "/bin/true"
shutdown_s = 1
[[device]]
name = "hca0"
gres = "hca"
snippets = ["<interface><mac address='{mac}'/></interface>", "<shmem name='g-{vm}'/>"]
[[device]]
name = "hca1"
gres = "hca"
snippets = ["<interface><mac address='{mac}'/></interface>", "<shmem name='g-{vm}'/>"]
)";

class NodeTest : public testing::Test {
 protected:
  NodeTest() {
    char name[] = "/tmp/symvirt-node-XXXXXX";
    folder_ = mkdtemp(name);
    restart();
  }
  ~NodeTest() override {
    node_.reset();
    std::filesystem::remove_all(folder_);
  }
  // As after SIGKILL: what is on disk is what is left.
  void restart() {
    node_.reset();
    store_ = std::make_unique<Store>(folder_);
    ASSERT_TRUE(store_->load());
    NodedConfig config = *parse_config(kConfig, "noded.toml");
    if (!qemu_img_.empty()) config.qemu_img = qemu_img_;
    node_ = std::make_unique<Node>(config, hypervisor_, *store_, [] { return 1LL << 30; });
    node_->reconcile();
  }
  Result<json> call(const std::string& method, json params, int ms = 2000,
                    std::function<bool()> gone = {},
                    std::function<bool(const json&)> progress = {}) {
    if (!params.contains("gen")) params["gen"] = 1;
    return node_->handle(
        {method, std::move(params), 0, "test", Deadline::after(milliseconds(ms)), progress, gone});
  }
  Code code_of(const std::string& method, json params, int ms = 2000) {
    auto r = call(method, std::move(params), ms);
    EXPECT_FALSE(r) << method << " should have failed: " << (r ? r->dump() : "");
    return r ? Code::kInternal : r.error().code;
  }
  json good(const std::string& method, json params, int ms = 2000) {
    auto r = call(method, std::move(params), ms);
    EXPECT_TRUE(r) << method << ": " << (r ? "" : r.error().message);
    return r ? *r : json();
  }
  void reserve(const std::string& vm = "v1") {
    good("device.reserve",
         {{"vm", vm},
          {"slots", {{{"slot", "ib0"}, {"gres", "hca"}, {"mac", "52:54:00:00:00:01"}}}}});
  }
  json start_params(const std::string& path) {
    return {{"vm", "v1"},
            {"xml", "<domain><name>v1</name><vcpu>1</vcpu></domain>"},
            {"overlays", {{{"path", path}, {"base", "/base"}, {"base_format", "qcow2"}}}}};
  }

  std::string folder_;
  std::string qemu_img_;  // instead of kConfig's
  FakeHypervisor hypervisor_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<Node> node_;
};

}  // namespace symvirt::host
