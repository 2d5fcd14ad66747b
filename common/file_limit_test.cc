#include "common/file_limit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

namespace symvirt {
namespace {

// Run in a process of its own: an exit code of 0 is success.
void raises_what_it_may() {
  rlimit limit{100, 200};
  if (setrlimit(RLIMIT_NOFILE, &limit) != 0) std::exit(1);
  if (raise_file_limit(150) != 150) std::exit(2);
  if (raise_file_limit(120) != 150) std::exit(3);
  if (raise_file_limit() != 200 || file_limit() != 200) std::exit(4);
  std::exit(0);
}

TEST(FileLimit, IsRaisedAsFarAsAllowedAndNeverLowered) {
  EXPECT_EXIT(raises_what_it_may(), testing::ExitedWithCode(0), "");
}

TEST(FileLimit, IsWhatTheUnitsGive) {
  for (const char* unit : {"symvirtd.service", "symvirt-noded.service"}) {
    std::ifstream file(std::string(SYMVIRT_UNITS) + "/" + unit);
    std::stringstream text;
    text << file.rdbuf();
    EXPECT_THAT(text.str(),
                testing::HasSubstr("\nLimitNOFILE=" + std::to_string(kDaemonFiles) + "\n"))
        << unit;
  }
}

}  // namespace
}  // namespace symvirt
