#include "tests/bench/bench_process.h"

namespace symvirt::hooks::verbs::bench {

using testing::Endpoint;

const RealVerbs& interposed() {
  static const RealVerbs verbs = [] {
    RealVerbs v;
    v.get_device_list = ibv_get_device_list;
    v.free_device_list = ibv_free_device_list;
    v.open_device = ibv_open_device;
    v.close_device = ibv_close_device;
    v.query_port = [](ibv_context* context, std::uint8_t port, ibv_port_attr* attr) {
      return ibv_query_port(context, port, reinterpret_cast<_compat_ibv_port_attr*>(attr));
    };
    v.query_gid = ibv_query_gid;
    v.alloc_pd = ibv_alloc_pd;
    v.dealloc_pd = ibv_dealloc_pd;
    v.reg_mr = ibv_reg_mr;
    v.dereg_mr = ibv_dereg_mr;
    v.create_comp_channel = ibv_create_comp_channel;
    v.destroy_comp_channel = ibv_destroy_comp_channel;
    v.create_cq = ibv_create_cq;
    v.destroy_cq = ibv_destroy_cq;
    v.create_srq = ibv_create_srq;
    v.destroy_srq = ibv_destroy_srq;
    v.create_qp = ibv_create_qp;
    v.modify_qp = ibv_modify_qp;
    v.query_qp = ibv_query_qp;
    v.destroy_qp = ibv_destroy_qp;
    v.create_ah = ibv_create_ah;
    v.destroy_ah = ibv_destroy_ah;
    return v;
  }();
  return verbs;
}

Process::Process(testing::Fabric& the_fabric, const RealVerbs& under, int the_host, bool with_layer,
                 int cqe)
    : fabric(the_fabric), host(the_host) {
  set_real_verbs_for_test(&under);
  act();
  plug();
  if (with_layer) {
    layer = std::make_unique<Layer>();
    transport = std::make_unique<VerbsTransport>([this]() -> Layer& { return *layer; });
  }
  Layer::set_current_for_test(layer.get());
  end = std::make_unique<Endpoint>(with_layer ? interposed() : under, cqe);
  Layer::set_current_for_test(nullptr);
}

Process::~Process() {
  act();
  end.reset();
}

void Process::plug() {
  ++devices_;
  testing::DeviceSpec spec;
  spec.name = "host" + std::to_string(host) + "dev" + std::to_string(devices_);
  spec.guid = static_cast<std::uint64_t>(host + 1) << 8 | static_cast<std::uint64_t>(devices_);
  spec.first_key = static_cast<std::uint32_t>(1 + devices_ * 10);
  spec.distinct_rkeys = true;
  fabric.plug(host, spec);
}

bool Process::replace_device() {
  const bool free =
      fabric.unplug(host, "host" + std::to_string(host) + "dev" + std::to_string(devices_))
          .nothing();
  plug();
  return free;
}

}  // namespace symvirt::hooks::verbs::bench
