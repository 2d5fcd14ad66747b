// What cannot be carried: refused as by a device that does not have it, or the process says so when
// it is made. What failed makes nobody immovable.
#include <dlfcn.h>

#include "pmix-hooks/ranks/verbs/testing/fake_rdmacm.h"
#include "pmix-hooks/ranks/verbs/testing/layer_fixture.h"

namespace symvirt::hooks::verbs::layer_test {
namespace {

ibv_mr* (*real_on_demand)(ibv_pd*, void*, std::size_t, int) = nullptr;
ibv_qp* (*real_create)(ibv_pd*, ibv_qp_init_attr*) = nullptr;

class VerbsUnsupported : public VerbsLayer {
 protected:
  std::string reason() { return p[0].layer.immovable(); }
  ibv_context* context() {
    p[0].act();
    return p[0].context;
  }
  // The double, with something that it refuses.
  RealVerbs& more() {
    real_ = fabric.thread_verbs();
    set_real_verbs_for_test(&real_);
    return real_;
  }
  void TearDown() override {
    VerbsLayer::TearDown();
    set_real_verbs_for_test(nullptr);
  }
  RealVerbs real_;
};

TEST_F(VerbsUnsupported, ExtendedObjectsAreRefused) {
  ibv_context* const c = context();
  ibv_device_attr_ex attr{};
  EXPECT_EQ(ibv_query_device_ex(c, nullptr, &attr), 0);  // what ibv_query_device says
  EXPECT_EQ(attr.odp_caps.general_caps, 0u);
  EXPECT_EQ(attr.max_dm_size, 0u);
  EXPECT_EQ(attr.orig_attr.max_mw, 0);
  EXPECT_EQ(attr.orig_attr.device_cap_flags & (IBV_DEVICE_XRC | IBV_DEVICE_MEM_WINDOW), 0u);
  ibv_cq_init_attr_ex cq{};
  cq.cqe = 16;
  EXPECT_EQ(ibv_create_cq_ex(c, &cq), nullptr);
  ibv_qp_init_attr_ex qp{};
  qp.send_cq = qp.recv_cq = p[0].cq;
  qp.qp_type = IBV_QPT_RC;
  qp.pd = p[0].pd;
  qp.comp_mask = IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS;
  EXPECT_EQ(ibv_create_qp_ex(c, &qp), nullptr);
  EXPECT_EQ(ibv_qp_to_qp_ex(p[0].make(IBV_QPT_RC)), nullptr);
  EXPECT_EQ(reason(), "");
}

TEST_F(VerbsUnsupported, MemoryWindowsAreRefused) {
  context();
  errno = 0;
  EXPECT_EQ(ibv_alloc_mw(p[0].pd, IBV_MW_TYPE_2), nullptr);
  EXPECT_EQ(errno, EOPNOTSUPP);
}

TEST_F(VerbsUnsupported, XrcIsRefused) {
  ibv_context* const c = context();
  ibv_xrcd_init_attr domain{};
  errno = 0;
  EXPECT_EQ(ibv_open_xrcd(c, &domain), nullptr);
  EXPECT_EQ(errno, EOPNOTSUPP);
  ibv_srq_init_attr_ex srq{};
  srq.comp_mask = IBV_SRQ_INIT_ATTR_TYPE | IBV_SRQ_INIT_ATTR_PD;
  srq.srq_type = IBV_SRQT_XRC;
  srq.pd = p[0].pd;
  EXPECT_EQ(ibv_create_srq_ex(c, &srq), nullptr);
}

TEST_F(VerbsUnsupported, DeviceMemoryIsRefused) {
  ibv_alloc_dm_attr attr{};
  attr.length = 64;
  errno = 0;
  EXPECT_EQ(ibv_alloc_dm(context(), &attr), nullptr);
  EXPECT_EQ(errno, EOPNOTSUPP);
  EXPECT_EQ(ibv_import_dm(context(), 1), nullptr);
}

TEST_F(VerbsUnsupported, ImportedDevicesAreRefused) {
  context();
  EXPECT_EQ(ibv_import_device(0), nullptr);
  EXPECT_EQ(ibv_import_pd(p[0].context, 1), nullptr);
  EXPECT_EQ(ibv_import_mr(p[0].pd, 1), nullptr);
}

TEST_F(VerbsUnsupported, MemoryOnDemandSaysSoWhenTheDeviceHasIt) {
  context();
  std::uint8_t page[64];
  constexpr int kAccess = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_ON_DEMAND;
  EXPECT_EQ((ibv_reg_mr)(p[0].pd, page, sizeof page, kAccess), nullptr);
  EXPECT_EQ(reason(), "");  // the double has no such memory: nothing was made
  more().reg_mr = [](ibv_pd* pd, void* at, std::size_t length, int access) {
    return real_on_demand(pd, at, length, access & ~IBV_ACCESS_ON_DEMAND);
  };
  real_on_demand = fabric.thread_verbs().reg_mr;
  ibv_mr* const mr = (ibv_reg_mr)(p[0].pd, page, sizeof page, kAccess);
  ASSERT_NE(mr, nullptr);
  EXPECT_NE(reason().find("on demand"), std::string::npos) << reason();
  EXPECT_EQ(ibv_dereg_mr(mr), 0);
}

TEST_F(VerbsUnsupported, OtherTypesOfQueuePairsSaySoWhenTheDeviceHasThem) {
  context();
  ibv_qp_init_attr init{};
  init.send_cq = init.recv_cq = p[0].cq;
  init.cap = {4, 4, 1, 1, 0};
  init.qp_type = IBV_QPT_RAW_PACKET;
  EXPECT_EQ(ibv_create_qp(p[0].pd, &init), nullptr);
  EXPECT_EQ(reason(), "");
  real_create = fabric.thread_verbs().create_qp;
  more().create_qp = [](ibv_pd* pd, ibv_qp_init_attr* attr) {
    attr->qp_type = IBV_QPT_UD;
    return real_create(pd, attr);
  };
  ibv_qp* const qp = ibv_create_qp(p[0].pd, &init);
  ASSERT_NE(qp, nullptr);
  EXPECT_NE(reason().find("queue pair of type"), std::string::npos) << reason();
  p[0].made.push_back(qp);
}

TEST_F(VerbsUnsupported, MulticastSaysSoWhenItSucceeds) {
  ibv_qp* const qp = p[0].make(IBV_QPT_UD);
  union ibv_gid group {};
  EXPECT_NE(ibv_attach_mcast(qp, &group, 0), 0);
  EXPECT_EQ(reason(), "");
  more().attach_mcast = [](ibv_qp*, const union ibv_gid*, std::uint16_t) { return 0; };
  EXPECT_EQ(ibv_attach_mcast(qp, &group, 0), 0);
  EXPECT_EQ(reason(), "multicast group");
}

// A device that the layer did not list (of a provider's own list, say) is opened past it.
TEST_F(VerbsUnsupported, ADevicePastTheLayerSaysSo) {
  context();
  ibv_device** const list = fabric.thread_verbs().get_device_list(nullptr);
  ibv_context* const past = ibv_open_device(list[0]);
  ASSERT_NE(past, nullptr);
  EXPECT_NE(reason().find("past"), std::string::npos) << reason();
  EXPECT_EQ(ibv_close_device(past), 0);
  fabric.thread_verbs().free_device_list(list);
}

// Direct verbs look at what lies behind ibv_device, where a provider's own struct goes on.
TEST_F(VerbsUnsupported, DirectVerbsFindNoDeviceOfTheirs) {
  void* const library = dlopen("libmlx5.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) GTEST_SKIP() << "no libmlx5";
  const auto is_supported =
      reinterpret_cast<bool (*)(ibv_device*)>(dlsym(library, "mlx5dv_is_supported"));
  const auto open =
      reinterpret_cast<ibv_context* (*)(ibv_device*, void*)>(dlsym(library, "mlx5dv_open_device"));
  const auto query =
      reinterpret_cast<int (*)(ibv_context*, void*)>(dlsym(library, "mlx5dv_query_device"));
  ASSERT_TRUE(is_supported != nullptr && open != nullptr && query != nullptr);
  ibv_context* const c = context();
  std::byte attributes[512]{};
  EXPECT_FALSE(is_supported(c->device));
  errno = 0;
  EXPECT_EQ(open(c->device, attributes), nullptr);
  EXPECT_EQ(errno, EOPNOTSUPP);
  EXPECT_NE(query(c, attributes), 0);
}

// Only the first is kept, and a process says it once; so each kind has a process of its own.
TEST_F(VerbsUnsupported, EveryWayToConnectByRdmaCmSaysSo) {
  using testing::fake_rdmacm_calls;
  sockaddr address{};
  void* id[8] = {};
  const auto says = [this](auto call) {
    Layer layer;
    Layer::set_current_for_test(&layer);
    const int before = fake_rdmacm_calls();
    call();
    EXPECT_EQ(fake_rdmacm_calls(), before + 1);
    return layer.immovable();
  };
  const std::string why = "connection by rdma_cm: the kernel holds the device for it";
  EXPECT_EQ(says([&] { rdma_bind_addr(id, &address); }), why);
  EXPECT_EQ(says([&] { rdma_resolve_addr(id, nullptr, &address, 1); }), why);
  address.sa_family = AF_IB;  // the library's own probe
  EXPECT_EQ(says([&] { rdma_bind_addr(id, &address); }), "");
}

}  // namespace
}  // namespace symvirt::hooks::verbs::layer_test
