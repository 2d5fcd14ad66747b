#include "node-helper/protocol/credentials.h"

#include <fmt/format.h>
#include <munge.h>

#include <cstdlib>
#include <memory>

namespace symvirt {
namespace {

struct DestroyContext {
  void operator()(munge_ctx_t ctx) const { munge_ctx_destroy(ctx); }
};
using Context = std::unique_ptr<std::remove_pointer_t<munge_ctx_t>, DestroyContext>;

Error munge_error(const char* what, munge_err_t err) {
  // munged away is not the caller's fault; everything else about a credential is.
  const bool away = err == EMUNGE_SOCKET || err == EMUNGE_TIMEOUT || err == EMUNGE_NO_MEMORY ||
                    err == EMUNGE_SNAFU;
  return Error{away ? Code::kUnavailable : Code::kPermission,
               fmt::format("{}: {}", what, munge_strerror(err))};
}

class Slot {
 public:
  explicit Slot(std::counting_semaphore<kMungeAtOnce>& slots) : slots_(slots) { slots_.acquire(); }
  ~Slot() { slots_.release(); }
  Slot(const Slot&) = delete;
  Slot& operator=(const Slot&) = delete;

 private:
  std::counting_semaphore<kMungeAtOnce>& slots_;
};

Result<Context> make_context(const std::string& socket, int ttl_s) {
  Context ctx(munge_ctx_create());
  if (!ctx) return Error{Code::kInternal, "munge: out of memory"};
  if (!socket.empty()) munge_ctx_set(ctx.get(), MUNGE_OPT_SOCKET, socket.c_str());
  if (ttl_s > 0) munge_ctx_set(ctx.get(), MUNGE_OPT_TTL, ttl_s);
  return ctx;
}

}  // namespace

Result<std::string> MungeCredentials::encode(std::string_view payload) {
  auto ctx = make_context(socket_, ttl_s_);
  if (!ctx) return ctx.error();
  char* text = nullptr;
  const Slot slot(slots_);
  const munge_err_t err =
      munge_encode(&text, ctx->get(), payload.data(), static_cast<int>(payload.size()));
  std::unique_ptr<char, decltype(&std::free)> owner(text, std::free);
  if (err != EMUNGE_SUCCESS) return munge_error("munge encode", err).with("is munged running?");
  return std::string(text);
}

Result<Identity> MungeCredentials::decode(std::string_view credential) {
  auto ctx = make_context(socket_, 0);
  if (!ctx) return ctx.error();
  void* data = nullptr;
  int size = 0;
  Identity id;
  const std::string text(credential);
  const Slot slot(slots_);
  const munge_err_t err = munge_decode(text.c_str(), ctx->get(), &data, &size, &id.uid, &id.gid);
  std::unique_ptr<void, decltype(&std::free)> owner(data, std::free);
  // libmunge hands out the payload of expired and replayed credentials too: it must not be used.
  if (err != EMUNGE_SUCCESS) return munge_error("munge decode", err);
  if (data != nullptr && size > 0)
    id.payload.assign(static_cast<const char*>(data), static_cast<std::size_t>(size));
  return id;
}

}  // namespace symvirt
