// What the exported functions share. Each passes objects that are not the layer's through to the
// real function; in a forked child, changes nothing; else runs as a control call.
#pragma once

#include <pthread.h>

#include <cerrno>
#include <string>

#include "pmix-hooks/ranks/verbs/layer.h"
#include "pmix-hooks/ranks/verbs/real_verbs.h"

namespace symvirt::hooks::verbs {

// No exception crosses the C interface; the only ones there are say that memory is used up.
template <typename R, typename F>
R no_throw(R failed, F f) {
  try {
    return f();
  } catch (...) {
    errno = ENOMEM;
    return failed;
  }
}

class RealDevices {
 public:
  RealDevices();
  RealDevices(const RealDevices&) = delete;
  RealDevices& operator=(const RealDevices&) = delete;
  ~RealDevices();
  bool ok() const { return list_ != nullptr; }
  int count() const { return count_; }
  ibv_device* operator[](int i) const { return list_[i]; }
  ibv_device* named(const std::string& name) const;

 private:
  ibv_device** list_ = nullptr;
  int count_ = 0;
};

// Opens (closes) the real context of one; errno says why not.
bool open_real(VContext& context, const std::string& name);
void close_real(VContext& context);

// The real objects of virtual ones, made from what is remembered: at creation, and at every resume.
// False, errno.
bool make_real_mr(VMr& mr, ibv_pd* pd);  // also of memory that was unmapped meanwhile
bool make_real_ah(VAh& ah);
bool make_real_cq(VCq& cq, int comp_vector);
bool make_real_srq(VSrq& srq);
bool make_real_qp(VQp& qp);

// Room in a completion queue for `more` (or less) of the layer's own work: without it a queue that
// is as small as the application could make it would overrun. A device that grants none goes
// without.
void reserve_own(VCq& cq, int more);

inline void acknowledge(pthread_mutex_t& mutex, pthread_cond_t& cond, std::uint32_t& count,
                        std::uint32_t by = 1) {
  pthread_mutex_lock(&mutex);
  count += by;
  pthread_cond_signal(&cond);
  pthread_mutex_unlock(&mutex);
}

// As libibverbs does: an object goes when its events have been acknowledged.
inline void await_acknowledged(pthread_mutex_t& mutex, pthread_cond_t& cond,
                               const std::uint32_t& done, const std::uint32_t& given) {
  pthread_mutex_lock(&mutex);
  while (done != given) pthread_cond_wait(&cond, &mutex);
  pthread_mutex_unlock(&mutex);
}

}  // namespace symvirt::hooks::verbs
