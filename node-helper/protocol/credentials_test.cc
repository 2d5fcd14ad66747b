// What libmunge says of a credential, and what becomes of it. libmunge gives out uid and payload of
// credentials that it calls expired, rewound or replayed, too; here its two calls are replaced by
// ones that do the same (the program's own functions go before the library's).
#include "node-helper/protocol/credentials.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <munge.h>

#include <cstdlib>
#include <cstring>

namespace {
munge_err_t answer = EMUNGE_SUCCESS;
}  // namespace

extern "C" munge_err_t munge_decode(const char* cred, munge_ctx_t, void** buf, int* len, uid_t* uid,
                                    gid_t* gid) {
  *len = static_cast<int>(std::strlen(cred));
  *buf = strdup(cred);
  *uid = 0;
  *gid = 0;
  return answer;
}

extern "C" munge_err_t munge_encode(char** cred, munge_ctx_t, const void*, int) {
  *cred = answer == EMUNGE_SUCCESS ? strdup("MUNGE:x:") : nullptr;
  return answer;
}

namespace symvirt {
namespace {

TEST(MungeCredentials, AGoodOneIsBelieved) {
  answer = EMUNGE_SUCCESS;
  MungeCredentials munge;
  const auto id = munge.decode("payload");
  ASSERT_TRUE(id) << id.error().message;
  EXPECT_EQ(id->uid, 0u);
  EXPECT_EQ(id->payload, "payload");
  EXPECT_TRUE(munge.encode("x"));
}

TEST(MungeCredentials, NothingOfAnyOtherIs) {
  MungeCredentials munge;
  for (munge_err_t why :
       {EMUNGE_CRED_EXPIRED, EMUNGE_CRED_REWOUND, EMUNGE_CRED_REPLAYED, EMUNGE_CRED_INVALID,
        EMUNGE_CRED_UNAUTHORIZED, EMUNGE_BAD_CRED, EMUNGE_BAD_VERSION}) {
    answer = why;
    const auto id = munge.decode("payload");
    ASSERT_FALSE(id) << munge_strerror(why);
    EXPECT_EQ(id.error().code, Code::kPermission) << munge_strerror(why);
    EXPECT_THAT(id.error().message, testing::HasSubstr(munge_strerror(why)));
  }
}

TEST(MungeCredentials, MungedThatIsAwayIsNobodysFault) {
  MungeCredentials munge;
  for (munge_err_t why : {EMUNGE_SOCKET, EMUNGE_TIMEOUT}) {
    answer = why;
    const auto id = munge.decode("payload");
    ASSERT_FALSE(id);
    EXPECT_EQ(id.error().code, Code::kUnavailable);
    EXPECT_EQ(munge.encode("x").error().code, Code::kUnavailable);
  }
}

}  // namespace
}  // namespace symvirt
